"""How `packed` weights become fp32, or bf16 again: see schemes/packed.py, which draws their bytes. LLVM's intermediate code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from ..native import LANES
from . import emit
from .emit import FLOATS, INT8, INT16, INT32, INT64, INTS, alike, at, load, loop, scalar, splat
from .spot import Spot, put

#: Of a row of `packed`: bytes that it begins with, words that hold 16 weights, columns of a block.
_HEAD: Final = 8
_WORDS: Final = 11
_BLOCK: Final = 256


def unpack(b: Builder, spot: Spot) -> None:
    """The window's own weights first, then those one window lower, then the few that lie elsewhere."""
    base = b.shl(b.zext(scalar(b, b.gep(spot.row, [INT64(7)])), INT16), INT16(7))
    words_at = b.gep(spot.row, [b.add(INT64(_HEAD), b.mul(b.lshr(spot.column, INT64(4)), INT64(2 * _WORDS)))])

    def words_of(i: Value) -> Value:
        """Where the words of the block lie whose first column is the i-th that is decoded."""
        return b.gep(words_at, [b.mul(b.lshr(i, INT64(4)), INT64(2 * _WORDS))])

    def block(i: Value) -> None:
        words = [load(b, at(b, words_of(i), 32 * n, INT16), INT16, 16) for n in range(_WORDS)]
        for segment, bits in enumerate(_codes(b, words, 16)):
            value, column = b.add(bits, splat(b, base, 16)), b.add(i, INT64(16 * segment))
            if spot.narrow:
                put(b, spot, column, _in_order(b, value))
                continue
            for half in (0, 1):
                put(b, spot, b.add(column, INT64(LANES * half)), _upper_halves(b, value, half))

    left = loop(b, INT64(0), spot.columns, _BLOCK, block)
    lanes = b.lshr(b.sub(spot.columns, left), INT64(4))

    def some(i: Value) -> None:
        """Eight lanes of the last block from i on; those that it has not come after it and are written over, or left."""
        words = [load(b, at(b, words_of(left), b.mul(b.add(b.mul(lanes, INT64(n)), i), INT64(2)), INT16), INT16) for n in range(_WORDS)]
        for segment, bits in enumerate(_codes(b, words, LANES)):
            value = b.add(bits, splat(b, base))
            if not spot.narrow:
                value = b.bitcast(b.shl(b.zext(value, INTS), alike(INT32, 16)), FLOATS)
            put(b, spot, b.add(left, b.add(b.mul(lanes, INT64(segment)), i)), value)

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


def _lanes(half: int) -> list[int]:
    """Where eight columns of 16 lie."""
    return [lane for start in (4 * half, 8 + 4 * half) for lane in range(start, start + 4)]


def _in_order(b: Builder, values: Value) -> Value:
    return b.shuffle_vector(values, values, ir.Constant(ir.VectorType(INT32, 16), _lanes(0) + _lanes(1)))


def _upper_halves(b: Builder, values: Value, half: int) -> Value:
    """Eight of 16 bf16 as fp32, with nought below: what one instruction puts there."""
    mask = [index for lane in _lanes(half) for index in (16, lane)]
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
    kind, mantissa = (INT16, 7) if spot.narrow else (INT32, 23)
    weight = b.bitcast(b.gep(spot.out, [b.sub(following, spot.column)]), kind.as_pointer())  # what was reached lies before `column`
    b.store(b.sub(b.load(weight), b.select(only_on, kind(0), kind(8 << mantissa))), weight)
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
            bits = scalar(b, at(b, spot.band, b.add(i, INT64(2)), INT16))
            if not spot.narrow:
                bits = b.shl(b.zext(bits, INT32), INT32(16))
            b.store(bits, b.bitcast(b.gep(spot.out, [column]), bits.type.as_pointer()))

    loop(b, start, stop, 4, one)
