"""The innermost loops: some rows times some outputs, whose sums lie in registers. LLVM's intermediate code."""

from __future__ import annotations

from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder

from ..native import CHUNK, LANES
from . import emit
from .codings import Shared
from .emit import BYTES, FLOAT, INT32, INT64, VOID, load
from .numbers import Number
from .registers import Registers
from .spot import GROUP, PARAMETERS

#: To read, into the nearest cache, data.
READ_AND_KEEP: Final = (INT32(0), INT32(3), INT32(1))


def tile(
    module: ir.Module, registers: Registers, fma: ir.Function, prefetch: ir.Function | None, number: Number, rows: int, outputs: int
) -> ir.Function:  # fmt: skip
    """``sums[r][o] += x[r][k] · weight[o][k]``, a register's lanes of sums each, for k from 0 to ``columns``; rows of x are ``width`` apart, those of
    the weight ``stride``, of the sums CHUNK.

    One row is as fast as memory is, and a processor's own guesses begin anew with each output's weights: so it is told the next tile's.
    """
    signature = [FLOAT.as_pointer(), number.kind.as_pointer(), registers.floats.as_pointer(), INT64, INT64, INT64]
    function = ir.Function(module, ir.FunctionType(VOID, signature), f"tile_{rows}x{outputs}")
    function.linkage = "internal"
    function.attributes.add("alwaysinline")
    x, w, out, columns, width, stride = function.args
    for pointer in (x, w, out):
        pointer.add_attribute("noalias")
    before, loop_, after = (function.append_basic_block(name) for name in ("before", "loop", "after"))
    b = Builder(before)
    xs = [b.gep(x, [b.mul(width, INT64(row))]) for row in range(rows)]
    ws = [b.gep(w, [b.mul(stride, INT64(output))]) for output in range(outputs)]
    places = [[b.gep(out, [INT64(row * CHUNK + output)]) for output in range(outputs)] for row in range(rows)]
    begun = [[b.load(place) for place in row] for row in places]
    b.branch(loop_)

    b.position_at_end(loop_)
    k = b.phi(INT64)
    sums = [[b.phi(registers.floats) for _ in ws] for _ in xs]
    weights = [number.as_floats(b, b.gep(pointer, [k]), registers.lanes) for pointer in ws]
    for pointer in ws if rows == 1 and prefetch else ():
        ahead = b.gep(pointer, [b.add(k, b.mul(stride, INT64(outputs)))])
        b.call(prefetch, [b.bitcast(ahead, BYTES), *READ_AND_KEEP])
    added = []
    for pointer, row in zip(xs, sums, strict=True):
        values = load(b, b.gep(pointer, [k]), FLOAT, registers.lanes)
        added.append([b.call(fma, [values, value, total]) for value, total in zip(weights, row, strict=True)])
    next_k = b.add(k, INT64(registers.lanes))
    b.cbranch(b.icmp_signed("<", next_k, columns), loop_, after)
    emit.flows(k, (before, INT64(0)), (loop_, next_k))
    for row, first, new in zip(sums, begun, added, strict=True):
        for total, start, value in zip(row, first, new, strict=True):
            emit.flows(total, (before, start), (loop_, value))

    b.position_at_end(after)
    for row, of_row in zip(added, places, strict=True):
        for total, place in zip(row, of_row, strict=True):
            b.store(total, place)
    b.ret_void()
    return function


def fused_tiles(module: ir.Module, registers: Registers, fma: ir.Function, shared: Shared) -> dict[int, ir.Function]:
    """For one row: ``sums[o] += x[k] · weight[o][k]`` with weights that become fp32 in registers. By the number of outputs."""
    made = {}
    for outputs in (max(wide for tall, wide in registers.tiles if tall == 1), 1):
        signature = [FLOAT.as_pointer(), BYTES, INT64, INT64, INT64, INT64, FLOAT.as_pointer(), registers.floats.as_pointer()]
        function = ir.Function(module, ir.FunctionType(VOID, signature), f"fused_{outputs}")
        function.linkage = "internal"
        x, rows, row_bytes, column, columns, width, scales, sums = function.args
        for pointer in (x, rows, scales, sums):
            pointer.add_attribute("noalias")
        before, loop_, after = (function.append_basic_block(name) for name in ("before", "loop", "after"))
        b = Builder(before)
        places = [b.gep(sums, [INT64(output)]) for output in range(outputs)]
        begun = [b.load(place) for place in places]
        b.branch(loop_)
        b.position_at_end(loop_)
        k = b.phi(INT64)
        totals = [b.phi(registers.floats) for _ in places]
        xs = [load(b, b.gep(x, [b.add(k, INT64(place))]), FLOAT, registers.lanes) for place in range(0, GROUP, registers.lanes)]
        added = []
        for output, total in enumerate(totals):
            row = b.gep(rows, [b.mul(row_bytes, INT64(output))])
            own = b.gep(scales, [INT64(output * PARAMETERS)])
            group = shared.values(b, row, width, b.add(column, k), own, column)
            if registers.lanes > LANES:
                group = [emit.joined(b, *group[:2]), emit.joined(b, *group[2:])]
            for values, some in zip(group, xs, strict=True):
                total = b.call(fma, [some, values, total])
            added.append(total)
        following = b.add(k, INT64(GROUP))
        b.cbranch(b.icmp_signed("<", following, columns), loop_, after)
        emit.flows(k, (before, INT64(0)), (loop_, following))
        for total, start, value in zip(totals, begun, added, strict=True):
            emit.flows(total, (before, start), (loop_, value))
        b.position_at_end(after)
        for total, place in zip(added, places, strict=True):
            b.store(total, place)
        b.ret_void()
        made[outputs] = function
    return made
