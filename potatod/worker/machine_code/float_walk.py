"""Products of weights that are numbers, or become fp32, in lanes of registers. LLVM's intermediate code.

    for each panel of columns      where weights are decoded: for DECODED outputs at a time
      decode the weights           codings.py; what lies there as numbers is read where it is
      for each tile of outputs
        for each tile of rows      tiles.py: the product lies in registers
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from llvmlite import ir
from llvmlite.ir import Value

from ..native import LANES
from . import emit, spot
from .codings import Shared
from .emit import FLOAT, FLOATS, INT64, each, least, load, loop, steps
from .numbers import Number
from .registers import Registers
from .spot import GROUP, PARAMETERS, Decode
from .walk import BLOCK_ROWS, DECODED, LaneWalk

#: Columns that are summed in registers before their sums are set aside.
PANEL: Final = 2048


@dataclass(frozen=True, slots=True)
class Weights:
    """How a matrix is read: as numbers where they lie, or decoded first."""

    number: Number
    decode: Decode | Shared | None = None


class FloatWalk(LaneWalk):
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
