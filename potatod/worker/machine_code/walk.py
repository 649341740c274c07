"""The way through a matrix: which outputs and rows are multiplied when, what all ways have in common. LLVM's intermediate code.

    for each chunk of outputs          claimed by whichever thread is free
      for each block of rows           as many as the second cache holds
        for each panel of columns      where weights are decoded: for some outputs at a time, as many as the nearest cache holds
          decode the weights           codings.py; what lies there as numbers is read where it is
          for each tile of outputs
            for each tile of rows      the product lies in registers
        add up, add the bias, and round

What is multiplied as fp32 is walked through in float_walk.py, as integers in integer_walk.py, and as bf16 by AMX in amx_walk.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from ..native import CHUNK, LANES, Call
from . import emit, spot
from .emit import FLOAT, FLOATS, INT8, INT16, INT32, INT64, each, least, steps
from .numbers import Number
from .registers import Registers
from .tiles import READ_AND_KEEP

#: Outputs whose weights are decoded before they are multiplied with.
DECODED: Final = 12
#: Bytes that come from memory together.
LINE: Final = 64
#: Rows and outputs of a block: its sums lie on the stack. Whole tiles of every kind.
BLOCK_ROWS: Final = 48


def given_in(b: Builder, function: ir.Function) -> tuple[dict[str, Value], dict[str, Value]]:
    """Of the Call that a function gets: where its fields lie, and what they are."""
    places = {name: b.gep(function.args[0], [INT32(0), INT32(index)]) for index, (name, *_) in enumerate(Call._fields_)}
    return places, {name: b.load(place) for name, place in places.items() if name != "claimed"}


def claims(
    b: Builder, places: dict[str, Value], given: dict[str, Value], body: Callable[[Value, Value], None], then: Callable[[], None] = lambda: None
) -> None:  # fmt: skip
    """``body(first, count)`` for chunks of outputs until all are claimed; ``then()``, and the function returns."""
    claim, compute, done = (b.append_basic_block(name) for name in ("claim", "compute", "done"))
    b.branch(claim)
    b.position_at_end(claim)
    first = b.atomic_rmw("add", places["claimed"], given["chunk"], "monotonic")
    b.cbranch(b.icmp_signed("<", first, given["outputs"]), compute, done)
    b.position_at_end(compute)
    body(first, least(b, b.sub(given["outputs"], first), given["chunk"]))
    b.branch(claim)
    b.position_at_end(done)
    then()
    b.ret_void()


class Walk(ABC):
    """The function's body: the loops drawn above."""

    #: Rows of a block, and outputs whose weights are decoded before they are multiplied with: as many as the second and the nearest cache hold.
    _ROWS: int
    _DECODED: int
    #: into which cache what comes next is fetched
    _FETCH = READ_AND_KEEP

    def __init__(self, function: ir.Function, number: Number, prefetch: ir.Function) -> None:
        """``number``: what comes out."""
        self._number = number
        self._prefetch = prefetch
        self.b = b = Builder(function.append_basic_block())
        self._at, self._given = given_in(b, function)

    def write(self) -> None:
        b, rows = self.b, self._given["rows"]

        def compute(first: Value, count: Value) -> None:
            steps(b, INT64(0), rows, self._ROWS, lambda row: self._block(row, least(b, b.sub(rows, row), INT64(self._ROWS)), first, count))

        claims(b, self._at, self._given, compute, self._end)

    @abstractmethod
    def _block(self, first_row: Value, rows: Value, first: Value, count: Value) -> None:
        """What a block of rows and a chunk of outputs give, into the output."""

    def _end(self) -> None:  # noqa: B027
        """Before the function returns."""

    def _out(self, row: Value, output: Value) -> Value:
        """Where it goes."""
        return self.b.gep(self._given["out"], [self.b.add(self.b.mul(row, self._given["out_width"]), output)])

    def _without_bias(self) -> Value:
        return self.b.icmp_unsigned("==", self.b.ptrtoint(self._given["bias"], INT64), INT64(0))

    def _bias(self, output: Value) -> Value:
        b, without = self.b, self._without_bias()
        bias = b.bitcast(b.gep(self._given["bias"], [output]), INT64.as_pointer())
        place = b.select(without, self._at["spare"], bias)  # what is not used must still be somewhere
        return b.select(without, ir.Constant(FLOAT, 0.0), emit.scalar(b, b.bitcast(place, FLOAT.as_pointer())))

    # weights that are decoded

    def _array(self, kind: ir.Type, count: int) -> Value:
        """Memory for the whole walk, on lines of a cache."""
        nbytes = count * {FLOAT: 4, INT64: 8, INT16: 2, INT8: 1}[kind]
        lines = self.b.alloca(ir.ArrayType(ir.VectorType(FLOAT, LINE // 4), -(-nbytes // LINE)))
        return self.b.bitcast(lines, kind.as_pointer())

    def _by_panels(
        self, first: Value, count: Value, most: Value, panel: Callable[[Value, Value, Value, Value, Value], None],
        then: Callable[[Value, Value, Value], None] = lambda first, at, some: None,
    ) -> None:  # fmt: skip
        """``panel(first, at, some, column, columns)`` for as many outputs at a time as are decoded, those from ``first`` on, with the chunk's sums from
        ``at`` on, and for about ``most`` of their columns; then ``then(first, at, some)``."""
        b = self.b

        def outputs(at: Value) -> None:
            some = least(b, b.sub(count, at), INT64(self._DECODED))

            def one(column: Value) -> Value:
                left = b.sub(self._given["width"], column)
                columns = b.select(b.icmp_signed("<", left, b.add(most, INT64(spot.FEW))), left, most)
                panel(b.add(first, at), at, some, column, columns)
                return b.add(column, columns)

            emit.walk(b, INT64(0), self._given["width"], one)
            then(b.add(first, at), at, some)

        steps(b, INT64(0), count, self._DECODED, outputs)

    def _row(self, output: Value) -> Value:
        """Its record."""
        return self.b.gep(self._given["weight"], [self.b.mul(output, self._given["row_bytes"])])

    def _coming(self, at: Value, column: Value, columns: Value) -> Value:
        """How far behind a row's record that lies which comes after a panel of it: its next one, or the row which the same thread will take then."""
        b, given = self.b, self._given
        following = b.add(column, columns)
        last = b.icmp_signed(">=", following, given["width"])
        further = b.select(b.icmp_signed("<", b.add(at, INT64(self._DECODED)), given["chunk"]), INT64(self._DECODED), b.sub(given["stride"], at))
        return b.select(last, b.mul(given["row_bytes"], further), b.udiv(b.mul(given["row_bytes"], following), given["width"]))

    def _fetch_ahead(self, row: Value, at: Value, column: Value, columns: Value) -> None:
        """What comes behind a panel of this row."""
        b, given = self.b, self._given
        coming = b.gep(row, [self._coming(at, column, columns)])
        nbytes = b.udiv(b.mul(given["row_bytes"], columns), given["width"])
        steps(b, INT64(0), nbytes, LINE, lambda i: b.call(self._prefetch, [b.gep(coming, [i]), *self._FETCH]))


class LaneWalk(Walk):
    """Sums lie in lanes of registers, each of every so-manieth column, which are added up in the end."""

    _ROWS = BLOCK_ROWS
    _DECODED = DECODED

    def __init__(self, function: ir.Function, registers: Registers, number: Number, prefetch: ir.Function, fma: ir.Function) -> None:
        """``fma``: of LANES numbers."""
        super().__init__(function, number, prefetch)
        self._registers = registers
        self._fma = fma
        self._sums = self._array(FLOAT, BLOCK_ROWS * CHUNK * registers.lanes)
        self._sums = self.b.bitcast(self._sums, registers.floats.as_pointer())

    @abstractmethod
    def _add_up(self, first_row: Value, rows: Value, first: Value, count: Value) -> None:
        """Adds to the sums of a block of rows and a chunk of outputs what all columns give."""

    def _sum_of(self, row: Value, output: Value) -> Value:
        return self.b.gep(self._sums, [self.b.add(self.b.mul(row, INT64(CHUNK)), output)])

    def _block(self, first_row: Value, rows: Value, first: Value, count: Value) -> None:
        b = self.b

        def round_(row: Value, output: Value) -> None:
            total = b.fadd(emit.total(b, b.load(self._sum_of(row, output))), self._bias(b.add(first, output)))
            b.store(self._number.rounded(b, total), self._out(b.add(first_row, row), b.add(first, output)))

        every = (INT64(0), rows, 1), (INT64(0), count, 1)
        each(b, *every, lambda row, output: b.store(emit.alike(FLOAT, 0.0, self._registers.lanes), self._sum_of(row, output)))
        self._add_up(first_row, rows, first, count)
        each(b, *every, round_)

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
