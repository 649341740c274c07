"""Weights that are multiplied as integers: how rows become integers, and the way through a matrix. LLVM's intermediate code.

A row is rounded to 16 bits of the power of two above the largest of ALIKE columns: what is within 1/128 of that keeps all bits that bf16 has. Its
integers are multiplied with those of the weights sixteen at a time, two of them added up by one instruction; the sums of ALIKE columns fit 32 bits, and
are exact in whatever order. Then they become fp32, once for ALIKE columns, and are added up as everywhere: in the order of columns, whatever rows there
are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import llvmlite.binding as llvm
from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from . import emit, spot
from .codings import Integers
from .emit import BYTES, FLOAT, FLOATS, INT16, INT32, INT64, INTS, VOID, alike, at, joined, least, load, loop, splat, steps
from .native import ALIKE, CHUNK, LANES
from .numbers import Number
from .registers import Registers
from .spot import GROUP, PARAMETERS
from .walk import DECODED, Walk, claims, given_in

#: Steps of a panel's columns.
_STEPS: Final = spot.ROOM // ALIKE
_EXPONENT: Final = 0x7F800000
_MANTISSA_BITS: Final = 23


class _Row:
    """Where the parts of a rounded row lie: native.rounded_bytes()."""

    def __init__(self, b: Builder, width: Value) -> None:
        self._b = b
        self._scales = b.mul(width, INT64(2))
        self._sums = b.add(self._scales, b.mul(b.udiv(b.add(width, INT64(ALIKE - 1)), INT64(ALIKE)), INT64(4)))
        eights = b.udiv(b.add(width, INT64(GROUP * LANES - 1)), INT64(GROUP * LANES))
        self.groups = b.mul(eights, INT64(LANES))
        self.nbytes = b.and_(b.add(b.add(self._sums, b.mul(self.groups, INT64(4))), INT64(63)), INT64(-64))

    def integers(self, row: Value, column: Value) -> Value:
        return self._b.gep(self._b.bitcast(row, INT16.as_pointer()), [column])

    def scales(self, row: Value, column: Value) -> Value:
        return self._b.gep(at(self._b, row, self._scales, FLOAT), [self._b.udiv(column, INT64(ALIKE))])

    def sums(self, row: Value, column: Value) -> Value:
        return self._b.gep(at(self._b, row, self._sums, FLOAT), [self._b.udiv(column, INT64(GROUP))])


def write_rounding(module: ir.Module, function: ir.Function) -> None:
    """The body of a function that rounds rows instead of multiplying with them."""
    nearest = ir.Function(module, ir.FunctionType(INTS, [FLOATS]), "llvm.x86.avx.cvt.ps2dq.256")
    b = Builder(function.append_basic_block())
    most = b.alloca(INTS)
    places, given = given_in(b, function)
    width = given["width"]
    parts = _Row(b, width)

    def share(x: Value, out: Value, column: Value) -> None:
        columns = least(b, b.sub(width, column), INT64(ALIKE))
        source = b.gep(x, [column])
        b.store(alike(INT32, 0), most)

        def compare(i: Value) -> None:
            bits = b.and_(b.bitcast(load(b, b.gep(source, [i]), FLOAT), INTS), alike(INT32, 0x7FFFFFFF))
            before = b.load(most)
            b.store(b.select(b.icmp_signed(">", bits, before), bits, before), most)

        loop(b, INT64(0), columns, LANES, compare)
        highest = emit.largest(b, b.load(most), lambda one, other: b.icmp_signed(">", one, other))
        exponent = b.and_(highest, INT32(_EXPONENT))
        endless = b.icmp_signed("==", exponent, INT32(_EXPONENT))
        floor = INT32(15 << _MANTISSA_BITS)
        exponent = b.select(b.icmp_signed("<", exponent, floor), floor, exponent)
        scale = b.sub(exponent, INT32(14 << _MANTISSA_BITS))
        inverse = splat(b, b.bitcast(b.sub(INT32(268 << _MANTISSA_BITS), exponent), FLOAT))
        scale = b.select(endless, INT32(0x7FC00000), scale)  # what is no number stays none
        b.store(b.bitcast(scale, FLOAT), parts.scales(out, column))

        def round_(i: Value) -> None:
            integers = b.call(nearest, [b.fmul(load(b, b.gep(source, [i]), FLOAT), inverse)])
            integers = b.select(b.icmp_signed(">", integers, alike(INT32, 32767)), alike(INT32, 32767), integers)
            integers = b.select(b.icmp_signed("<", integers, alike(INT32, -32767)), alike(INT32, -32767), integers)
            narrow = b.trunc(integers, ir.VectorType(INT16, LANES))
            b.store(narrow, b.bitcast(parts.integers(out, b.add(column, i)), narrow.type.as_pointer()), align=2)

        loop(b, INT64(0), columns, LANES, round_)

    def row(number: Value) -> None:
        x = b.gep(given["x"], [b.mul(number, width)])
        out = b.gep(b.bitcast(given["out"], BYTES), [b.mul(number, parts.nbytes)])
        steps(b, INT64(0), width, ALIKE, partial(share, x, out))
        sums = parts.sums(out, INT64(0))
        groups = b.udiv(width, INT64(GROUP))
        last = b.gep(sums, [b.sub(parts.groups, INT64(LANES))])
        b.store(alike(FLOAT, 0.0), b.bitcast(last, FLOATS.as_pointer()), align=4)  # what is not filled in of the last eight

        def sum_up(i: Value) -> None:
            """Of what is multiplied with, not of what it was: minima are taken from products with that."""
            integers = parts.integers(out, b.mul(i, INT64(GROUP)))
            total = alike(INT32, 0)
            for place in range(0, GROUP, LANES):
                total = b.add(total, b.sext(load(b, b.gep(integers, [INT64(place)]), INT16), INTS))
            scale = b.load(parts.scales(out, b.mul(i, INT64(GROUP))))
            b.store(b.fmul(emit.total(b, b.sitofp(total, FLOATS)), scale), b.gep(sums, [i]))

        loop(b, INT64(0), groups, 1, sum_up)

    claims(b, places, given | {"outputs": given["rows"]}, lambda first, _count: row(first))


def _multiply_and_add(module: ir.Module, registers: Registers) -> Callable[[Builder, Value, Value, Value], Value]:
    """``(b, sums, one, other)``: sums of pairs of products, two for each lane, added to its sum."""
    features = llvm.get_host_cpu_features()
    ints, words, wide = registers.ints, registers.words, registers.lanes > LANES
    if features.get("avx512vnni") or (features.get("avxvnni") and not wide):
        at_once = ir.Function(module, ir.FunctionType(ints, [ints, words, words]), f"llvm.x86.avx512.vpdpwssd.{512 if wide else 256}")
        return lambda b, sums, one, other: b.call(at_once, [sums, one, other])
    pairs = ir.Function(module, ir.FunctionType(ints, [words, words]), "llvm.x86.avx512.pmaddw.d.512" if wide else "llvm.x86.avx2.pmadd.wd")
    return lambda b, sums, one, other: b.add(sums, b.call(pairs, [one, other]))


class IntegerWalk(Walk):
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
        self._tiles = {(tall, wide): self._tile(module, tall, wide) for tall, most in registers.tiles for wide in {most, 1}}
        self._alone = {wide: self._tile(module, 1, wide, stored=True) for tall, most in registers.tiles if tall == 1 for wide in {most, 1}}
        self._decoded = self._array(INT16, spot.ROOM * DECODED)
        self._scales = self._array(INT16, PARAMETERS * DECODED)
        self._minima = self._array(FLOAT, PARAMETERS * DECODED)
        self._steps = self._array(FLOAT, _STEPS * DECODED)
        self._x = _Row(self.b, self._given["width"])

    def _add_up(self, first_row: Value, rows: Value, first: Value, count: Value) -> None:
        self._by_panels(first, count, partial(self._panel, first_row, rows))

    def _rounded(self, row: Value) -> Value:
        return self.b.gep(self.b.bitcast(self._given["x"], BYTES), [self.b.mul(row, self._x.nbytes)])

    def _panel(self, first_row: Value, rows: Value, first: Value, at: Value, count: Value, column: Value, columns: Value) -> None:
        """Of ``count`` outputs, whose sums are the chunk's from ``at`` on."""
        b, integers, width = self.b, self._integers, self._given["width"]
        several = b.icmp_signed(">", rows, INT64(1))
        groups = b.udiv(columns, INT64(GROUP))
        whole = self._whole_eights(groups)

        def one(output: Value) -> None:
            row = self._row(b.add(first, output))
            self._fetch_ahead(row, at, column, columns)
            if integers.scales is not None:
                first_scale, scales = (b.udiv(each, INT64(integers.share)) for each in (column, columns))
                integers.scales(b, row, width, first_scale, scales, b.gep(self._scales, [b.mul(output, INT64(PARAMETERS))]))
            if integers.minima is not None:
                minima = b.gep(self._minima, [b.mul(output, INT64(PARAMETERS))])
                self._nothing_in_the_last(minima, whole)
                integers.minima(b, row, width, b.udiv(column, INT64(GROUP)), groups, minima)

            def step(i: Value) -> None:
                value = integers.step(b, row, width, b.add(column, i))
                b.store(value, b.gep(self._steps, [b.add(b.mul(output, INT64(_STEPS)), b.udiv(i, INT64(ALIKE)))]))

            steps(b, INT64(0), columns, ALIKE, step)
            with b.if_then(several):
                self._decode(output, row, column, columns)

        def product(tile: ir.Function, weights: Value, stride: Value, row: Value, output: Value) -> None:
            x = self._rounded(b.add(first_row, row))
            scales = b.gep(self._scales, [b.mul(output, INT64(PARAMETERS))])
            step = b.gep(self._steps, [b.mul(output, INT64(_STEPS))])
            arguments = [
                self._x.integers(x, column), self._x.scales(x, column), self._x.nbytes, b.gep(weights, [b.mul(output, stride)]), stride, scales, step,
                self._sum_of(row, b.add(at, output)), column, columns, width,
            ]  # fmt: skip
            b.call(tile, arguments)

        def decoded(tall: int, wide: int, row: Value, output: Value) -> None:
            product(self._tiles[tall, wide], b.bitcast(self._decoded, BYTES), INT64(2 * spot.ROOM), row, output)

        def alone(wide: int, output: Value) -> None:
            product(self._alone[wide], self._row(first), self._given["row_bytes"], INT64(0), output)

        loop(b, INT64(0), count, 1, one)
        with b.if_else(several) as (many, one_row):
            with many:
                self._by_tiles(rows, count, decoded)
            with one_row:
                wide = max(self._alone)
                loop(b, loop(b, INT64(0), count, wide, partial(alone, wide)), count, 1, partial(alone, 1))
        if integers.minima is not None:
            self._less_minima(rows, at, count, whole, self._minima, lambda row: self._x.sums(self._rounded(b.add(first_row, row)), column))

    def _decode(self, output: Value, row: Value, column: Value, columns: Value) -> None:
        """integer · scale of a row's panel, 16 bits each."""
        b = self.b
        out = b.gep(self._decoded, [b.mul(output, INT64(spot.ROOM))])
        scales = b.gep(self._scales, [b.mul(output, INT64(PARAMETERS))])

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
        ``stride``: integer · scale as _decode() leaves it, or (``stored``) records, of whose ``column`` k is 0."""
        floats, of_sums = FLOAT.as_pointer(), self._registers.floats.as_pointer()
        signature = [INT16.as_pointer(), floats, INT64, BYTES, INT64, INT16.as_pointer(), floats, of_sums, INT64, INT64, INT64]
        function = ir.Function(module, ir.FunctionType(VOID, signature), f"tile_{rows}x{outputs}{'_stored' if stored else ''}")
        function.linkage = "internal"
        x, x_scales, x_bytes, weights, stride, scales, of_steps, sums, column, columns, width = function.args
        for pointer in (x, x_scales, weights, scales, of_steps, sums):
            pointer.add_attribute("noalias")
        b, lanes = Builder(function.append_basic_block()), self._registers.lanes
        places = range(0, GROUP, 2 * lanes)
        xs = [b.gep(b.bitcast(x, BYTES), [b.mul(x_bytes, INT64(row))]) for row in range(rows)]
        ws = [b.gep(weights, [b.mul(stride, INT64(output))]) for output in range(outputs)]

        def share(start: Value) -> None:
            end = b.add(start, least(b, b.sub(columns, start), INT64(ALIKE)))
            before, inside, after = b.block, b.append_basic_block(), b.append_basic_block()
            b.branch(inside)
            b.position_at_end(inside)
            k = b.phi(INT64)
            totals = [[b.phi(self._registers.ints) for _ in ws] for _ in xs]
            words = []
            for output, pointer in enumerate(ws):
                if stored:
                    words.append(self._words(b, pointer, width, column, k, b.gep(scales, [INT64(output * PARAMETERS)])))
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
            number = b.udiv(start, INT64(ALIKE))
            steps_ = [splat(b, b.load(b.gep(of_steps, [b.add(number, INT64(output * _STEPS))])), lanes) for output in range(outputs)]
            for row, new in enumerate(added):
                scale = splat(b, b.load(b.gep(at(b, b.bitcast(x_scales, BYTES), b.mul(x_bytes, INT64(row)), FLOAT), [number])), lanes)
                for output, value in enumerate(new):
                    place = b.gep(sums, [INT64(row * CHUNK + output)])
                    of_share = b.fmul(b.sitofp(value, self._registers.floats), steps_[output])
                    b.store(b.call(self._fma_of_sums, [of_share, scale, b.load(place)]), place)

        steps(b, INT64(0), columns, ALIKE, share)
        b.ret_void()
        return function
