"""Products of bf16 in tiles of AMX: see amx.py. LLVM's intermediate code.

    for each panel of columns
      decode the weights                     of `packed`; what lies there as numbers is read where it is
      for each two blocks of SIDE rows
        for each few blocks of SIDE outputs  their sums lie in tiles, to which DEPTH columns at a time are added, in their order

Weights are the left factor, as they lie; the right one are rows as pairs.py leaves them, so that sums lie output by output and are turned in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from ..native import BLOCK_OUTPUTS, LANES
from . import emit, spot
from .amx import DEPTH, LINE, SIDE, TILE, TILES, Amx, Size, transposed
from .emit import BYTES, FLOAT, INT16, INT32, INT64, VOID, at, least, load, loop, steps
from .numbers import Number
from .walk import Walk

#: Columns of a panel of weights that are not decoded, at most.
_PANEL: Final = 512
#: The same of weights that are decoded, and room for it.
_DECODED_PANEL: Final = 2048
_ROOM: Final = _DECODED_PANEL + spot.FEW
#: Blocks of outputs at a time of few rows.
_FEW: Final = 2
#: To read, into the second cache, data.
_READ: Final = (INT32(0), INT32(2), INT32(1))
#: Blocks of outputs whose sums lie in tiles, most first, by how many blocks of rows there are beside them.
_WIDE: Final = {1: (4, 2, 1), 2: (2, 1)}


class AmxWalk(Walk):
    _ROWS = 128
    _DECODED = 32
    _FETCH = _READ

    def __init__(self, module: ir.Module, function: ir.Function, number: Number, decoder: ir.Function | None, prefetch: ir.Function) -> None:
        super().__init__(function, number, prefetch)
        self._decoder = decoder
        self._sums = self._array(FLOAT, self._ROWS * BLOCK_OUTPUTS)
        self._turned = self._array(FLOAT, SIDE * SIDE)
        if decoder is not None:
            self._decoded = self._array(INT16, _ROOM * self._DECODED)
            self._states = self._array(INT64, 2 * self._DECODED)
        self._amx = Amx(module, self.b)
        self._amx.begin(self.b)
        self._kernels = {
            (wide, rows, fetches): self._kernel(module, wide, rows, fetches)
            for rows, several in _WIDE.items() for wide in several for fetches in (False, True)
            if not fetches or (decoder is None and wide <= _FEW)
        }  # fmt: skip

    def _end(self) -> None:
        self._amx.end(self.b)

    def _block(self, first_row: Value, rows: Value, first: Value, count: Value) -> None:
        b, given = self.b, self._given
        if self._decoder is None:
            with b.if_else(b.icmp_signed(">", given["rows"], INT64(SIDE))) as (many, few):
                with many:
                    products = partial(self._read, first_row, rows, count)
                    self._by_even_panels(first, b.add(first, given["stride"]), products)
                with few:
                    self._in_order(rows, first, count)
        else:
            self._by_panels(first, count, INT64(_DECODED_PANEL), partial(self._decode, first_row, rows))
        blocks = partial(steps, b, INT64(0))
        blocks(rows, SIDE, lambda row: blocks(count, SIDE, lambda output: self._round(first_row, row, rows, first, output, count)))

    def _by_even_panels(self, first: Value, following: Value, products: Callable[[Value, Value, Value, Value], None]) -> None:
        """``products(column, columns, weights, coming)`` for panels of outputs from ``first`` on, all about as wide.
        ``coming``: what is computed with behind that; after the last panel the first one of outputs from ``following`` on."""
        b, given = self.b, self._given
        panels = b.udiv(b.add(given["width"], INT64(_PANEL - 1)), INT64(_PANEL))
        even = b.udiv(b.add(given["width"], b.sub(panels, INT64(1))), panels)
        even = b.and_(b.add(even, INT64(DEPTH - 1)), INT64(-DEPTH))

        def panel(column: Value) -> Value:
            columns = least(b, b.sub(given["width"], column), even)
            end = b.add(column, columns)
            weights, next_ones = (b.gep(self._row(first), [b.mul(each, INT64(2))]) for each in (column, end))
            products(column, columns, weights, b.select(b.icmp_signed("<", end, given["width"]), next_ones, self._row(following)))
            return end

        emit.walk(b, INT64(0), given["width"], panel)

    def _in_order(self, rows: Value, first: Value, count: Value) -> None:
        """So few rows that they are as fast as the weights come: these are taken as they lie in memory."""
        b, given = self.b, self._given

        def some(output: Value) -> None:
            left = least(b, b.sub(count, output), INT64(_FEW * SIDE))
            end = b.add(output, left)
            following = b.add(first, b.select(b.icmp_signed("<", end, count), end, given["stride"]))

            def products(column: Value, columns: Value, weights: Value, coming: Value) -> None:
                self._outputs(INT64(0), INT64(0), rows, output, left, column, columns, weights, given["row_bytes"], 1, coming)

            self._by_even_panels(b.add(first, output), following, products)

        steps(b, INT64(0), count, _FEW * SIDE, some)

    def _read(self, first_row: Value, rows: Value, count: Value, column: Value, columns: Value, weights: Value, coming: Value) -> None:
        self._products(first_row, rows, INT64(0), count, column, columns, weights, self._given["row_bytes"], coming)

    def _decode(self, first_row: Value, rows: Value, first: Value, at: Value, count: Value, column: Value, columns: Value) -> None:
        """Of ``count`` outputs, whose sums are the chunk's from ``at`` on."""
        b, given, room = self.b, self._given, INT64(_ROOM)

        def one(output: Value) -> None:
            row = self._row(b.add(first, output))
            self._fetch_ahead(row, at, column, columns)
            state = b.gep(self._states, [b.mul(output, INT64(2))])
            out = b.gep(self._decoded, [b.mul(output, room)])
            b.call(self._decoder, [row, given["weight"], given["weight_bytes"], column, columns, given["width"], out, state])

        loop(b, INT64(0), count, 1, one)
        self._products(first_row, rows, at, count, column, columns, b.bitcast(self._decoded, BYTES), INT64(2 * _ROOM), None)

    def _products(
        self, first_row: Value, rows: Value, at: Value, count: Value, column: Value, columns: Value, weights: Value, stride: Value,
        coming: Value | None,
    ) -> None:  # fmt: skip
        """Of a panel: ``count`` outputs, ``stride`` bytes apart, whose sums are the chunk's from ``at`` on. ``coming``: what is fetched beside the
        first rows, as many columns of as many outputs; there are two blocks of them then."""
        b = self.b

        def pair(row: Value) -> None:
            left = least(b, b.sub(rows, row), INT64(2 * SIDE))
            blocks = partial(self._outputs, b.add(first_row, row), row, left, at, count, column, columns, weights, stride)
            with b.if_else(b.icmp_signed(">", left, INT64(SIDE))) as (two, one):
                with two:
                    if coming is None:
                        blocks(2, None)
                    else:
                        with b.if_else(b.icmp_signed("==", b.add(first_row, row), INT64(0))) as (begins, goes_on):
                            with begins:
                                blocks(2, coming)
                            with goes_on:
                                blocks(2, None)
                with one:
                    blocks(1, None)

        steps(b, INT64(0), rows, 2 * SIDE, pair)

    def _outputs(
        self, first_row: Value, row: Value, rows: Value, first: Value, count: Value, column: Value, columns: Value, weights: Value, stride: Value,
        blocks: int, coming: Value | None,
    ) -> None:  # fmt: skip
        """Of ``rows`` rows in so many blocks."""
        b = self.b
        last = b.sub(rows, INT64(SIDE * (blocks - 1)))
        tall = [INT64(SIDE)] * (blocks - 1) + [last]
        x = [self._pairs(b.add(first_row, INT64(SIDE * number)), some, column) for number, some in enumerate(tall)]

        def some(wide: int, output: Value) -> None:
            lies = b.gep(weights, [b.mul(stride, output)])
            sums = self._sums_at(row, b.add(first, output))
            arguments = [lies, stride, *x, b.mul(last, INT64(4)), b.udiv(columns, INT64(DEPTH)), sums, column]
            if coming is not None:
                arguments.append(b.gep(coming, [b.mul(stride, output)]))
            b.call(self._kernels[wide, blocks, coming is not None], arguments)

        self._amx.configure(b, self._sizes(blocks, INT64(SIDE), last))
        output: Value = INT64(0)
        for wide in (each for each in _WIDE[blocks] if (each, blocks, coming is not None) in self._kernels):
            output = loop(b, output, count, wide * SIDE, partial(some, wide))
        with b.if_then(b.icmp_signed("<", output, count)):
            self._amx.configure(b, self._sizes(blocks, b.sub(count, output), last))
            some(1, output)

    def _pairs(self, row: Value, rows: Value, column: Value) -> Value:
        """Where a block begins, of ``rows`` rows from ``row`` on, at a column."""
        b = self.b
        begins = b.mul(b.mul(row, self._given["width"]), INT64(2))
        return b.gep(b.bitcast(self._given["x"], BYTES), [b.add(begins, b.mul(b.mul(column, rows), INT64(2)))])

    def _sums_at(self, row: Value, output: Value) -> Value:
        """[block of rows][block of outputs][output][row]"""
        b = self.b
        block = b.add(b.mul(b.udiv(row, INT64(SIDE)), INT64(BLOCK_OUTPUTS // SIDE)), b.udiv(output, INT64(SIDE)))
        return at(b, b.bitcast(self._sums, BYTES), b.mul(block, INT64(TILE)), FLOAT)

    # tiles: the sums, block of outputs by block of outputs; weights; rows

    @staticmethod
    def _weights_at(blocks: int) -> range:
        return range(max(_WIDE[blocks]) * blocks, TILES - blocks)

    def _sizes(self, blocks: int, outputs: Value, last: Value) -> list[Size]:
        """``outputs``: of each block; ``last``: rows of the last block."""
        b = self.b
        tall = [INT64(SIDE)] * (blocks - 1) + [last]
        lines = [b.mul(rows, INT64(4)) for rows in tall]
        sums = [Size(outputs, line) for _ in range(max(_WIDE[blocks])) for line in lines]
        return sums + [Size(outputs, INT64(LINE))] * len(self._weights_at(blocks)) + [Size(INT64(SIDE), line) for line in lines]

    def _kernel(self, module: ir.Module, wide: int, blocks: int, fetches: bool) -> ir.Function:
        """``sums += weights · x`` for ``count`` times DEPTH columns; from column 0 on, ``sums`` are what it begins.

        Where it ``fetches``, the last argument is where as many columns of as many outputs lie: they are fetched row by row, as memory likes it.
        """
        signature = [BYTES, INT64, *[BYTES] * blocks, INT64, INT64, FLOAT.as_pointer(), INT64, *([BYTES] if fetches else [])]
        function = ir.Function(module, ir.FunctionType(VOID, signature), f"amx_{wide}x{blocks}{'_fetching' if fetches else ''}")
        function.linkage = "internal"
        weights, stride, *xs, line, count, sums, column = function.args[: len(signature) - fetches]
        b, amx = Builder(function.append_basic_block()), self._amx
        lines = [INT64(LINE)] * (blocks - 1) + [line]
        own = range(wide * blocks)
        places = [at(b, b.bitcast(sums, BYTES), (number % blocks * (BLOCK_OUTPUTS // SIDE) + number // blocks) * TILE, emit.INT8) for number in own]
        with b.if_else(b.icmp_signed("==", column, INT64(0))) as (begins, goes_on):
            with begins:
                for number in own:
                    amx.zero(b, number)
            with goes_on:
                for number, place in zip(own, places, strict=True):
                    amx.load(b, number, place, INT64(LINE))
        left, right = self._weights_at(blocks), range(TILES - blocks, TILES)
        nbytes = b.mul(count, INT64(2 * DEPTH))

        def step(k: Value) -> None:
            for tile, x, own_line in zip(right, xs, lines, strict=True):
                amx.load(b, tile, b.gep(x, [b.mul(k, b.mul(own_line, INT64(SIDE)))]), own_line)
            for number in range(wide):
                block = b.gep(weights, [b.add(b.mul(stride, INT64(SIDE * number)), b.mul(k, INT64(2 * DEPTH)))])
                tile = left[number % len(left)]
                amx.load(b, tile, block, stride)
                if fetches:
                    place = b.add(b.mul(k, INT64(TILE * wide)), INT64(TILE * number))
                    row = b.udiv(place, nbytes)
                    begins_at = b.gep(function.args[-1], [b.add(b.mul(row, stride), b.sub(place, b.mul(row, nbytes)))])
                    for more in range(0, TILE, LINE):
                        b.call(self._prefetch, [b.gep(begins_at, [INT64(more)]), *_READ])
                for part in range(blocks):
                    amx.multiply(b, number * blocks + part, tile, right[part])

        loop(b, INT64(0), count, 1, step)
        for number, place in zip(own, places, strict=True):
            amx.store(b, number, place, INT64(LINE))
        b.ret_void()
        return function

    def _round(self, first_row: Value, row: Value, rows: Value, first: Value, output: Value, count: Value) -> None:
        """A block's sums into the output."""
        b = self.b
        sums = self._sums_at(row, output)
        across = ir.VectorType(FLOAT, SIDE)
        turned = transposed(b, [load(b, b.gep(sums, [INT64(SIDE * number)]), FLOAT, SIDE) for number in range(SIDE)])
        for number, values in enumerate(turned):
            b.store(values, b.bitcast(b.gep(self._turned, [INT64(SIDE * number)]), across.as_pointer()), align=LINE)
        place = b.add(first, output)
        some = least(b, b.sub(count, output), INT64(SIDE))
        whole = b.icmp_signed("==", some, INT64(SIDE))

        def of_row(number: Value) -> None:
            values = b.gep(self._turned, [b.mul(number, INT64(SIDE))])
            out = self._out(b.add(first_row, b.add(row, number)), place)

            def all_of_them(bias: Callable[[int], Value]) -> None:
                for lane in range(0, SIDE, LANES):
                    self._number.put(b, b.gep(out, [INT64(lane)]), b.fadd(load(b, b.gep(values, [INT64(lane)]), FLOAT), bias(lane)))

            def one(lane: Value) -> None:
                """As all are: to the sign of nought, and of what is no number."""
                total = emit.splat(b, b.fadd(b.load(b.gep(values, [lane])), self._bias(b.add(place, lane))))
                number = b.extract_element(self._number.written(b, self._number.stored(b, total)), INT32(0))
                b.store(number, b.gep(out, [lane]))

            with b.if_else(whole) as (at_once, singly):
                with at_once, b.if_else(self._without_bias()) as (without, with_it):
                    with without:
                        all_of_them(lambda lane: emit.alike(FLOAT, 0.0))
                    with with_it:
                        all_of_them(lambda lane: load(b, b.gep(self._given["bias"], [b.add(place, INT64(lane))]), FLOAT))
                with singly:
                    loop(b, INT64(0), some, 1, one)

        loop(b, INT64(0), least(b, b.sub(rows, row), INT64(SIDE)), 1, of_row)
