"""What microkernel.py and codings.py are written with: loops, loads and sums in LLVM's intermediate code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from ..native import LANES

FLOAT, HALF, VOID = ir.FloatType(), ir.HalfType(), ir.VoidType()
INT8, INT16, INT32, INT64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
BYTES: Final = INT8.as_pointer()
FLOATS: Final = ir.VectorType(FLOAT, LANES)
INTS: Final = ir.VectorType(INT32, LANES)

Range = tuple[Value, Value, int]


def each(b: Builder, rows: Range, outputs: Range, body: Callable[[Value, Value], None]) -> Value:
    """``body(row, output)`` while whole steps fit, row by row of the same outputs; the first output that was left."""
    return loop(b, *outputs, lambda output: loop(b, *rows, lambda row: body(row, output)))


def loop(b: Builder, start: Value, stop: Value, step: int, body: Callable[[Value], None]) -> Value:
    """While a whole step fits: ``body(i)``. The value that the next one would have had."""
    head, inside, after = (b.append_basic_block() for _ in range(3))
    before = b.block
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(INT64)
    following = b.add(i, INT64(step))
    b.cbranch(b.icmp_signed("<=", following, stop), inside, after)
    b.position_at_end(inside)
    body(i)
    flows(i, (before, start), (b.block, following))
    b.branch(head)
    b.position_at_end(after)
    return i


def fold(b: Builder, start: Value, stop: Value, step: int, begun: Value, body: Callable[[Value, Value], Value]) -> Value:
    """While a whole step fits: ``so_far = body(i, so_far)``, in a register; what it is in the end."""
    head, inside, after = (b.append_basic_block() for _ in range(3))
    before = b.block
    b.branch(head)
    b.position_at_end(head)
    i, so_far = b.phi(INT64), b.phi(begun.type)
    following = b.add(i, INT64(step))
    b.cbranch(b.icmp_signed("<=", following, stop), inside, after)
    b.position_at_end(inside)
    new = body(i, so_far)
    flows(i, (before, start), (b.block, following))
    flows(so_far, (before, begun), (b.block, new))
    b.branch(head)
    b.position_at_end(after)
    return so_far


def steps(b: Builder, start: Value, stop: Value, step: int, body: Callable[[Value], None]) -> None:
    """While ``i`` is below ``stop``: ``body(i)``; the last step may be a part of one."""

    def one(i: Value) -> Value:
        body(i)
        return b.add(i, INT64(step))

    walk(b, start, stop, one)


def walk(b: Builder, start: Value, stop: Value, body: Callable[[Value], Value]) -> None:
    """While ``i`` is below ``stop``: ``i = body(i)``."""
    head, inside, after = (b.append_basic_block() for _ in range(3))
    before = b.block
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(INT64)
    b.cbranch(b.icmp_signed("<", i, stop), inside, after)
    b.position_at_end(inside)
    following = body(i)
    flows(i, (before, start), (b.block, following))
    b.branch(head)
    b.position_at_end(after)


def flows(phi: ir.PhiInstr, *sources: tuple[ir.Block, Value]) -> None:
    for block, value in sources:
        phi.add_incoming(value, block)


def least(b: Builder, one: Value, other: Value) -> Value:
    return b.select(b.icmp_signed("<", one, other), one, other)


def at(b: Builder, pointer: Value, offset: Value | int, kind: ir.Type) -> Value:
    """A pointer to ``kind``, so many bytes behind ``pointer``, which is one to bytes."""
    return b.bitcast(b.gep(pointer, [INT64(offset) if isinstance(offset, int) else offset]), kind.as_pointer())


def load(b: Builder, pointer: Value, kind: ir.Type, count: int = LANES) -> Value:
    """So many of them, wherever they begin."""
    vector = ir.VectorType(kind, count)
    return b.load(b.bitcast(pointer, vector.as_pointer()), align=1)


def scalar(b: Builder, pointer: Value) -> Value:
    """Wherever it lies."""
    return b.load(pointer, align=1)


def splat(b: Builder, value: Value, count: int = LANES) -> Value:
    """``count`` times the same."""
    kind = ir.VectorType(value.type, count)
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, INT32(0))
    return b.shuffle_vector(one, one, ir.Constant(ir.VectorType(INT32, count), [0] * count))


def alike(kind: ir.Type, value: float, count: int = LANES) -> ir.Constant:
    """A vector of constants."""
    return ir.Constant(ir.VectorType(kind, count), [value] * count)


def joined(b: Builder, low: Value, high: Value) -> Value:
    """Two vectors of as many as one of twice as many."""
    lanes = list(range(2 * low.type.count))
    return b.shuffle_vector(low, high, ir.Constant(ir.VectorType(INT32, len(lanes)), lanes))


def upper_halves(b: Builder, floats: Value) -> Value:
    """Of LANES fp32 the upper half of each: bf16, rounded to nought."""
    return b.trunc(b.lshr(b.bitcast(floats, INTS), alike(INT32, 16)), ir.VectorType(INT16, LANES))


def largest(b: Builder, values: Value, more: Callable[[Value, Value], Value]) -> Value:
    """Of all lanes; ``more(one, other)``: whether the one is larger."""
    highest = b.extract_element(values, INT32(0))
    for lane in range(1, LANES):
        other = b.extract_element(values, INT32(lane))
        highest = b.select(more(other, highest), other, highest)
    return highest


def total(b: Builder, values: Value) -> Value:
    """Of all lanes, by halves."""
    width = values.type.count
    while width > 1:
        width //= 2
        low, high = (
            b.shuffle_vector(values, values, ir.Constant(ir.VectorType(INT32, width), list(range(first, first + width)))) for first in (0, width)
        )
        values = b.fadd(low, high)
    return b.extract_element(values, INT32(0))
