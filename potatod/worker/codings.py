"""How a few columns of a row of weights become fp32: machine code for each scheme, as LLVM's intermediate code.

The bytes are those that the scheme of the same name draws (potatod/schemes). Only processes that end import this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from . import emit
from .emit import FLOAT, FLOATS, HALF, INT8, INT16, INT32, INT64, INTS, alike, at, load, loop, scalar, splat
from .native import LANES

#: Columns that are decoded at a time; fewer that would be left are decoded with the last ones.
PANEL: Final = 512
_FEW: Final = 256
#: Room that the decoded columns of a row take.
ROOM: Final = PANEL + _FEW
#: Columns that share a scale, in every scheme of four to eight bits.
GROUP: Final = 32


@dataclass(frozen=True, slots=True)
class Spot:
    """What is to be decoded: ``columns`` of a row from ``column`` on."""

    #: the row's record
    row: Value
    #: the band that it lies in, and its bytes
    band: Value
    band_bytes: Value
    column: Value
    columns: Value
    #: of the whole row
    width: Value
    #: fp32, ``columns`` long
    out: Value
    #: two INT64 that are the row's own from its first columns to its last
    state: Value


Decode = Callable[[Builder, Spot], None]


def _floats(b: Builder, integers: Value) -> Value:
    return b.sitofp(integers, FLOATS)


def _put(b: Builder, spot: Spot, column: Value, values: Value) -> None:
    """``column``: from the first that is decoded."""
    b.store(values, b.bitcast(b.gep(spot.out, [column]), FLOATS.as_pointer()), align=4)


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


def _half(b: Builder, pointer: Value, index: Value) -> Value:
    """The index-th fp16 from ``pointer`` on, as fp32."""
    return b.fpext(scalar(b, at(b, pointer, b.mul(index, INT64(2)), HALF)), FLOAT)


def _byte(b: Builder, pointer: Value, index: Value, *, signed: bool = False) -> Value:
    value = scalar(b, b.gep(pointer, [index]))
    return b.sitofp(b.sext(value, INT32) if signed else b.zext(value, INT32), FLOAT)


def _int4(b: Builder, spot: Spot) -> None:
    """[step of scales fp32][step of minima fp32][scale uint8 for each 32 …][minimum uint8 for each 32 …][16 bytes for each 32 …]"""
    groups = b.lshr(spot.width, INT64(5))
    steps = [scalar(b, at(b, spot.row, 4 * number, FLOAT)) for number in (0, 1)]
    scales = b.gep(spot.row, [INT64(8)])
    minima = b.gep(scales, [groups])
    nibbles = b.gep(minima, [groups])
    first = b.lshr(spot.column, INT64(5))

    def group(i: Value) -> None:
        number = b.add(first, b.lshr(i, INT64(5)))
        scale = splat(b, b.fmul(_byte(b, scales, number), steps[0]))
        minimum = splat(b, b.fmul(_byte(b, minima, number), steps[1]))
        for place, values in enumerate(_nibbles(b, b.gep(nibbles, [b.mul(number, INT64(16))]))):
            _put(b, spot, b.add(i, INT64(LANES * place)), b.fsub(b.fmul(_floats(b, values), scale), minimum))

    loop(b, INT64(0), spot.columns, GROUP, group)


def _of_ggml(bits: int, super_block: bool, minimum: bool) -> Decode:
    """Planes of q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k and q6_k, as schemes/ggml.py draws them."""

    def decode(b: Builder, spot: Spot) -> None:
        share = 16 if bits == 6 else GROUP
        groups, blocks = b.udiv(spot.width, INT64(share)), b.lshr(spot.width, INT64(8))
        where = spot.row

        def take(nbytes: Value) -> Value:
            nonlocal where
            taken, where = where, b.gep(where, [nbytes])
            return taken

        steps = take(b.mul(blocks if super_block else groups, INT64(2)))
        minima_steps = take(b.mul(blocks if super_block else groups, INT64(2))) if minimum else None
        scales = take(groups) if super_block else None
        minima = take(groups) if super_block and minimum else None
        values_at = take(spot.width if bits == 8 else b.lshr(spot.width, INT64(1)))
        high_at = where

        def parameters(column: Value) -> tuple[Value, Value | None]:
            number, block = b.udiv(column, INT64(share)), b.lshr(column, INT64(8))
            step = _half(b, steps, block if super_block else number)
            scale = step if scales is None else b.fmul(step, _byte(b, scales, number, signed=bits == 6))
            least = None
            if minima_steps is not None:
                least = _half(b, minima_steps, block if super_block else number)
                least = least if minima is None else b.fneg(b.fmul(least, _byte(b, minima, number)))
            return splat(b, scale), None if least is None else splat(b, least)

        def group(i: Value) -> None:
            column = b.add(spot.column, i)
            half = b.lshr(column, INT64(1))
            if bits == 8:
                vectors = [b.sext(load(b, b.gep(values_at, [b.add(column, INT64(LANES * n))]), INT8), INTS) for n in range(4)]
            else:
                vectors = _nibbles(b, b.gep(values_at, [half]))
            if bits == 5:
                vectors = [b.or_(one, other) for one, other in zip(vectors, _fifth_bits(b, b.gep(high_at, [b.lshr(column, INT64(3))])), strict=True)]
            if bits == 6:
                vectors = [b.or_(one, other) for one, other in zip(vectors, _high_pairs(b, b.gep(high_at, [b.lshr(half, INT64(1))])), strict=True)]
            if bits < 8 and not minimum:
                vectors = [b.sub(each, alike(INT32, 1 << (bits - 1))) for each in vectors]
            known = [parameters(column), parameters(b.add(column, INT64(16)))] if bits == 6 else [parameters(column)]
            for place, values in enumerate(vectors):
                scale, least = known[place // 2 if bits == 6 else 0]
                product = b.fmul(_floats(b, values), scale)
                _put(b, spot, b.add(i, INT64(LANES * place)), product if least is None else b.fadd(product, least))

        loop(b, INT64(0), spot.columns, GROUP, group)

    return decode


#: Of a row of `packed`: bytes that it begins with, words that hold 16 weights, columns of a block.
_HEAD: Final = 8
_WORDS: Final = 11
_BLOCK: Final = 256


def _packed(b: Builder, spot: Spot) -> None:
    """See schemes/packed.py, which draws it. The window's own weights first, then those one window lower, then the few that lie elsewhere."""
    base = b.shl(b.zext(scalar(b, b.gep(spot.row, [INT64(7)])), INT16), INT16(7))
    words_at = b.gep(spot.row, [b.add(INT64(_HEAD), b.mul(b.lshr(spot.column, INT64(4)), INT64(2 * _WORDS)))])

    def words_of(i: Value) -> Value:
        """Where the words of the block lie whose first column is the i-th that is decoded."""
        return b.gep(words_at, [b.mul(b.lshr(i, INT64(4)), INT64(2 * _WORDS))])

    def block(i: Value) -> None:
        words = [load(b, at(b, words_of(i), 32 * n, INT16), INT16, 16) for n in range(_WORDS)]
        for segment, bits in enumerate(_codes(b, words, 16)):
            value = b.add(bits, splat(b, base, 16))
            for half in (0, 1):
                _put(b, spot, b.add(i, INT64(16 * segment + LANES * half)), _upper_halves(b, value, half))

    left = loop(b, INT64(0), spot.columns, _BLOCK, block)
    lanes = b.lshr(b.sub(spot.columns, left), INT64(4))

    def some(i: Value) -> None:
        """Eight lanes of the last block from i on; those that it has not come after it and are written over, or left."""
        words = [load(b, at(b, words_of(left), b.mul(b.add(b.mul(lanes, INT64(n)), i), INT64(2)), INT16), INT16) for n in range(_WORDS)]
        for segment, bits in enumerate(_codes(b, words, LANES)):
            floats = b.bitcast(b.shl(b.zext(b.add(bits, splat(b, base)), INTS), alike(INT32, 16)), FLOATS)
            _put(b, spot, b.add(left, b.add(b.mul(lanes, INT64(segment)), i)), floats)

    with b.if_then(b.icmp_signed(">", lanes, INT64(0))):
        several = b.icmp_signed(">", lanes, INT64(LANES))
        some(INT64(0))
        with b.if_then(several):
            some(b.sub(lanes, INT64(LANES)))
    _lower(b, spot)
    _elsewhere(b, spot)


