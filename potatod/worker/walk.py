"""The way through a matrix: which outputs, rows and columns are multiplied when. LLVM's intermediate code.

    for each chunk of outputs          claimed by whichever thread is free
      for each block of rows           as many as the second cache holds
        for each panel of columns      where weights are decoded: for DECODED outputs at a time, as many as the nearest cache holds
          decode the weights           codings.py; what lies there as numbers is read where it is
          for each tile of outputs
            for each tile of rows      TILES: the product lies in registers
        add the lanes' sums and the bias, and round
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from . import emit, spot
from .codings import Shared
from .emit import FLOAT, FLOATS, INT32, INT64, each, least, load, loop, steps
from .native import CHUNK, LANES, Call
from .numbers import Number
from .spot import PARAMETERS, Decode
from .tiles import READ_AND_KEEP, TILES

#: Columns that are summed in registers before their sums are set aside.
PANEL: Final = 2048
#: Outputs whose weights are decoded before they are multiplied with.
DECODED: Final = 12
#: Of a row's scale.
_SCALE_BYTES: Final = 4
#: Bytes that come from memory together.
_LINE: Final = 64
#: Rows and outputs of a block: its sums lie on the stack. Whole tiles of every kind.
BLOCK_ROWS: Final = 48


@dataclass(frozen=True, slots=True)
class Weights:
    """How a matrix is read: as numbers where they lie, or decoded first."""

    number: Number
    decode: Decode | Shared | None = None
    #: whether a row begins with its scale, an fp32 that its sums are multiplied with
    scaled: bool = False


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


class Walk:
    """The function's body: the loops drawn above."""

    def __init__(
        self, function: ir.Function, tiles: dict[tuple[int, int], ir.Function], number: Number, weights: Weights, decoder: ir.Function | None,
        fused: dict[int, ir.Function], prefetch: ir.Function, fma: ir.Function,
    ) -> None:  # fmt: skip
        self._fused = fused
        self._fma = fma
        self._weights = weights
        self._prefetch = prefetch
        self._function = function
        self._tiles = tiles
        self._number = number
        self._decoder = decoder
        self.b = b = Builder(function.append_basic_block())
        self._sums = b.bitcast(b.alloca(ir.ArrayType(FLOATS, BLOCK_ROWS * CHUNK)), FLOATS.as_pointer())
        if decoder is not None:
            self._decoded = b.bitcast(b.alloca(ir.ArrayType(FLOATS, spot.ROOM * DECODED // LANES)), FLOAT.as_pointer())
            self._scales, self._minima = (
                b.bitcast(b.alloca(ir.ArrayType(FLOATS, PARAMETERS * DECODED // LANES)), FLOAT.as_pointer()) for _ in range(2)
            )
            self._group_sums = b.bitcast(b.alloca(ir.ArrayType(FLOATS, BLOCK_ROWS * PARAMETERS // LANES)), FLOAT.as_pointer())
            self._states = b.bitcast(b.alloca(ir.ArrayType(INT64, 2 * DECODED)), INT64.as_pointer())
        self._at, self._given = given_in(b, function)

    def write(self) -> None:
        b, rows = self.b, self._given["rows"]

        def compute(first: Value, count: Value) -> None:
            steps(b, INT64(0), rows, BLOCK_ROWS, lambda row: self._block(row, least(b, b.sub(rows, row), INT64(BLOCK_ROWS)), first, count))

        claims(b, self._at, self._given, compute)

    def _sum_of(self, row: Value, output: Value) -> Value:
        return self.b.gep(self._sums, [self.b.add(self.b.mul(row, INT64(CHUNK)), output)])

    def _block(self, first_row: Value, rows: Value, first: Value, count: Value) -> None:
        b, given = self.b, self._given

        def round_(row: Value, output: Value) -> None:
            total = emit.total(b, b.load(self._sum_of(row, output)))
            if self._weights.scaled:
                total = b.fmul(total, emit.scalar(b, emit.at(b, given["weight"], b.mul(b.add(first, output), given["row_bytes"]), FLOAT)))
            total = b.fadd(total, self._bias(b.add(first, output)))
            place = b.gep(given["out"], [b.add(b.mul(b.add(first_row, row), given["out_width"]), b.add(first, output))])
            b.store(self._number.rounded(b, total), place)

        every = (INT64(0), rows, 1), (INT64(0), count, 1)
        each(b, *every, lambda row, output: b.store(emit.alike(FLOAT, 0.0), self._sum_of(row, output)))
        if self._decoder is None:
            steps(b, INT64(0), given["width"], PANEL, partial(self._read, first_row, rows, first, count))
        else:
            steps(b, INT64(0), count, DECODED, partial(self._decoded_outputs, first_row, rows, first, count))
        each(b, *every, round_)

    def _bias(self, output: Value) -> Value:
        b, bias = self.b, self._given["bias"]
        without = b.icmp_unsigned("==", b.ptrtoint(bias, INT64), INT64(0))
        place = b.select(without, self._at["spare"], b.bitcast(b.gep(bias, [output]), INT64.as_pointer()))  # what is not used must still be somewhere
        return b.select(without, ir.Constant(FLOAT, 0.0), emit.scalar(b, b.bitcast(place, FLOAT.as_pointer())))

    def _read(self, first_row: Value, rows: Value, first: Value, count: Value, column: Value) -> None:
        """The panel from ``column`` on, of weights that are read where they are."""
        b, width = self.b, self._given["width"]
        weight, stride = b.bitcast(self._given["weight"], self._weights.number.kind.as_pointer()), width
        if self._weights.scaled:  # numbers of a byte
            weight, stride = b.gep(weight, [INT64(_SCALE_BYTES)]), self._given["row_bytes"]

        def lies(output: Value) -> Value:
            return b.gep(weight, [b.add(b.mul(b.add(first, output), stride), column)])

        self._products(first_row, rows, INT64(0), count, column, least(b, b.sub(width, column), INT64(PANEL)), lies, stride)

    def _decoded_outputs(self, first_row: Value, rows: Value, first: Value, count: Value, output: Value) -> None:
        """DECODED outputs of the chunk from ``output`` on, or what is left of it."""
        b = self.b
        some = least(b, b.sub(count, output), INT64(DECODED))
        emit.walk(b, INT64(0), self._given["width"], partial(self._decode, first_row, rows, b.add(first, output), output, some))

    def _decode(self, first_row: Value, rows: Value, first: Value, at: Value, count: Value, column: Value) -> Value:
        """The panel from ``column`` on, of the weights of ``count`` outputs, whose sums are the chunk's from ``at`` on. Where the next panel begins."""
        b, given, room = self.b, self._given, INT64(spot.ROOM)
        width, row_bytes = given["width"], given["row_bytes"]
        left = b.sub(width, column)
        last = b.icmp_signed("<", left, room)
        columns = b.select(last, left, INT64(spot.PANEL))
        following = b.add(column, columns)
        further = b.select(b.icmp_signed("<", b.add(at, INT64(DECODED)), given["chunk"]), INT64(DECODED), b.sub(given["stride"], at))
        ahead = b.select(last, b.mul(row_bytes, further), b.udiv(b.mul(row_bytes, following), width))
        ahead_bytes = b.udiv(b.mul(row_bytes, columns), width)

        def one(output: Value) -> None:
            row = b.gep(given["weight"], [b.mul(b.add(first, output), row_bytes)])
            coming = b.gep(row, [ahead])
            steps(b, INT64(0), ahead_bytes, _LINE, lambda i: b.call(self._prefetch, [b.gep(coming, [i]), *READ_AND_KEEP]))
            state = b.gep(self._states, [b.mul(output, INT64(2))])
            out = b.gep(self._decoded, [b.mul(output, room)])
            own = [b.gep(each, [b.mul(output, INT64(PARAMETERS))]) for each in (self._scales, self._minima)] + [b.zext(several, INT64)]
            if self._fused:
                self._nothing_in_the_last(own[1], self._groups(columns)[1])
            arguments = [row, given["weight"], given["weight_bytes"], column, columns, width, out, state]
            b.call(self._decoder, arguments + (own if self._fused else []))

        several = b.icmp_signed(">", rows, INT64(1))
        loop(b, INT64(0), count, 1, one)
        decoded = partial(self._products, first_row, rows, at, count, column, columns, lambda output: b.gep(self._decoded, [b.mul(output, room)]), room)
        if not self._fused:
            decoded()
            return following
        with b.if_else(several) as (many, alone):
            with many:
                decoded()
            with alone:
                self._one_row(first_row, b.gep(given["weight"], [b.mul(first, row_bytes)]), at, count, column, columns)
        self._less_minima(first_row, rows, at, count, column, columns)
        return following

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

    def _groups(self, columns: Value) -> tuple[Value, Value]:
        """How many there are in so many columns, and that rounded up to whole eights."""
        assert isinstance(self._weights.decode, Shared)
        groups = self.b.udiv(columns, INT64(self._weights.decode.columns))
        return groups, self.b.and_(self.b.add(groups, INT64(LANES - 1)), INT64(-LANES))

    def _nothing_in_the_last(self, numbers: Value, whole: Value) -> None:
        """What is not filled in of the last eight is nought."""
        last = self.b.gep(numbers, [self.b.sub(whole, INT64(LANES))])
        self.b.store(emit.alike(FLOAT, 0.0), self.b.bitcast(last, FLOATS.as_pointer()), align=4)

    def _less_minima(self, first_row: Value, rows: Value, at: Value, count: Value, column: Value, columns: Value) -> None:
        """``sums[r][o] -= Σ minimum[o][g] · (Σ x[r][k] of the group)``, eight groups at a time: the lanes are added up in the end."""
        shared = self._weights.decode
        assert isinstance(shared, Shared)
        if not shared.minimum:
            return
        b, given = self.b, self._given
        groups, whole = self._groups(columns)

        def sum_up(row: Value) -> None:
            own = b.gep(self._group_sums, [b.mul(row, INT64(PARAMETERS))])
            x = b.gep(given["x"], [b.add(b.mul(b.add(first_row, row), given["width"]), column)])

            def group(number: Value) -> None:
                start = b.mul(number, INT64(shared.columns))
                total = load(b, b.gep(x, [start]), FLOAT)
                for more in range(LANES, shared.columns, LANES):
                    total = b.fadd(total, load(b, b.gep(x, [b.add(start, INT64(more))]), FLOAT))
                b.store(emit.total(b, total), b.gep(own, [number]))

            self._nothing_in_the_last(own, whole)
            loop(b, INT64(0), groups, 1, group)

        def less(row: Value, output: Value) -> None:
            place = self._sum_of(row, b.add(at, output))
            minima = b.gep(self._minima, [b.mul(output, INT64(PARAMETERS))])
            sums = b.gep(self._group_sums, [b.mul(row, INT64(PARAMETERS))])

            def eight(i: Value) -> None:
                least, of_x = (load(b, b.gep(each, [i]), FLOAT) for each in (minima, sums))
                b.store(b.call(self._fma, [b.fneg(least), of_x, b.load(place)]), place)

            loop(b, INT64(0), whole, LANES, eight)

        loop(b, INT64(0), rows, 1, sum_up)
        each(b, (INT64(0), rows, 1), (INT64(0), count, 1), less)

    def _products(
        self, first_row: Value, rows: Value, at: Value, count: Value, column: Value, columns: Value, lies: Callable[[Value], Value], stride: Value
    ) -> None:  # fmt: skip
        """``lies(output)``: where the panel's weights are of one of ``count`` outputs, ``stride`` numbers from one to the next; their sums are the
        chunk's from ``at`` on."""
        b, x, width = self.b, self._given["x"], self._given["width"]

        def product(kind: ir.Function, row: Value, output: Value) -> None:
            x_at = b.add(b.mul(b.add(first_row, row), width), column)
            b.call(kind, [b.gep(x, [x_at]), lies(output), self._sum_of(row, b.add(at, output)), columns, width, stride])

        row: Value = INT64(0)
        for tall, wide in TILES:
            end = b.sub(rows, b.srem(b.sub(rows, row), INT64(tall)))
            with b.if_then(b.icmp_signed("<", row, end)):
                left = each(b, (row, end, tall), (INT64(0), count, wide), partial(product, self._tiles[tall, wide]))
                each(b, (row, end, tall), (left, count, 1), partial(product, self._tiles[tall, 1]))
            row = end


def write_decoding(function: ir.Function, decoder: ir.Function) -> None:
    """The body of a function that writes weights as bf16 instead of multiplying with them, and nothing is rounded off: they are."""
    b = Builder(function.append_basic_block())
    panel = b.bitcast(b.alloca(ir.ArrayType(FLOATS, spot.ROOM // LANES)), FLOAT.as_pointer())
    state = b.bitcast(b.alloca(ir.ArrayType(INT64, 2)), INT64.as_pointer())
    places, given = given_in(b, function)
    width, weight = given["width"], given["weight"]

    def decoded(output: Value, column: Value) -> Value:
        left = b.sub(width, column)
        columns = b.select(b.icmp_signed("<", left, INT64(spot.ROOM)), left, INT64(spot.PANEL))
        row = b.gep(weight, [b.mul(output, given["row_bytes"])])
        b.call(decoder, [row, weight, given["weight_bytes"], column, columns, width, panel, state])
        out = b.gep(given["out"], [b.add(b.mul(output, width), column)])

        def some(i: Value) -> None:
            upper = emit.upper_halves(b, load(b, b.gep(panel, [i]), FLOAT))
            b.store(upper, b.bitcast(b.gep(out, [i]), upper.type.as_pointer()), align=2)

        loop(b, INT64(0), columns, LANES, some)
        return b.add(column, columns)

    def outputs(first: Value, count: Value) -> None:
        loop(b, first, b.add(first, count), 1, lambda output: emit.walk(b, INT64(0), width, partial(decoded, output)))

    claims(b, places, given, outputs)
