"""Machine code for the product of rows with a weight matrix, where torch's own is slow: written as LLVM's intermediate code, compiled here.

Most processors have no instructions for bf16, and what torch then does costs nearly the same again for every further row (docs/PERFORMANCE.md). Here a
weight is read once as it lies in memory, becomes fp32 in a register, and is multiplied with as many rows as registers can hold. And the order
in which one row is summed with one output's weights is fixed: lane by lane in fp32, PANEL columns at a time. It does not depend on how many rows
there are, nor on where they lie, nor on threads: rows are independent without being padded into groups.

    for each chunk of outputs          claimed by whichever thread is free
      for each block of rows           as many as the second cache holds; their sums begin with the bias
        for each panel of columns
          for each tile of outputs
            for each tile of rows      TILES: the product lies in registers
        round the sums

Only processes that end import this: LLVM takes more memory than the code is worth. What runs it is native.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

import llvmlite.binding as llvm
from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from .native import CHUNK, LANES, Call

#: Columns that are summed in registers before they are added to the output.
PANEL: Final = 2048
#: Rows and outputs of a block: its sums lie on the stack. Whole tiles of every kind.
BLOCK_ROWS: Final = 48
#: (rows, outputs) of the tiles, largest first: their sums and what they are made of fit sixteen registers.
TILES: Final = ((6, 2), (3, 4), (2, 6), (1, 6))

_FLOAT, _INT16, _INT32, _INT64, _VOID = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.VoidType()
_FLOATS: Final = ir.VectorType(_FLOAT, LANES)
_BYTES: Final = ir.IntType(8).as_pointer()
#: To read, into the nearest cache, data.
_READ_AND_KEEP: Final = (_INT32(0), _INT32(3), _INT32(1))
_ENTRY: Final = "product"
#: Of the object file; a constant or an address that is to be filled in would make others.
_SECTIONS: Final = {None, b".text", b".strtab", b".symtab", b".note.GNU-stack"}


def _bf16(b: Builder, pointer: Value) -> Value:
    """bf16 is the upper half of fp32."""
    wide = ir.VectorType(_INT32, LANES)
    return b.bitcast(b.shl(b.zext(_load(b, pointer, _INT16), wide), ir.Constant(wide, [16] * LANES)), _FLOATS)


def _fp16(b: Builder, pointer: Value) -> Value:
    return b.fpext(_load(b, pointer, ir.HalfType()), _FLOATS)


def _fp32(b: Builder, pointer: Value) -> Value:
    return _load(b, pointer, _FLOAT)


def _rounded_bf16(b: Builder, value: Value) -> Value:
    """To nearest, ties to even; a NaN stays one."""
    bits = b.bitcast(value, _INT32)
    up = b.add(_INT32(0x7FFF), b.and_(b.lshr(bits, _INT32(16)), _INT32(1)))
    rounded = b.select(b.fcmp_unordered("uno", value, value), _INT32(0x7FC00000), b.add(bits, up))
    return b.trunc(b.lshr(rounded, _INT32(16)), _INT16)


def _rounded_fp16(b: Builder, value: Value) -> Value:
    return b.fptrunc(value, ir.HalfType())


@dataclass(frozen=True, slots=True)
class Number:
    """A dtype: what it is in memory, how LANES of them become fp32, how one is made of fp32."""

    kind: ir.Type
    as_floats: Callable[[Builder, Value], Value]
    rounded: Callable[[Builder, Value], Value]


NUMBERS: Final = {
    "bfloat16": Number(_INT16, _bf16, _rounded_bf16),
    "float16": Number(ir.HalfType(), _fp16, _rounded_fp16),
    "float32": Number(_FLOAT, _fp32, lambda _, value: value),
}


@cache
def compiled(dtype: str) -> bytes:
    """Machine code for this processor: one function, ``void product(Call *)``, that needs nothing outside of itself."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(str(_module(NUMBERS[dtype])))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, reloc="pic", codemodel="small"
    )
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = False  # what is worth it is written so; their constants would lie outside
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    sections = {section.name(): section.data() for section in llvm.ObjectFileRef.from_data(machine.emit_object(module)).sections()}
    assert not sections.keys() - _SECTIONS, "code that refers to something outside of itself"
    return bytes(sections[b".text"])