def _codes(b: Builder, words: list[Value], lanes: int) -> Iterator[Value]:
    """Sign, place in the window and mantissa of 16 weights in each lane, where bf16 has them."""
    for word in words:
        yield b.and_(word, alike(INT16, -31745, lanes))  # 0x83ff: sign, three bits of exponent, mantissa
    for k in range(5):
        low = b.and_(b.lshr(words[2 * k], alike(INT16, 10, lanes)), alike(INT16, 31, lanes))
        middle = b.and_(b.lshr(words[2 * k + 1], alike(INT16, 5, lanes)), alike(INT16, 0x3E0, lanes))
        sign = b.and_(b.shl(words[10], alike(INT16, 5 - k, lanes)), alike(INT16, -32768, lanes))
        yield b.or_(b.or_(low, middle), sign)


def _upper_halves(b: Builder, values: Value, half: int) -> Value:
    """Eight of 16 bf16 as fp32, with nought below: what one instruction puts there."""
    lanes = [lane for start in (4 * half, 8 + 4 * half) for lane in range(start, start + 4)]
    mask = [index for lane in lanes for index in (16, lane)]
    noughts = ir.Constant(ir.VectorType(INT16, 16), [0] * 16)
    return b.bitcast(b.shuffle_vector(values, noughts, ir.Constant(ir.VectorType(INT32, 16), mask)), FLOATS)


