"""How a few columns of a row of weights become fp32: machine code for each scheme, as LLVM's intermediate code.

The bytes are those that the scheme of the same name draws (potatod/schemes). Only processes that end import this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from .emit import FLOAT, FLOATS, HALF, INT8, INT32, INT64, INTS, alike, at, load, loop, scalar, splat
from .native import LANES
from .spot import GROUP, Decode, Spot
from .unpacking import unpack


@dataclass(frozen=True, slots=True)
class Shared:
    """A scheme whose weights are integers of four to eight bits, and of each ``columns`` of a row a scale, and perhaps a minimum:
    weight = integer · scale − minimum."""

    columns: int
    #: ``integers(b, row, width, column)``: four vectors, of the 32 columns from ``column`` on
    integers: Callable[[Builder, Value, Value, Value], list[Value]]
    #: ``parameters(b, spot, scales, minima)``: fills both, fp32 for each of the spot's groups; whole eights at a time, or one by one
    parameters: Callable[[Builder, Spot, Value, Value], None]
    minimum: bool

    def values(self, b: Builder, row: Value, width: Value, column: Value, scales: Value, first: Value) -> list[Value]:
        """integer · scale of 32 columns; ``first``: the first column that ``scales`` are of."""
        number = b.udiv(b.sub(column, first), INT64(self.columns))
        known = [splat(b, b.load(b.gep(scales, [b.add(number, INT64(more))]))) for more in range(GROUP // self.columns)]
        integers = self.integers(b, row, width, column)
        return [b.fmul(_floats(b, each), known[place * len(known) // 4]) for place, each in enumerate(integers)]


def _floats(b: Builder, integers: Value) -> Value:
    return b.sitofp(integers, FLOATS)


def _nibbles(b: Builder, pointer: Value) -> list[Value]:
    """16 bytes: their low halves are columns 0 to 15, their high halves 16 to 31. Four vectors of integers."""
    low, high = (b.zext(load(b, b.gep(pointer, [INT64(8 * half)]), INT8), INTS) for half in (0, 1))
    return [*(b.and_(each, alike(INT32, 15)) for each in (low, high)), *(b.lshr(each, alike(INT32, 4)) for each in (low, high))]


def _fifth_bits(b: Builder, pointer: Value) -> list[Value]:
    """4 bytes: a bit for each of 32 columns. Four vectors that are 0 or 16."""
    lanes = ir.Constant(INTS, list(range(LANES)))
    vectors = []
    for number in range(4):
        byte = splat(b, b.zext(scalar(b, b.gep(pointer, [INT64(number)])), INT32))
        vectors.append(b.shl(b.and_(b.lshr(byte, lanes), alike(INT32, 1)), alike(INT32, 4)))
    return vectors


def _high_pairs(b: Builder, pointer: Value) -> list[Value]:
    """8 bytes: of byte i the lowest two bits belong to column i, the next two to column 8 + i, … Four vectors of 0, 16, 32 or 48."""
    bytes_ = b.zext(load(b, pointer, INT8), INTS)
    return [b.shl(b.and_(b.lshr(bytes_, alike(INT32, 2 * number)), alike(INT32, 3)), alike(INT32, 4)) for number in range(4)]


def _bytes(b: Builder, pointer: Value, *, signed: bool = False) -> Value:
    """Eight of them as fp32."""
    values = load(b, pointer, INT8)
    return _floats(b, b.sext(values, INTS) if signed else b.zext(values, INTS))


def _fill(b: Builder, target: Value, number: Value, values: Value) -> None:
    b.store(values, b.bitcast(b.gep(target, [number]), FLOATS.as_pointer()), align=4)


def _in_eights(b: Builder, count: Value, eight: Callable[[Value], None], one: Callable[[Value], None]) -> None:
    loop(b, loop(b, INT64(0), count, LANES, eight), count, 1, one)


def _int4() -> Shared:
    """[step of scales fp32][step of minima fp32][scale uint8 for each 32 …][minimum uint8 for each 32 …][16 bytes for each 32 …]"""

    def planes(b: Builder, row: Value, width: Value) -> tuple[Value, Value, Value]:
        groups = b.lshr(width, INT64(5))
        scales = b.gep(row, [INT64(8)])
        minima = b.gep(scales, [groups])
        return scales, minima, b.gep(minima, [groups])

    def integers(b: Builder, row: Value, width: Value, column: Value) -> list[Value]:
        return _nibbles(b, b.gep(planes(b, row, width)[2], [b.lshr(column, INT64(1))]))

    def parameters(b: Builder, spot: Spot, scales: Value, minima: Value) -> None:
        first, count = b.lshr(spot.column, INT64(5)), b.lshr(spot.columns, INT64(5))
        for target, plane, step_at in ((scales, 0, 0), (minima, 1, 4)):
            step = scalar(b, at(b, spot.row, step_at, FLOAT))
            source = b.gep(planes(b, spot.row, spot.width)[plane], [first])

            def eight(i: Value, target: Value = target, source: Value = source, step: Value = step) -> None:
                _fill(b, target, i, b.fmul(_bytes(b, b.gep(source, [i])), splat(b, step)))

            def one(i: Value, target: Value = target, source: Value = source, step: Value = step) -> None:
                byte = b.uitofp(b.zext(scalar(b, b.gep(source, [i])), INT32), FLOAT)
                b.store(b.fmul(byte, step), b.gep(target, [i]))

            _in_eights(b, count, eight, one)

    return Shared(GROUP, integers, parameters, minimum=True)


@dataclass(frozen=True, slots=True)
class _Ggml:
    """Planes of q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k and q6_k, as schemes/ggml.py draws them."""

    bits: int
    super_block: bool
    minimum: bool

    def shared(self) -> Shared:
        """Where there is no minimum the integers are less by half their range: that is one too."""
        return Shared(self._share, self._integers, self._parameters, self.bits < 8)

    @property
    def _share(self) -> int:
        return 16 if self.bits == 6 else GROUP

    def _planes(self, b: Builder, row: Value, width: Value) -> dict[str, Value]:
        groups, blocks = b.udiv(width, INT64(self._share)), b.lshr(width, INT64(8))
        halves = b.mul(blocks if self.super_block else groups, INT64(2))
        sizes = {"step": halves}
        if self.minimum:
            sizes["minimum step"] = halves
        if self.super_block:
            sizes["scales"] = groups
        if self.super_block and self.minimum:
            sizes["minima"] = groups
        sizes["integers"] = width if self.bits == 8 else b.lshr(width, INT64(1))
        sizes["high"] = INT64(0)
        planes = {}
        for name, nbytes in sizes.items():
            planes[name], row = row, b.gep(row, [nbytes])
        return planes

    def _integers(self, b: Builder, row: Value, width: Value, column: Value) -> list[Value]:
        planes = self._planes(b, row, width)
        half = b.lshr(column, INT64(1))
        if self.bits == 8:
            return [b.sext(load(b, b.gep(planes["integers"], [b.add(column, INT64(LANES * n))]), INT8), INTS) for n in range(4)]
        low = _nibbles(b, b.gep(planes["integers"], [half]))
        if self.bits == 4:
            return low
        if self.bits == 5:
            high = _fifth_bits(b, b.gep(planes["high"], [b.lshr(column, INT64(3))]))
        else:
            high = _high_pairs(b, b.gep(planes["high"], [b.lshr(half, INT64(1))]))
        return [b.or_(one, other) for one, other in zip(low, high, strict=True)]

    def _parameters(self, b: Builder, spot: Spot, scales: Value, minima: Value) -> None:
        planes = self._planes(b, spot.row, spot.width)
        first, count = b.udiv(spot.column, INT64(self._share)), b.udiv(spot.columns, INT64(self._share))
        middle = float(1 << (self.bits - 1))

        def halves(plane: str, number: Value) -> Value:
            return at(b, planes[plane], b.mul(number, INT64(2)), HALF)

        def eight(i: Value) -> None:
            number = b.add(first, i)
            if self.super_block:  # eight groups are of one block
                block = b.udiv(b.mul(number, INT64(self._share)), INT64(256))
                step = splat(b, b.fpext(scalar(b, halves("step", block)), FLOAT))
                scale = b.fmul(_bytes(b, b.gep(planes["scales"], [number]), signed=self.bits == 6), step)
            else:
                scale = b.fpext(load(b, halves("step", number), HALF), FLOATS)
            _fill(b, scales, i, scale)
            if not self.minimum:
                least = b.fmul(scale, alike(FLOAT, middle))
            elif self.super_block:
                step = splat(b, b.fpext(scalar(b, halves("minimum step", block)), FLOAT))
                least = b.fmul(_bytes(b, b.gep(planes["minima"], [number])), step)
            else:
                least = b.fneg(b.fpext(load(b, halves("minimum step", number), HALF), FLOATS))
            if self.bits < 8:
                _fill(b, minima, i, least)

        def one(i: Value) -> None:  # of a super-block there are always eight
            number = b.add(first, i)
            scale = b.fpext(scalar(b, halves("step", number)), FLOAT)
            b.store(scale, b.gep(scales, [i]))
            least = b.fmul(scale, FLOAT(middle))
            if self.minimum:
                least = b.fneg(b.fpext(scalar(b, halves("minimum step", number)), FLOAT))
            if self.bits < 8:
                b.store(least, b.gep(minima, [i]))

        if self.super_block:
            loop(b, INT64(0), count, LANES, eight)
        else:
            _in_eights(b, count, eight, one)


#: By the scheme's name. int8 is read as it lies (microkernel.py).
CODINGS: Final[Mapping[str, Decode | Shared]] = {
    "packed": unpack,
    "int4": _int4(),
    "q4_0": _Ggml(4, super_block=False, minimum=False).shared(),
    "q4_1": _Ggml(4, super_block=False, minimum=True).shared(),
    "q5_0": _Ggml(5, super_block=False, minimum=False).shared(),
    "q5_1": _Ggml(5, super_block=False, minimum=True).shared(),
    "q8_0": _Ggml(8, super_block=False, minimum=False).shared(),
    "q4_k": _Ggml(4, super_block=True, minimum=True).shared(),
    "q5_k": _Ggml(5, super_block=True, minimum=True).shared(),
    "q6_k": _Ggml(6, super_block=True, minimum=False).shared(),
}
