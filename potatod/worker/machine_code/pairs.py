"""Rows as AMX multiplies them: bf16, pairs of columns of SIDE rows beside each other. LLVM's intermediate code.

    [block of SIDE rows][pair of columns][row][2]

The last block has as many rows as are left, beside each other: one row alone lies as it always does.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from . import emit
from .amx import DEPTH, LINE, SIDE, transposed
from .emit import BYTES, FLOAT, INT16, INT32, INT64, VOID, alike, at, least, load, loop
from .walk import claims, given_in

#: Columns of a block that a thread claims.
_SPAN: Final = 512


def write_pairs(module: ir.Module, function: ir.Function) -> None:
    """The body of a function that lays out rows instead of multiplying with them: they are fp32 that bf16 holds."""
    lanes = ir.VectorType(INT32, SIDE)
    some = ir.VectorType(ir.IntType(1), SIDE)
    masked = ir.Function(module, ir.FunctionType(VOID, [lanes, lanes.as_pointer(), INT32, some]), f"llvm.masked.store.v{SIDE}i32.p0")
    b = Builder(function.append_basic_block())
    pairs = b.bitcast(b.alloca(ir.ArrayType(lanes, SIDE)), lanes.as_pointer())
    places, given = given_in(b, function)
    width, rows = given["width"], given["rows"]
    spans = b.udiv(b.add(width, INT64(_SPAN - 1)), INT64(_SPAN))
    blocks = b.udiv(b.add(rows, INT64(SIDE - 1)), INT64(SIDE))
    out = b.bitcast(given["out"], BYTES)

    def unit(number: Value) -> None:
        first = b.mul(b.udiv(number, spans), INT64(SIDE))
        column = b.mul(b.urem(number, spans), INT64(_SPAN))
        count = least(b, b.sub(rows, first), INT64(SIDE))
        stop = least(b, width, b.add(column, INT64(_SPAN)))
        block = b.gep(out, [b.mul(b.mul(first, width), INT64(2))])
        own = b.icmp_signed("<", _numbered(b), emit.splat(b, b.trunc(count, INT32), SIDE))

        def step(k: Value) -> None:
            def row(i: Value) -> None:
                x = b.gep(given["x"], [b.add(b.mul(b.add(first, i), width), k)])
                b.store(_narrow(b, x), b.gep(pairs, [i]))

            loop(b, INT64(0), count, 1, row)
            place = b.gep(block, [b.mul(b.mul(k, count), INT64(2))])
            with b.if_else(b.icmp_signed("==", count, INT64(1))) as (alone, several):
                with alone:
                    b.store(b.load(pairs), b.bitcast(place, lanes.as_pointer()), align=1)
                with several:
                    for pair, values in enumerate(transposed(b, [b.load(b.gep(pairs, [INT64(i)])) for i in range(SIDE)])):
                        there = at(b, place, b.mul(count, INT64(4 * pair)), lanes)
                        b.call(masked, [values, there, INT32(4), own])

        loop(b, column, stop, DEPTH, step)

    claims(b, places, given | {"outputs": b.mul(blocks, spans)}, lambda number, _count: unit(number))


def _numbered(b: Builder) -> Value:
    return ir.Constant(ir.VectorType(INT32, SIDE), list(range(SIDE)))


def _narrow(b: Builder, x: Value) -> Value:
    """DEPTH fp32 as pairs of bf16."""
    bits = b.bitcast(load(b, x, FLOAT, DEPTH), ir.VectorType(INT32, DEPTH))
    halves = b.trunc(b.lshr(bits, alike(INT32, 16, DEPTH)), ir.VectorType(INT16, DEPTH))
    assert DEPTH * 2 == LINE
    return b.bitcast(halves, ir.VectorType(INT32, SIDE))
