"""The way through a matrix: which outputs, rows and columns are multiplied when. LLVM's intermediate code.

    for each chunk of outputs          claimed by whichever thread is free
      for each block of rows           as many as the second cache holds
        for each panel of columns      where weights are decoded: for DECODED outputs at a time, as many as the nearest cache holds
          decode the weights           codings.py; what lies there as numbers is read where it is
          for each tile of outputs
            for each tile of rows      tiles.py: the product lies in registers
        add the lanes' sums and the bias, and round

What is multiplied as fp32 is walked through here, and what is multiplied as integers in integer_walk.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from ..native import CHUNK, LANES, Call
from . import emit, spot
from .codings import Shared
from .emit import FLOAT, FLOATS, INT16, INT32, INT64, each, least, load, loop, steps
from .numbers import Number
from .registers import Registers
from .spot import GROUP, PARAMETERS, Decode
from .tiles import READ_AND_KEEP

#: Columns that are summed in registers before their sums are set aside.
PANEL: Final = 2048
#: Outputs whose weights are decoded before they are multiplied with.
DECODED: Final = 12
#: Bytes that come from memory together.
LINE: Final = 64
#: Rows and outputs of a block: its sums lie on the stack. Whole tiles of every kind.
BLOCK_ROWS: Final = 48


@dataclass(frozen=True, slots=True)
class Weights:
    """How a matrix is read: as numbers where they lie, or decoded first."""

    number: Number
    decode: Decode | Shared | None = None


def given_in(b: Builder, function: ir.Function) -> tuple[dict[str, Value], dict[str, Value]]:
    """Of the Call that a function gets: where its fields lie, and what they are."""
    places = {name: b.gep(function.args[0], [INT32(0), INT32(index)]) for index, (name, *_) in enumerate(Call._fields_)}
    return places, {name: b.load(place) for name, place in places.items() if name != "claimed"}


def claims(b: Builder, places: dict[str, Value], given: dict[str, Value], body: Callable[[Value, Value], None]) -> None:
    """``body(first, count)`` for chunks of outputs until all are claimed; then the function returns."""
    claim, compute, done = (b.append_basic_block(name) for name in ("claim", "compute", "done"))
    b.branch(claim)
    b.position_at_end(claim)
    first = b.atomic_rmw("add", places["claimed"], given["chunk"], "monotonic")
    b.cbranch(b.icmp_signed("<", first, given["outputs"]), compute, done)
    b.position_at_end(compute)
    body(first, least(b, b.sub(given["outputs"], first), given["chunk"]))
    b.branch(claim)
    b.position_at_end(done)
    b.ret_void()


class Walk(ABC):
    """The function's body: the loops drawn above."""

    def __init__(self, function: ir.Function, registers: Registers, number: Number, prefetch: ir.Function, fma: ir.Function) -> None:
        """``number``: what comes out; ``fma``: of LANES numbers."""
        self._registers = registers
        self._number = number
        self._prefetch = prefetch
        self._fma = fma
        self.b = b = Builder(function.append_basic_block())
        self._sums = b.bitcast(b.alloca(ir.ArrayType(registers.floats, BLOCK_ROWS * CHUNK)), registers.floats.as_pointer())
        self._at, self._given = given_in(b, function)

    def write(self) -> None:
        b, rows = self.b, self._given["rows"]

        def compute(first: Value, count: Value) -> None:
            steps(b, INT64(0), rows, BLOCK_ROWS, lambda row: self._block(row, least(b, b.sub(rows, row), INT64(BLOCK_ROWS)), first, count))

        claims(b, self._at, self._given, compute)

    @abstractmethod
    def _add_up(self, first_row: Value, rows: Value, first: Value, count: Value) -> None:
        """Adds to the sums of a block of rows and a chunk of outputs what all columns give."""

    def _sum_of(self, row: Value, output: Value) -> Value:
        return self.b.gep(self._sums, [self.b.add(self.b.mul(row, INT64(CHUNK)), output)])

    def _block(self, first_row: Value, rows: Value, first: Value, count: Value) -> None:
        b, given = self.b, self._given

        def round_(row: Value, output: Value) -> None:
            total = b.fadd(emit.total(b, b.load(self._sum_of(row, output))), self._bias(b.add(first, output)))
            place = b.gep(given["out"], [b.add(b.mul(b.add(first_row, row), given["out_width"]), b.add(first, output))])
            b.store(self._number.rounded(b, total), place)

        every = (INT64(0), rows, 1), (INT64(0), count, 1)
        each(b, *every, lambda row, output: b.store(emit.alike(FLOAT, 0.0, self._registers.lanes), self._sum_of(row, output)))
        self._add_up(first_row, rows, first, count)
        each(b, *every, round_)

    def _bias(self, output: Value) -> Value:
        b, bias = self.b, self._given["bias"]
        without = b.icmp_unsigned("==", b.ptrtoint(bias, INT64), INT64(0))
        place = b.select(without, self._at["spare"], b.bitcast(b.gep(bias, [output]), INT64.as_pointer()))  # what is not used must still be somewhere
        return b.select(without, ir.Constant(FLOAT, 0.0), emit.scalar(b, b.bitcast(place, FLOAT.as_pointer())))

    # weights that are decoded

    def _array(self, kind: ir.Type, count: int) -> Value:
        """Memory for the whole walk, on lines of a cache."""
        nbytes = count * {FLOAT: 4, INT64: 8, INT16: 2}[kind]
        lines = self.b.alloca(ir.ArrayType(FLOATS, -(-nbytes // 32)))
        return self.b.bitcast(lines, kind.as_pointer())

    def _by_panels(
        self, first: Value, count: Value, most: Value, panel: Callable[[Value, Value, Value, Value, Value], None],
        then: Callable[[Value, Value, Value], None] = lambda first, at, some: None,
    ) -> None:  # fmt: skip
        """``panel(first, at, some, column, columns)`` for DECODED outputs at a time, those from ``first`` on, with the chunk's sums from ``at`` on, and
        for about ``most`` of their columns; then ``then(first, at, some)``."""
        b = self.b

        def outputs(at: Value) -> None:
            some = least(b, b.sub(count, at), INT64(DECODED))

            def one(column: Value) -> Value:
                left = b.sub(self._given["width"], column)
                columns = b.select(b.icmp_signed("<", left, b.add(most, INT64(spot.FEW))), left, most)
                panel(b.add(first, at), at, some, column, columns)
                return b.add(column, columns)

            emit.walk(b, INT64(0), self._given["width"], one)
            then(b.add(first, at), at, some)

        steps(b, INT64(0), count, DECODED, outputs)

    def _row(self, output: Value) -> Value:
        """Its record."""
        return self.b.gep(self._given["weight"], [self.b.mul(output, self._given["row_bytes"])])

    def _coming(self, at: Value, column: Value, columns: Value) -> Value:
        """How far behind a row's record that lies which comes after a panel of it: its next one, or the row which the same thread will take then."""
        b, given = self.b, self._given
        following = b.add(column, columns)
        last = b.icmp_signed(">=", following, given["width"])
        further = b.select(b.icmp_signed("<", b.add(at, INT64(DECODED)), given["chunk"]), INT64(DECODED), b.sub(given["stride"], at))
        return b.select(last, b.mul(given["row_bytes"], further), b.udiv(b.mul(given["row_bytes"], following), given["width"]))

    def _fetch_ahead(self, row: Value, at: Value, column: Value, columns: Value) -> None:
        """What comes behind a panel of this row."""
        b, given = self.b, self._given
        coming = b.gep(row, [self._coming(at, column, columns)])
        nbytes = b.udiv(b.mul(given["row_bytes"], columns), given["width"])
        steps(b, INT64(0), nbytes, LINE, lambda i: b.call(self._prefetch, [b.gep(coming, [i]), *READ_AND_KEEP]))

    def _whole_eights(self, groups: Value) -> Value:
        return self.b.and_(self.b.add(groups, INT64(LANES - 1)), INT64(-LANES))

    def _nothing_in_the_last(self, numbers: Value, whole: Value) -> None:
        """What is not filled in of the last eight is nought."""
        last = self.b.gep(numbers, [self.b.sub(whole, INT64(LANES))])
        self.b.store(emit.alike(FLOAT, 0.0), self.b.bitcast(last, FLOATS.as_pointer()), align=4)

    def _by_tiles(self, rows: Value, count: Value, product: Callable[[int, int, Value, Value], None]) -> None:
        """``product(tall, wide, row, output)`` for tiles that cover so many rows and outputs."""
        b = self.b
        row: Value = INT64(0)
        for tall, wide in self._registers.tiles:
            end = b.sub(rows, b.srem(b.sub(rows, row), INT64(tall)))
            with b.if_then(b.icmp_signed("<", row, end)):
                left = each(b, (row, end, tall), (INT64(0), count, wide), partial(product, tall, wide))
                each(b, (row, end, tall), (left, count, 1), partial(product, tall, 1))
            row = end


class FloatWalk(Walk):
    """Of weights that are numbers, or become fp32."""

    def __init__(
        self, function: ir.Function, registers: Registers, tiles: dict[tuple[int, int], ir.Function], number: Number, weights: Weights,
        decoder: ir.Function | None, fused: dict[int, ir.Function], prefetch: ir.Function, fma: ir.Function,
    ) -> None:  # fmt: skip
        super().__init__(function, registers, number, prefetch, fma)
        self._fused = fused
        self._weights = weights
        self._tiles = tiles
        self._decoder = decoder
        if decoder is not None:
            self._decoded = self._array(FLOAT, spot.ROOM * DECODED)
            self._scales, self._minima = (self._array(FLOAT, PARAMETERS * DECODED) for _ in range(2))
            self._group_sums = self._array(FLOAT, BLOCK_ROWS * PARAMETERS)
            self._states = self._array(INT64, 2 * DECODED)

    def _add_up(self, first_row: Value, rows: Value, first: Value, count: Value) -> None:
        if self._decoder is None:
            steps(self.b, INT64(0), self._given["width"], PANEL, partial(self._read, first_row, rows, first, count))
        else:
            self._by_panels(first, count, INT64(spot.PANEL), partial(self._decode, first_row, rows))

    def _read(self, first_row: Value, rows: Value, first: Value, count: Value, column: Value) -> None:
        """The panel from ``column`` on, of weights that are read where they are."""
        b, width = self.b, self._given["width"]
        weight = b.bitcast(self._given["weight"], self._weights.number.kind.as_pointer())

        def lies(output: Value) -> Value:
            return b.gep(weight, [b.add(b.mul(b.add(first, output), width), column)])

        self._products(first_row, rows, INT64(0), count, column, least(b, b.sub(width, column), INT64(PANEL)), lies, width)

    def _decode(self, first_row: Value, rows: Value, first: Value, at: Value, count: Value, column: Value, columns: Value) -> None:
        """Of ``count`` outputs, whose sums are the chunk's from ``at`` on."""
        b, given, room = self.b, self._given, INT64(spot.ROOM)
        several = b.icmp_signed(">", rows, INT64(1))

        def one(output: Value) -> None:
            row = self._row(b.add(first, output))
            self._fetch_ahead(row, at, column, columns)
            state = b.gep(self._states, [b.mul(output, INT64(2))])
            out = b.gep(self._decoded, [b.mul(output, room)])
            own = [b.gep(each, [b.mul(output, INT64(PARAMETERS))]) for each in (self._scales, self._minima)] + [b.zext(several, INT64)]
            if self._fused:
                self._nothing_in_the_last(own[1], self._whole_eights(self._groups(columns)))
            arguments = [row, given["weight"], given["weight_bytes"], column, columns, given["width"], out, state]
            b.call(self._decoder, arguments + (own if self._fused else []))

        loop(b, INT64(0), count, 1, one)
        decoded = partial(self._products, first_row, rows, at, count, column, columns, lambda output: b.gep(self._decoded, [b.mul(output, room)]), room)
        if not self._fused:
            decoded()
            return
        with b.if_else(several) as (many, alone):
            with many:
                decoded()
            with alone:
                self._one_row(first_row, self._row(first), at, count, column, columns)
        self._less_what_groups_have(first_row, rows, at, count, column, columns)

    def _one_row(self, row: Value, weight: Value, at: Value, count: Value, column: Value, columns: Value) -> None:
        b, given = self.b, self._given
        x = b.gep(given["x"], [b.add(b.mul(row, given["width"]), column)])

        def some(kind: ir.Function, output: Value) -> None:
            lies = b.gep(weight, [b.mul(output, given["row_bytes"])])
            scales = b.gep(self._scales, [b.mul(output, INT64(PARAMETERS))])
            sums = self._sum_of(INT64(0), b.add(at, output))
            b.call(kind, [x, lies, given["row_bytes"], column, columns, given["width"], scales, sums])

        wide = max(self._fused)
        left = loop(b, INT64(0), count, wide, partial(some, self._fused[wide]))
        loop(b, left, count, 1, partial(some, self._fused[1]))

    def _less_minima(
        self, rows: Value, at: Value, count: Value, groups: Value, minima: Value, sums: Callable[[Value], Value]
    ) -> None:  # fmt: skip
        """``sums[r][o] -= Σ minimum[o][g] · (Σ x[r][k] of the group)``, eight groups at a time: the lanes are added up in the end. ``minima``: of the
        outputs, PARAMETERS apart; ``sums(row)``: of a row's groups."""
        b = self.b

        def less(row: Value, output: Value) -> None:
            place = b.bitcast(self._sum_of(row, b.add(at, output)), FLOATS.as_pointer())  # in the first of its lanes
            own, of_x = b.gep(minima, [b.mul(output, INT64(PARAMETERS))]), sums(row)

            def eight(i: Value) -> None:
                least_, total = (load(b, b.gep(each, [i]), FLOAT) for each in (own, of_x))
                b.store(b.call(self._fma, [b.fneg(least_), total, b.load(place)]), place)

            loop(b, INT64(0), groups, LANES, eight)

        each(b, (INT64(0), rows, 1), (INT64(0), count, 1), less)

    def _groups(self, columns: Value) -> Value:
        return self.b.udiv(columns, INT64(GROUP))

    def _less_what_groups_have(self, first_row: Value, rows: Value, at: Value, count: Value, column: Value, columns: Value) -> None:
        shared = self._weights.decode
        assert isinstance(shared, Shared)
        if not shared.minimum:
            return
        b, given = self.b, self._given
        groups = self._groups(columns)
        whole = self._whole_eights(groups)

        def own(row: Value) -> Value:
            return b.gep(self._group_sums, [b.mul(row, INT64(PARAMETERS))])

        def sum_up(row: Value) -> None:
            x = b.gep(given["x"], [b.add(b.mul(b.add(first_row, row), given["width"]), column)])

            def group(number: Value) -> None:
                start = b.mul(number, INT64(GROUP))
                total = load(b, b.gep(x, [start]), FLOAT)
                for more in range(LANES, GROUP, LANES):
                    total = b.fadd(total, load(b, b.gep(x, [b.add(start, INT64(more))]), FLOAT))
                b.store(emit.total(b, total), b.gep(own(row), [number]))

            self._nothing_in_the_last(own(row), whole)
            loop(b, INT64(0), groups, 1, group)

        loop(b, INT64(0), rows, 1, sum_up)
        self._less_minima(rows, at, count, whole, self._minima, own)

    def _products(
        self, first_row: Value, rows: Value, at: Value, count: Value, column: Value, columns: Value, lies: Callable[[Value], Value], stride: Value
    ) -> None:  # fmt: skip
        """``lies(output)``: where the panel's weights are of one of ``count`` outputs, ``stride`` numbers from one to the next; their sums are the
        chunk's from ``at`` on."""
        b, x, width = self.b, self._given["x"], self._given["width"]

        def product(tall: int, wide: int, row: Value, output: Value) -> None:
            x_at = b.add(b.mul(b.add(first_row, row), width), column)
            arguments = [b.gep(x, [x_at]), lies(output), self._sum_of(row, b.add(at, output)), columns, width, stride]
            b.call(self._tiles[tall, wide], arguments)

        self._by_tiles(rows, count, product)