def _lower(b: Builder, spot: Spot) -> None:
    """Gaps between weights one window lower: a byte each; 255 only goes on. Neither list nor row is left, whatever the bytes say."""
    place, reached = (b.gep(spot.state, [INT64(n)]) for n in (0, 1))
    start = b.zext(scalar(b, at(b, spot.row, 0, INT32)), INT64)
    count = b.zext(scalar(b, at(b, spot.row, 4, INT16)), INT64)
    stop = b.add(start, count)
    stop = b.select(b.icmp_unsigned("<", stop, spot.band_bytes), stop, spot.band_bytes)
    begins = b.icmp_signed("==", spot.column, INT64(0))
    b.store(b.select(begins, start, b.load(place)), place)
    b.store(b.select(begins, INT64(-1), b.load(reached)), reached)
    end = b.add(spot.column, spot.columns)

    head, inside, fix, after = (b.append_basic_block() for _ in range(4))
    before = b.block
    first, at_first = b.load(place), b.load(reached)
    b.branch(head)
    b.position_at_end(head)
    i, column = b.phi(INT64), b.phi(INT64)
    b.cbranch(b.icmp_unsigned("<", i, stop), inside, after)
    b.position_at_end(inside)
    gap = b.zext(scalar(b, b.gep(spot.band, [i])), INT64)
    only_on = b.icmp_signed("==", gap, INT64(255))
    following = b.add(b.add(column, gap), b.select(only_on, INT64(0), INT64(1)))
    b.cbranch(b.icmp_signed("<", following, end), fix, after)
    b.position_at_end(fix)
    weight = b.bitcast(b.gep(spot.out, [b.sub(following, spot.column)]), INT32.as_pointer())  # what was reached lies before `column`
    b.store(b.sub(b.load(weight), b.select(only_on, INT32(0), INT32(8 << 23))), weight)
    emit.flows(i, (before, first), (fix, b.add(i, INT64(1))))
    emit.flows(column, (before, at_first), (fix, following))
    b.branch(head)
    b.position_at_end(after)
    b.store(i, place)
    b.store(column, reached)


def _elsewhere(b: Builder, spot: Spot) -> None:
    """[column uint16][bf16] of each weight that no window holds, behind the gaps."""
    start = b.add(b.zext(scalar(b, at(b, spot.row, 0, INT32)), INT64), b.zext(scalar(b, at(b, spot.row, 4, INT16)), INT64))
    count = b.zext(scalar(b, at(b, spot.row, 6, INT8)), INT64)
    stop = b.add(start, b.mul(count, INT64(4)))
    stop = b.select(b.icmp_unsigned("<=", stop, spot.band_bytes), stop, INT64(0))

    def one(i: Value) -> None:
        column = b.sub(b.zext(scalar(b, at(b, spot.band, i, INT16)), INT64), spot.column)
        here = b.icmp_unsigned("<", column, spot.columns)
        with b.if_then(here):
            bits = b.shl(b.zext(scalar(b, at(b, spot.band, b.add(i, INT64(2)), INT16)), INT32), INT32(16))
            b.store(bits, b.bitcast(b.gep(spot.out, [column]), INT32.as_pointer()))

    loop(b, start, stop, 4, one)


#: By the scheme's name. int8 is read as it lies (microkernel.py).
CODINGS: Final[Mapping[str, Decode]] = {
    "int4": _int4,
    "packed": _packed,
    "q4_0": _of_ggml(4, super_block=False, minimum=False),
    "q4_1": _of_ggml(4, super_block=False, minimum=True),
    "q5_0": _of_ggml(5, super_block=False, minimum=False),
    "q5_1": _of_ggml(5, super_block=False, minimum=True),
    "q8_0": _of_ggml(8, super_block=False, minimum=False),
    "q4_k": _of_ggml(4, super_block=True, minimum=True),
    "q5_k": _of_ggml(5, super_block=True, minimum=True),
    "q6_k": _of_ggml(6, super_block=True, minimum=False),
}
