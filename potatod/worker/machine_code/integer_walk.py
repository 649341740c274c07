"""Weights that are multiplied as integers, with rows that are rounded (rounding.py): the way through a matrix. LLVM's intermediate code.

Integers of 16 bits are multiplied as many at a time as a register holds, two of them added up by one instruction; the sums of ALIKE columns fit 32
bits, and are exact in whatever order. Then they become fp32, once for ALIKE columns, and are added up as everywhere: in the order of columns,
whatever rows there are, and all minima behind them.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import llvmlite.binding as llvm
from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from ..native import ALIKE, CHUNK, LANES
from . import emit, spot
from .codings import HalvesAt, Integers
from .emit import BYTES, FLOAT, FLOATS, INT16, INT32, INT64, VOID, alike, at, joined, least, load, loop, splat, steps
from .nibbles import Multiply, Nibbles
from .numbers import Number
from .registers import Registers
from .rounding import RoundedRow, planes
from .spot import GROUP
from .tiles import READ_AND_KEEP
from .walk import DECODED, LINE, LaneWalk

#: Columns of a panel where nothing is decoded, and room for the scales and the steps of a panel's columns.
_ALONE: Final = 2048
_SCALES: Final = (_ALONE + spot.FEW) // 16
_STEPS: Final = (_ALONE + spot.FEW) // ALIKE
#: Bytes that ALIKE columns of a record have at most.
_FETCHED: Final = 128
#: Groups whose minima are taken off at a time.
_MINIMA: Final = 128


def _multiply_and_add(module: ir.Module, registers: Registers) -> Multiply:
    features = llvm.get_host_cpu_features()
    ints, words, wide = registers.ints, registers.words, registers.lanes > LANES
    pairs = ir.Function(module, ir.FunctionType(ints, [words, words]), "llvm.x86.avx512.pmaddw.d.512" if wide else "llvm.x86.avx2.pmadd.wd")
    at_once = None
    if (features.get("avx512vnni") and features.get("avx512vl")) or (features.get("avxvnni") and not wide):
        at_once = ir.Function(module, ir.FunctionType(ints, [ints, words, words]), f"llvm.x86.avx512.vpdpwssd.{512 if wide else 256}")

    def multiply(b: Builder, sums: Value | None, one: Value, other: Value) -> Value:
        if sums is None:
            return b.call(pairs, [one, other])
        return b.add(sums, b.call(pairs, [one, other])) if at_once is None else b.call(at_once, [sums, one, other])

    return multiply


class IntegerWalk(LaneWalk):
    """Of weights that are small integers times steps; ``x`` are rounded rows."""

    def __init__(
        self, module: ir.Module, function: ir.Function, registers: Registers, number: Number, integers: Integers, prefetch: ir.Function,
        fma: ir.Function, of_sums: ir.Function,
    ) -> None:  # fmt: skip
        """``fma``: of LANES numbers; ``of_sums``: of as many as a register has."""
        super().__init__(function, registers, number, prefetch, fma)
        self._integers = integers
        self._fma_of_sums = of_sums
        self._multiply = _multiply_and_add(module, registers)
        self._nibbles = None if integers.halves is None else (Nibbles(module, registers, self._multiply), integers.halves)
        self._tiles = {(tall, wide): self._tile(module, tall, wide) for tall, most in registers.tiles for wide in {most, 1}}
        self._alone = {wide: self._tile(module, 1, wide, stored=True) for tall, most in registers.tiles if tall == 1 for wide in {most, 1}}
        self._decoded = self._array(INT16, spot.ROOM * DECODED)
        self._scales = self._array(INT16, _SCALES * DECODED)
        self._minima = self._array(FLOAT, _MINIMA)
        self._steps = self._array(FLOAT, _STEPS * DECODED)
        self._x = RoundedRow(self.b, self._given["width"])

    def _add_up(self, first_row: Value, rows: Value, first: Value, count: Value) -> None:
        b = self.b
        most = b.select(b.icmp_signed(">", rows, INT64(1)), INT64(spot.PANEL), INT64(_ALONE))
        self._by_panels(first, count, most, partial(self._panel, first_row, rows), partial(self._less_minima, first_row, rows))

    def _rounded(self, row: Value) -> Value:
        return self.b.gep(self.b.bitcast(self._given["x"], BYTES), [self.b.mul(row, self._x.nbytes)])

    def _panel(self, first_row: Value, rows: Value, first: Value, at: Value, count: Value, column: Value, columns: Value) -> None:
        """Of ``count`` outputs, whose sums are the chunk's from ``at`` on."""
        b, integers, width = self.b, self._integers, self._given["width"]
        several = b.icmp_signed(">", rows, INT64(1))

        def one(output: Value) -> None:
            row = self._row(b.add(first, output))
            if integers.scales is not None:
                first_scale, scales = (b.udiv(each, INT64(integers.share)) for each in (column, columns))
                integers.scales(b, row, width, first_scale, scales, b.gep(self._scales, [b.mul(output, INT64(_SCALES))]))

            def step(i: Value) -> None:
                value = integers.step(b, row, width, b.add(column, i))
                b.store(value, b.gep(self._steps, [b.add(b.mul(output, INT64(_STEPS)), b.udiv(i, INT64(ALIKE)))]))

            if integers.one_step:
                step(INT64(0))
            else:
                steps(b, INT64(0), columns, ALIKE, step)
            with b.if_then(several):
                self._fetch_ahead(row, at, column, columns)
                self._decode(output, row, column, columns)

        def product(tile: ir.Function, weights: Value, stride: Value, row: Value, output: Value) -> None:
            x = self._rounded(b.add(first_row, row))
            scales = b.gep(self._scales, [b.mul(output, INT64(_SCALES))])
            step = b.gep(self._steps, [b.mul(output, INT64(_STEPS))])
            arguments = [
                self._x.integers(x, column), self._x.scales(x, column), self._x.nbytes, b.gep(weights, [b.mul(output, stride)]), stride, scales, step,
                self._sum_of(row, b.add(at, output)), column, columns, width, coming,
            ]  # fmt: skip
            b.call(tile, arguments)

        def decoded(tall: int, wide: int, row: Value, output: Value) -> None:
            product(self._tiles[tall, wide], b.bitcast(self._decoded, BYTES), INT64(2 * spot.ROOM), row, output)

        def alone(wide: int, output: Value) -> None:
            product(self._alone[wide], self._row(first), self._given["row_bytes"], INT64(0), output)

        coming = self._coming(at, column, columns)
        loop(b, INT64(0), count, 1, one)
        with b.if_else(several) as (many, one_row):
            with many:
                self._by_tiles(rows, count, decoded)
            with one_row:
                wide = max(self._alone)
                loop(b, loop(b, INT64(0), count, wide, partial(alone, wide)), count, 1, partial(alone, 1))

    def _less_minima(self, first_row: Value, rows: Value, first: Value, at: Value, count: Value) -> None:
        """``sums[r][o] -= Σ minimum[o][g] · (Σ x[r][k] of the group)``, eight groups at a time, in the first lanes of the sums."""
        b, fill, width = self.b, self._integers.minima, self._given["width"]
        if fill is None:
            return
        groups = b.udiv(width, INT64(GROUP))

        def some(output: Value, number: Value) -> None:
            count = least(b, b.sub(groups, number), INT64(_MINIMA))
            whole = self._whole_eights(count)
            self._nothing_in_the_last(self._minima, whole)
            fill(b, self._row(b.add(first, output)), width, number, count, self._minima)

            def less(row: Value) -> None:
                place = b.bitcast(self._sum_of(row, b.add(at, output)), FLOATS.as_pointer())
                sums = self._x.sums(self._rounded(b.add(first_row, row)), b.mul(number, INT64(GROUP)))

                def eight(i: Value, so_far: Value) -> Value:
                    minima, of_x = (load(b, b.gep(each, [i]), FLOAT) for each in (self._minima, sums))
                    return b.call(self._fma, [b.fneg(minima), of_x, so_far])

                b.store(emit.fold(b, INT64(0), whole, LANES, b.load(place), eight), place)

            loop(b, INT64(0), rows, 1, less)

        loop(b, INT64(0), count, 1, lambda output: steps(b, INT64(0), groups, _MINIMA, partial(some, output)))

    def _decode(self, output: Value, row: Value, column: Value, columns: Value) -> None:
        """integer · scale of a row's panel, 16 bits each."""
        b = self.b
        out = b.gep(self._decoded, [b.mul(output, INT64(spot.ROOM))])
        scales = b.gep(self._scales, [b.mul(output, INT64(_SCALES))])

        def group(i: Value) -> None:
            for number, words in enumerate(self._words(b, row, self._given["width"], column, i, scales)):
                b.store(words, b.bitcast(b.gep(out, [b.add(i, INT64(words.type.count * number))]), words.type.as_pointer()), align=2)

        loop(b, INT64(0), columns, GROUP, group)

    def _words(self, b: Builder, row: Value, width: Value, column: Value, i: Value, scales: Value) -> list[Value]:
        """integer · scale of 32 columns from ``column`` + ``i`` on; ``scales`` are those from ``column`` on."""
        words = self._whole_registers(b, self._integers.words(b, row, width, b.add(column, i)))
        if self._integers.scales is None:
            return words
        share = self._integers.share
        number = b.udiv(i, INT64(share))
        each = [b.load(b.gep(scales, [b.add(number, INT64(more))])) for more in range(GROUP // share)]
        lanes = words[0].type.count
        known = [splat(b, scale, min(share, lanes)) for scale in each] * (1 if share < GROUP else GROUP // lanes)
        return [b.mul(some, scale) for some, scale in zip(words, self._whole_registers(b, known), strict=True)]

    def _whole_registers(self, b: Builder, vectors: list[Value]) -> list[Value]:
        """Of 32 columns' words, perhaps in halves."""
        return vectors if vectors[0].type.count == self._registers.words.count else [joined(b, *vectors)]

    def _tile(self, module: ir.Module, rows: int, outputs: int, *, stored: bool = False) -> ir.Function:
        """``sums[r][o] += Σ x[r][k] · integer[o][k] · scale · step`` for k from 0 to ``columns``. Rows of x are ``x_bytes`` apart, those of the weights
        ``stride``: integer · scale as _decode() leaves it, or (``stored``) records, of whose ``column`` k is 0, and ``coming`` bytes behind which that
        lies which is fetched meanwhile."""
        floats, of_sums = FLOAT.as_pointer(), self._registers.floats.as_pointer()
        signature = [INT16.as_pointer(), floats, INT64, BYTES, INT64, INT16.as_pointer(), floats, of_sums, INT64, INT64, INT64, INT64]
        function = ir.Function(module, ir.FunctionType(VOID, signature), f"tile_{rows}x{outputs}{'_stored' if stored else ''}")
        function.linkage = "internal"
        x, x_scales, x_bytes, weights, stride, scales, of_steps, sums, column, columns, width, coming = function.args
        for pointer in (x, x_scales, weights, scales, of_steps, sums):
            pointer.add_attribute("noalias")
        b, lanes = Builder(function.append_basic_block()), self._registers.lanes
        places = range(0, GROUP, 2 * lanes)
        xs = [b.gep(b.bitcast(x, BYTES), [b.mul(x_bytes, INT64(row))]) for row in range(rows)]
        ws = [b.gep(weights, [b.mul(stride, INT64(output))]) for output in range(outputs)]

        def add(start: Value, row: int, values: list[Value]) -> None:
            number = b.udiv(start, INT64(ALIKE))
            scale = splat(b, b.load(b.gep(at(b, b.bitcast(x_scales, BYTES), b.mul(x_bytes, INT64(row)), FLOAT), [number])), lanes)
            for output, value in enumerate(values):
                step = b.add(INT64(0) if self._integers.one_step else number, INT64(output * _STEPS))
                of_share = b.fmul(b.sitofp(value, self._registers.floats), splat(b, b.load(b.gep(of_steps, [step])), lanes))
                place = b.gep(sums, [INT64(row * CHUNK + output)])
                b.store(b.call(self._fma_of_sums, [of_share, scale, b.load(place)]), place)

        def fetch(start: Value) -> None:
            """Of what comes as much as a share has, while there is something to compute: all at once it would be waited for."""
            if not stored:
                return

            def one(pointer: Value, at: Value) -> None:
                b.call(self._prefetch, [b.gep(pointer, [at]), *READ_AND_KEEP])

            part = b.udiv(b.mul(stride, start), width)
            with b.if_else(b.icmp_signed("==", columns, width)) as (whole, parts):
                with whole:  # the records lie behind each other: in order, so that the processor goes on with it
                    begin = b.mul(part, INT64(outputs))
                    end = b.add(begin, b.udiv(b.mul(stride, INT64(ALIKE * outputs)), width))
                    steps(b, b.add(coming, begin), b.add(coming, end), LINE, partial(one, ws[0]))
                with parts:
                    for pointer in ws:
                        for line in range(0, _FETCHED, LINE):
                            one(pointer, b.add(b.add(coming, part), INT64(line)))

        def in_nibbles(nibbles: Nibbles, halves_at: HalvesAt, start: Value) -> None:
            fetch(start)
            bytes_ = b.gep(planes(b, x, width), [b.mul(start, INT64(2))])
            of_group = b.udiv(start, INT64(GROUP))
            values = []
            for output, pointer in enumerate(ws):
                halves = halves_at(b, pointer, width, b.add(column, start))
                values.append(nibbles.share(b, bytes_, halves, b.gep(scales, [b.add(of_group, INT64(output * _SCALES))])))
            add(start, 0, values)

        def in_words(start: Value) -> None:
            fetch(start)
            end = b.add(start, least(b, b.sub(columns, start), INT64(ALIKE)))
            before, inside, after = b.block, b.append_basic_block(), b.append_basic_block()
            b.branch(inside)
            b.position_at_end(inside)
            k = b.phi(INT64)
            totals = [[b.phi(self._registers.ints) for _ in ws] for _ in xs]
            words = []
            for output, pointer in enumerate(ws):
                if stored:
                    words.append(self._words(b, pointer, width, column, k, b.gep(scales, [INT64(output * _SCALES)])))
                else:
                    words.append([load(b, at(b, pointer, b.mul(b.add(k, INT64(place)), INT64(2)), INT16), INT16, 2 * lanes) for place in places])
            added = [list(row) for row in totals]
            for row, pointer in enumerate(xs):
                for number, place in enumerate(places):
                    values = load(b, at(b, pointer, b.mul(b.add(k, INT64(place)), INT64(2)), INT16), INT16, 2 * lanes)
                    for output, some in enumerate(words):
                        added[row][output] = self._multiply(b, added[row][output], some[number], values)
            following = b.add(k, INT64(GROUP))
            b.cbranch(b.icmp_signed("<", following, end), inside, after)
            emit.flows(k, (before, start), (inside, following))
            for old, new in zip(totals, added, strict=True):
                for total, value in zip(old, new, strict=True):
                    emit.flows(total, (before, alike(INT32, 0, lanes)), (inside, value))
            b.position_at_end(after)
            for row, new in enumerate(added):
                add(start, row, new)

        start: Value = INT64(0)
        if stored and self._nibbles is not None:
            start = loop(b, start, columns, ALIKE, partial(in_nibbles, *self._nibbles))
        steps(b, start, columns, ALIKE, in_words)
        b.ret_void()
        return function