def _module(number: Number) -> ir.Module:
    module = ir.Module(_ENTRY)
    module.triple = llvm.get_process_triple()
    fma = ir.Function(module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fma.v{LANES}f32")
    prefetch = ir.Function(module, ir.FunctionType(_VOID, [_BYTES, _INT32, _INT32, _INT32]), "llvm.prefetch.p0")
    function = ir.Function(module, ir.FunctionType(_VOID, [_call_type(number).as_pointer()]), _ENTRY)
    tiles = {(rows, outputs): _tile(module, fma, prefetch, number, rows, outputs) for rows, most in TILES for outputs in {most, 1}}
    _walk(function, tiles, number)
    return module


def _call_type(number: Number) -> ir.LiteralStructType:
    kinds = {"x": _FLOAT.as_pointer(), "bias": _FLOAT.as_pointer(), "weight": number.kind.as_pointer(), "out": number.kind.as_pointer()}
    return ir.LiteralStructType([kinds.get(name, _INT64) for name, *_ in Call._fields_])


def _tile(module: ir.Module, fma: ir.Function, prefetch: ir.Function, number: Number, rows: int, outputs: int) -> ir.Function:
    """``sums[r][o] += Σ x[r][k] · weight[o][k]`` for k from 0 to ``columns``; rows of x and weight are ``width`` apart, of the sums CHUNK.

    One row is as fast as memory is, and a processor's own guesses begin anew with each output's weights: so it is told the next tile's.
    """
    signature = [_FLOAT.as_pointer(), number.kind.as_pointer(), _FLOAT.as_pointer(), _INT64, _INT64]
    function = ir.Function(module, ir.FunctionType(_VOID, signature), f"tile_{rows}x{outputs}")
    function.linkage = "internal"
    function.attributes.add("alwaysinline")
    x, w, out, columns, width = function.args
    for pointer in (x, w, out):
        pointer.add_attribute("noalias")
    before, loop, after = (function.append_basic_block(name) for name in ("before", "loop", "after"))
    b = Builder(before)
    xs = [b.gep(x, [b.mul(width, _INT64(row))]) for row in range(rows)]
    ws = [b.gep(w, [b.mul(width, _INT64(output))]) for output in range(outputs)]
    b.branch(loop)

    b.position_at_end(loop)
    k = b.phi(_INT64)
    sums = [[b.phi(_FLOATS) for _ in ws] for _ in xs]
    weights = [number.as_floats(b, b.gep(pointer, [k])) for pointer in ws]
    for pointer in ws if rows == 1 else ():
        ahead = b.gep(pointer, [b.add(k, b.mul(width, _INT64(outputs)))])
        b.call(prefetch, [b.bitcast(ahead, _BYTES), *_READ_AND_KEEP])
    added = []
    for pointer, row in zip(xs, sums, strict=True):
        values = _load(b, b.gep(pointer, [k]), _FLOAT)
        added.append([b.call(fma, [values, value, total]) for value, total in zip(weights, row, strict=True)])
    next_k = b.add(k, _INT64(LANES))
    b.cbranch(b.icmp_signed("<", next_k, columns), loop, after)
    _flows(k, (before, _INT64(0)), (loop, next_k))
    for row, new in zip(sums, added, strict=True):
        for total, value in zip(row, new, strict=True):
            _flows(total, (before, ir.Constant(_FLOATS, [0.0] * LANES)), (loop, value))

    b.position_at_end(after)
    for at, row in enumerate(added):
        for output, total in enumerate(row):
            place = b.gep(out, [_INT64(at * CHUNK + output)])
            b.store(b.fadd(b.load(place), _sum(b, total)), place)
    b.ret_void()
    return function


def _walk(function: ir.Function, tiles: dict[tuple[int, int], ir.Function], number: Number) -> None:
    """The function's body: the loops drawn above."""
    b = Builder(function.append_basic_block())
    sums = b.bitcast(b.alloca(ir.ArrayType(_FLOAT, BLOCK_ROWS * CHUNK)), _FLOAT.as_pointer())
    at = {name: b.gep(function.args[0], [_INT32(0), _INT32(index)]) for index, (name, *_) in enumerate(Call._fields_)}
    given = {name: b.load(place) for name, place in at.items() if name != "claimed"}
    x, weight, bias, out, width, outputs = (given[name] for name in ("x", "weight", "bias", "out", "width", "outputs"))
    without_bias = b.icmp_unsigned("==", b.ptrtoint(bias, _INT64), _INT64(0))

    def sum_of(row: Value, output: Value) -> Value:
        return b.gep(sums, [b.add(b.mul(row, _INT64(CHUNK)), output)])

    def chunk(first: Value) -> None:
        count = _least(b, b.sub(outputs, first), given["chunk"])
        _steps(b, _INT64(0), given["rows"], BLOCK_ROWS, lambda row: block(row, _least(b, b.sub(given["rows"], row), _INT64(BLOCK_ROWS)), first, count))

    def block(first_row: Value, rows: Value, first: Value, count: Value) -> None:
        def begin(row: Value, output: Value) -> None:
            place = b.select(without_bias, sums, b.gep(bias, [b.add(first, output)]))  # what is not used must still be somewhere
            b.store(b.select(without_bias, ir.Constant(_FLOAT, 0.0), b.load(place)), sum_of(row, output))

        def round_(row: Value, output: Value) -> None:
            place = b.gep(out, [b.add(b.mul(b.add(first_row, row), outputs), b.add(first, output))])
            b.store(number.rounded(b, b.load(sum_of(row, output))), place)

        def panel(column: Value) -> None:
            columns = _least(b, b.sub(width, column), _INT64(PANEL))

            def product(tile: ir.Function, row: Value, output: Value) -> None:
                x_at = b.add(b.mul(b.add(first_row, row), width), column)
                weight_at = b.add(b.mul(b.add(first, output), width), column)
                b.call(tile, [b.gep(x, [x_at]), b.gep(weight, [weight_at]), sum_of(row, output), columns, width])

            row: Value = _INT64(0)
            for tall, wide in TILES:
                end = b.sub(rows, b.srem(b.sub(rows, row), _INT64(tall)))
                with b.if_then(b.icmp_signed("<", row, end)):
                    left = _each(b, (row, end, tall), (_INT64(0), count, wide), partial(product, tiles[tall, wide]))
                    _each(b, (row, end, tall), (left, count, 1), partial(product, tiles[tall, 1]))
                row = end

        every = (_INT64(0), rows, 1), (_INT64(0), count, 1)
        _each(b, *every, begin)
        _steps(b, _INT64(0), width, PANEL, panel)
        _each(b, *every, round_)

    claim, compute, done = (function.append_basic_block(name) for name in ("claim", "compute", "done"))
    b.branch(claim)
    b.position_at_end(claim)
    first = b.atomic_rmw("add", at["claimed"], given["chunk"], "monotonic")
    b.cbranch(b.icmp_signed("<", first, outputs), compute, done)
    b.position_at_end(compute)
    chunk(first)
    b.branch(claim)
    b.position_at_end(done)
    b.ret_void()


Range = tuple[Value, Value, int]


def _each(b: Builder, rows: Range, outputs: Range, body: Callable[[Value, Value], None]) -> Value:
    """``body(row, output)`` while whole steps fit, row by row of the same outputs; the first output that was left."""
    return _for(b, *outputs, lambda output: _for(b, *rows, lambda row: body(row, output)))


def _for(b: Builder, start: Value, stop: Value, step: int, body: Callable[[Value], None]) -> Value:
    """While a whole step fits: ``body(i)``. The value that the next one would have had."""
    head, inside, after = (b.append_basic_block() for _ in range(3))
    before = b.block
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(_INT64)
    following = b.add(i, _INT64(step))
    b.cbranch(b.icmp_signed("<=", following, stop), inside, after)
    b.position_at_end(inside)
    body(i)
    _flows(i, (before, start), (b.block, following))
    b.branch(head)
    b.position_at_end(after)
    return i


def _steps(b: Builder, start: Value, stop: Value, step: int, body: Callable[[Value], None]) -> None:
    """While ``i`` is below ``stop``: ``body(i)``; the last step may be a part of one."""
    head, inside, after = (b.append_basic_block() for _ in range(3))
    before = b.block
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(_INT64)
    b.cbranch(b.icmp_signed("<", i, stop), inside, after)
    b.position_at_end(inside)
    body(i)
    _flows(i, (before, start), (b.block, b.add(i, _INT64(step))))
    b.branch(head)
    b.position_at_end(after)


def _flows(phi: ir.PhiInstr, *sources: tuple[ir.Block, Value]) -> None:
    for block, value in sources:
        phi.add_incoming(value, block)


def _least(b: Builder, one: Value, other: Value) -> Value:
    return b.select(b.icmp_signed("<", one, other), one, other)


def _load(b: Builder, pointer: Value, kind: ir.Type) -> Value:
    """LANES of them, wherever they begin."""
    return b.load(b.bitcast(pointer, ir.VectorType(kind, LANES).as_pointer()), align=2)


def _sum(b: Builder, values: Value) -> Value:
    """Of all lanes, by halves."""
    width = LANES
    while width > 1:
        width //= 2
        low, high = (
            b.shuffle_vector(values, values, ir.Constant(ir.VectorType(_INT32, width), list(range(first, first + width)))) for first in (0, width)
        )
        values = b.fadd(low, high)
    return b.extract_element(values, _INT32(0))
