"""How a few columns of a row of weights become fp32: machine code for each scheme, as LLVM's intermediate code.

The bytes are those that the scheme of the same name draws (potatod/schemes). Only processes that end import this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from ..native import LANES
from .emit import FLOAT, FLOATS, HALF, INT8, INT16, INT32, INT64, INTS, alike, at, load, loop, scalar, splat
from .spot import GROUP, Decode, Spot
from .unpacking import unpack


@dataclass(frozen=True, slots=True)
class Shared:
    """A scheme whose weights are integers of four to eight bits, and of each GROUP columns of a row a scale of its own, and perhaps a minimum:
    weight = integer · scale − minimum. They become fp32."""

    #: ``integers(b, row, width, column)``: four vectors, of the 32 columns from ``column`` on
    integers: Callable[[Builder, Value, Value, Value], list[Value]]
    #: ``parameters(b, spot, scales, minima)``: fills both, fp32 for each of the spot's groups; whole eights at a time, or one by one
    parameters: Callable[[Builder, Spot, Value, Value], None]
    minimum: bool

    def values(self, b: Builder, row: Value, width: Value, column: Value, scales: Value, first: Value) -> list[Value]:
        """integer · scale of 32 columns; ``first``: the first column that ``scales`` are of."""
        known = splat(b, b.load(b.gep(scales, [b.udiv(b.sub(column, first), INT64(GROUP))])))
        return [b.fmul(_floats(b, each), known) for each in self.integers(b, row, width, column)]


#: ``halves(b, row, width, column)``: where weights of four bits lie from ``column`` on, 16 bytes for each 32 columns
HalvesAt = Callable[[Builder, Value, Value, Value], Value]
#: ``fill(b, row, width, first, count, target)``: so many of a row's numbers from the first on
Fill = Callable[[Builder, Value, Value, Value, Value, Value], None]


@dataclass(frozen=True, slots=True)
class Integers:
    """A scheme whose weights are small integers times one step of many columns: weight = integer · scale · step − minimum, and integer · scale is an
    integer of at most 13 bits with its sign. They are multiplied as integers with rows that are rounded to 16 bits (integer_walk.py)."""

    #: ``words(b, row, width, column)``: the integers of 32 columns, two vectors of sixteen
    words: Callable[[Builder, Value, Value, Value], list[Value]]
    #: ``step(b, row, width, column)``: fp32; the same for at least STEP columns from a multiple of that on
    step: Callable[[Builder, Value, Value, Value], Value]
    #: columns that share a scale, 16 or 32, and what fills in theirs, 16 bits each; None where there are none
    share: int = GROUP
    scales: Fill | None = None
    #: fills in fp32 of each GROUP columns; None where there are none
    minima: Fill | None = None
    #: whether a row has one step
    one_step: bool = False
    #: where weights are of four bits
    halves: HalvesAt | None = None


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


def _fifth_bit_words(b: Builder, pointer: Value) -> list[Value]:
    """As _fifth_bits(), two vectors of sixteen."""
    bits = ir.Constant(ir.VectorType(INT16, 16), [1 << lane if lane < 15 else -(1 << 15) for lane in range(16)])
    vectors = []
    for half in (0, 1):
        word = splat(b, scalar(b, at(b, pointer, 2 * half, INT16)), 16)
        there = b.icmp_signed("!=", b.and_(word, bits), alike(INT16, 0, 16))
        vectors.append(b.select(there, alike(INT16, 16, 16), alike(INT16, 0, 16)))
    return vectors


def _high_pair_words(b: Builder, pointer: Value) -> list[Value]:
    """8 bytes: of byte i the lowest two bits belong to column i, the next two to column 8 + i, … Two vectors of sixteen, 0, 16, 32 or 48 each."""
    kind = ir.VectorType(INT16, LANES)
    pairs = b.zext(load(b, pointer, INT8), kind)
    eights = [b.shl(b.and_(b.lshr(pairs, alike(INT16, 2 * number)), alike(INT16, 3)), alike(INT16, 4)) for number in range(4)]
    order = ir.Constant(ir.VectorType(INT32, 16), list(range(16)))
    return [b.shuffle_vector(one, other, order) for one, other in (eights[:2], eights[2:])]


def _bytes(b: Builder, pointer: Value) -> Value:
    """Eight of them as fp32."""
    return _floats(b, b.zext(load(b, pointer, INT8), INTS))


def _fill(b: Builder, target: Value, number: Value, values: Value) -> None:
    b.store(values, b.bitcast(b.gep(target, [number]), FLOATS.as_pointer()), align=4)


def _in_eights(b: Builder, count: Value, eight: Callable[[Value], None], one: Callable[[Value], None]) -> None:
    loop(b, loop(b, INT64(0), count, LANES, eight), count, 1, one)


def _words(b: Builder, pointer: Value, *, signed: bool = False) -> Value:
    """Sixteen bytes as 16 bits each."""
    values = load(b, pointer, INT8, 16)
    wide = ir.VectorType(INT16, 16)
    return b.sext(values, wide) if signed else b.zext(values, wide)


def _nibble_words(b: Builder, pointer: Value) -> list[Value]:
    """As _nibbles(), two vectors of sixteen."""
    both = _words(b, pointer)
    return [b.and_(both, alike(INT16, 15, 16)), b.lshr(both, alike(INT16, 4, 16))]


def _fill_words(b: Builder, source: Value, target: Value, count: Value, *, signed: bool = False) -> None:
    """``count`` bytes as 16 bits each."""

    def several(width: int, i: Value) -> None:
        values, wide = load(b, b.gep(source, [i]), INT8, width), ir.VectorType(INT16, width)
        b.store(b.sext(values, wide) if signed else b.zext(values, wide), b.bitcast(b.gep(target, [i]), wide.as_pointer()), align=2)

    def one(i: Value) -> None:
        byte = scalar(b, b.gep(source, [i]))
        b.store(b.sext(byte, INT16) if signed else b.zext(byte, INT16), b.gep(target, [i]))

    left: Value = INT64(0)
    for width in (2 * LANES, LANES):
        left = loop(b, left, count, width, partial(several, width))
    loop(b, left, count, 1, one)


def _int8() -> Integers:
    """[scale fp32][int8 …]"""

    def words(b: Builder, row: Value, width: Value, column: Value) -> list[Value]:
        at_column = b.gep(row, [b.add(column, INT64(4))])
        return [_words(b, b.gep(at_column, [INT64(16 * half)]), signed=True) for half in (0, 1)]

    return Integers(words, lambda b, row, width, column: scalar(b, at(b, row, 0, FLOAT)), one_step=True)


def _int4() -> Integers:
    """[step of scales fp32][step of minima fp32][scale uint8 for each 32 …][minimum uint8 for each 32 …][16 bytes for each 32 …]"""

    def planes(b: Builder, row: Value, width: Value) -> tuple[Value, Value, Value]:
        groups = b.lshr(width, INT64(5))
        scales = b.gep(row, [INT64(8)])
        minima = b.gep(scales, [groups])
        return scales, minima, b.gep(minima, [groups])

    def halves(b: Builder, row: Value, width: Value, column: Value) -> Value:
        return b.gep(planes(b, row, width)[2], [b.lshr(column, INT64(1))])

    def words(b: Builder, row: Value, width: Value, column: Value) -> list[Value]:
        return _nibble_words(b, halves(b, row, width, column))

    def scales(b: Builder, row: Value, width: Value, first: Value, count: Value, target: Value) -> None:
        _fill_words(b, b.gep(planes(b, row, width)[0], [first]), target, count)

    def minima(b: Builder, row: Value, width: Value, first: Value, count: Value, target: Value) -> None:
        step = scalar(b, at(b, row, 4, FLOAT))
        source = b.gep(planes(b, row, width)[1], [first])

        def eight(i: Value) -> None:
            _fill(b, target, i, b.fmul(_bytes(b, b.gep(source, [i])), splat(b, step)))

        def one(i: Value) -> None:
            byte = b.uitofp(b.zext(scalar(b, b.gep(source, [i])), INT32), FLOAT)
            b.store(b.fmul(byte, step), b.gep(target, [i]))

        _in_eights(b, count, eight, one)

    return Integers(words, lambda b, row, width, column: scalar(b, at(b, row, 0, FLOAT)), GROUP, scales, minima, one_step=True, halves=halves)


@dataclass(frozen=True, slots=True)
class _Block:
    """Planes of q4_0, q4_1, q5_0, q5_1 and q8_0, as schemes/ggml.py draws them: a scale of fp16 for each 32 columns."""

    bits: int
    minimum: bool

    def shared(self) -> Shared:
        """Where there is no minimum the integers are less by half their range: that is one too."""
        return Shared(self._integers, self._parameters, self.bits < 8)

    def _planes(self, b: Builder, row: Value, width: Value) -> dict[str, Value]:
        halves = b.lshr(width, INT64(4))
        sizes = {"scale": halves, **({"minimum": halves} if self.minimum else {}), "integers": width if self.bits == 8 else b.lshr(width, INT64(1))}
        return _after_each_other(b, row, sizes)

    def _integers(self, b: Builder, row: Value, width: Value, column: Value) -> list[Value]:
        planes = self._planes(b, row, width)
        if self.bits == 8:
            return [b.sext(load(b, b.gep(planes["integers"], [b.add(column, INT64(LANES * n))]), INT8), INTS) for n in range(4)]
        low = _nibbles(b, b.gep(planes["integers"], [b.lshr(column, INT64(1))]))
        if self.bits == 4:
            return low
        high = _fifth_bits(b, b.gep(planes["high"], [b.lshr(column, INT64(3))]))
        return [b.or_(one, other) for one, other in zip(low, high, strict=True)]

    def _parameters(self, b: Builder, spot: Spot, scales: Value, minima: Value) -> None:
        planes = self._planes(b, spot.row, spot.width)
        first, count = (b.udiv(each, INT64(GROUP)) for each in (spot.column, spot.columns))
        middle = float(1 << (self.bits - 1))

        def halves(plane: str, i: Value) -> Value:
            return at(b, planes[plane], b.mul(b.add(first, i), INT64(2)), HALF)

        def eight(i: Value) -> None:
            scale = b.fpext(load(b, halves("scale", i), HALF), FLOATS)
            _fill(b, scales, i, scale)
            if self.minimum:
                _fill(b, minima, i, b.fneg(b.fpext(load(b, halves("minimum", i), HALF), FLOATS)))
            elif self.bits < 8:
                _fill(b, minima, i, b.fmul(scale, alike(FLOAT, middle)))

        def one(i: Value) -> None:
            scale = b.fpext(scalar(b, halves("scale", i)), FLOAT)
            b.store(scale, b.gep(scales, [i]))
            if self.minimum:
                b.store(b.fneg(b.fpext(scalar(b, halves("minimum", i)), FLOAT)), b.gep(minima, [i]))
            elif self.bits < 8:
                b.store(b.fmul(scale, FLOAT(middle)), b.gep(minima, [i]))

        _in_eights(b, count, eight, one)


def _after_each_other(b: Builder, row: Value, sizes: Mapping[str, Value]) -> dict[str, Value]:
    """Where planes of so many bytes begin; and ``high``, behind the last of them."""
    planes = {}
    for name, nbytes in sizes.items():
        planes[name], row = row, b.gep(row, [nbytes])
    return planes | {"high": row}


@dataclass(frozen=True, slots=True)
class _SuperBlock:
    """Planes of q4_k, q5_k and q6_k: 256 columns share a step of fp16, and 32 (q6_k: 16) a scale that is a byte of such steps."""

    bits: int

    def integers(self) -> Integers:
        minima, halves = None if self.bits == 6 else self._minima, self._halves if self.bits == 4 else None
        return Integers(self._words, self._step, self._share, self._scales, minima, halves=halves)

    @property
    def _share(self) -> int:
        return 16 if self.bits == 6 else GROUP

    def _planes(self, b: Builder, row: Value, width: Value) -> dict[str, Value]:
        groups, halves = b.udiv(width, INT64(self._share)), b.lshr(width, INT64(7))
        of_minima = self.bits != 6
        sizes = {
            "step": halves, **({"minimum step": halves} if of_minima else {}), "scales": groups, **({"minima": groups} if of_minima else {}),
            "integers": b.lshr(width, INT64(1)),
        }  # fmt: skip
        return _after_each_other(b, row, sizes)

    def _step(self, b: Builder, row: Value, width: Value, column: Value) -> Value:
        return b.fpext(scalar(b, at(b, row, b.mul(b.lshr(column, INT64(8)), INT64(2)), HALF)), FLOAT)

    def _halves(self, b: Builder, row: Value, width: Value, column: Value) -> Value:
        return b.gep(self._planes(b, row, width)["integers"], [b.lshr(column, INT64(1))])

    def _words(self, b: Builder, row: Value, width: Value, column: Value) -> list[Value]:
        planes = self._planes(b, row, width)
        half = b.lshr(column, INT64(1))
        low = _nibble_words(b, b.gep(planes["integers"], [half]))
        if self.bits == 4:
            return low
        if self.bits == 5:
            high = _fifth_bit_words(b, b.gep(planes["high"], [b.lshr(column, INT64(3))]))
            return [b.or_(one, other) for one, other in zip(low, high, strict=True)]
        high = _high_pair_words(b, b.gep(planes["high"], [b.lshr(half, INT64(1))]))
        return [b.sub(b.or_(one, other), alike(INT16, 32, 16)) for one, other in zip(low, high, strict=True)]

    def _scales(self, b: Builder, row: Value, width: Value, first: Value, count: Value, target: Value) -> None:
        _fill_words(b, b.gep(self._planes(b, row, width)["scales"], [first]), target, count, signed=self.bits == 6)

    def _minima(self, b: Builder, row: Value, width: Value, first: Value, count: Value, target: Value) -> None:
        planes = self._planes(b, row, width)

        def eight(i: Value) -> None:  # of one block
            number = b.add(first, i)
            step = b.fpext(scalar(b, at(b, planes["minimum step"], b.mul(b.lshr(number, INT64(3)), INT64(2)), HALF)), FLOAT)
            _fill(b, target, i, b.fmul(_bytes(b, b.gep(planes["minima"], [number])), splat(b, step)))

        loop(b, INT64(0), count, LANES, eight)


#: By the scheme's name.
CODINGS: Final[Mapping[str, Decode | Shared | Integers]] = {
    "packed": unpack,
    "int8": _int8(),
    "int4": _int4(),
    "q4_0": _Block(4, minimum=False).shared(),
    "q4_1": _Block(4, minimum=True).shared(),
    "q5_0": _Block(5, minimum=False).shared(),
    "q5_1": _Block(5, minimum=True).shared(),
    "q8_0": _Block(8, minimum=False).shared(),
    "q4_k": _SuperBlock(4).integers(),
    "q5_k": _SuperBlock(5).integers(),
    "q6_k": _SuperBlock(6).integers(),
}
