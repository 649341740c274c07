"""Machine code for the product of rows with a weight matrix, where torch's own is slow: written as LLVM's intermediate code, compiled here.

Most processors have no instructions for bf16, and what torch then does costs nearly the same again for every further row (docs/PERFORMANCE.md); where
they have some, its sums are added up in an order that depends on how many rows there are. Here a weight is read once as it lies in memory and is
multiplied with as many rows as registers can hold: as fp32, as an integer, or by AMX as bf16. And the order in which one row is summed with one
output's weights is fixed: as many sums in fp32 as a register has lanes, each of every so-manieth column, added at the end; or by AMX one sum, to which
32 columns at a time are added. It does not depend on how many rows there are, nor on where they lie, nor on threads: rows are independent without
being padded into groups. Nor does it depend on how the weights are stored: a scheme that holds bf16 exactly gives the bits of bf16.

The loops are drawn in walk.py. Only processes that end import this: LLVM takes more memory than the code is worth. What
runs it is native.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Final

import llvmlite.binding as llvm
from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from potatod.dtypes import RAW

from .. import native
from ..native import LANES, Call
from . import elf, registers
from .amx_walk import AmxWalk
from .codings import CODINGS, Integers, Shared
from .emit import BYTES, FLOAT, INT16, INT32, INT64, VOID, loop
from .float_walk import FloatWalk, Weights
from .integer_walk import IntegerWalk
from .numbers import NUMBERS, Number
from .pairs import write_pairs
from .registers import Registers
from .rounding import write_rounding
from .spot import GROUP, Decode, Spot, put
from .tiles import fused_tiles, tile

_ENTRY: Final = "product"


def _weights(dtype: str, scheme: str) -> Weights:
    if scheme == RAW:
        return Weights(NUMBERS[dtype])
    decode = CODINGS[scheme]
    assert not isinstance(decode, Integers)
    return Weights(NUMBERS["float32"], decode)


def codes(dtype: str, schemes: Iterable[str]) -> dict[str, bytes]:
    """By name: what a native.Product needs to multiply with weights that are stored in these schemes and to give ``dtype``, which is what `raw` ones
    are of. Machine code for this processor, each one function, ``void product(Call *)``, that needs nothing outside of itself."""
    own = registers.here()
    made = {scheme: _compiled(dtype, scheme, own) for scheme in schemes}
    if made.keys() & native.INTEGERS:
        made[native.ROUNDED] = _of_rows(write_rounding)
    if any(_by_amx(dtype, scheme, own) for scheme in made):
        made[native.PAIRED] = _of_rows(write_pairs)
    return made


def _by_amx(dtype: str, scheme: str, own: Registers) -> bool:
    return own.amx and dtype == "bfloat16" and scheme in native.IN_PAIRS


@cache
def _compiled(dtype: str, scheme: str, own: Registers) -> bytes:
    integers = CODINGS.get(scheme)
    if isinstance(integers, Integers):
        return assembled(_integer_module(NUMBERS[dtype], integers, own))
    if _by_amx(dtype, scheme, own):
        return assembled(_amx_module(NUMBERS[dtype], _weights(dtype, scheme)))
    return assembled(_module(NUMBERS[dtype], _weights(dtype, scheme), own))


def assembled(written: ir.Module) -> bytes:
    """Its one function that others may call, as machine code for this processor."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(str(written))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=_features(), opt=3, reloc="pic", codemodel="small"
    )
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = False  # what is worth it is written so
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return elf.linked(machine.emit_object(module))


def _features() -> str:
    """Of this processor. Where LLVM would rather not use the widest registers it does all the same: what is written for them is worth it."""
    return ",".join(feature for feature in (llvm.get_host_cpu_features().flatten(), "-prefer-256-bit") if feature)


def _empty(number: Number) -> tuple[ir.Module, ir.Function, ir.Function, ir.Function]:
    """With its one function, what it multiplies and adds with, and what fetches. ``number``: what comes out."""
    module = ir.Module(_ENTRY)
    module.triple = llvm.get_process_triple()
    fma = _fma(module, LANES)
    prefetch = ir.Function(module, ir.FunctionType(VOID, [BYTES, INT32, INT32, INT32]), "llvm.prefetch.p0")
    return module, _entry(module, number), fma, prefetch


def _fma(module: ir.Module, lanes: int) -> ir.Function:
    kind = ir.VectorType(FLOAT, lanes)
    name = f"llvm.fma.v{lanes}f32"
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(kind, [kind] * 3), name)


def _integer_module(number: Number, integers: Integers, own: Registers) -> ir.Module:
    module, function, fma, prefetch = _empty(number)
    IntegerWalk(module, function, own, number, integers, prefetch, fma, _fma(module, own.lanes)).write()
    return module


def _amx_module(number: Number, weights: Weights) -> ir.Module:
    module, function, _, prefetch = _empty(number)
    decoder = None
    if weights.decode is not None:
        assert not isinstance(weights.decode, Shared)
        decoder = _decoder(module, weights.decode, narrow=True)
    AmxWalk(module, function, number, decoder, prefetch).write()
    return module


@cache
def _of_rows(write: Callable[[ir.Module, ir.Function], None]) -> bytes:
    """Machine code for ``void product(Call *)`` that multiplies nothing: what becomes of rows before."""
    module = ir.Module(_ENTRY)
    module.triple = llvm.get_process_triple()
    write(module, _entry(module, NUMBERS["float32"]))
    return assembled(module)


def _module(number: Number, weights: Weights, own: Registers) -> ir.Module:
    module, function, fma, prefetch = _empty(number)
    wide = _fma(module, own.lanes)
    tiles = {
        (rows, outputs): tile(module, own, wide, prefetch if weights.decode is None else None, weights.number, rows, outputs)
        for rows, most in own.tiles for outputs in {most, 1}
    }  # fmt: skip
    decoder = None if weights.decode is None else _decoder(module, weights.decode)
    fused = fused_tiles(module, own, wide, weights.decode) if isinstance(weights.decode, Shared) else {}
    FloatWalk(function, own, tiles, number, weights, decoder, fused, prefetch, fma).write()
    return module


def _entry(module: ir.Module, number: Number) -> ir.Function:
    return ir.Function(module, ir.FunctionType(VOID, [_call_type(number).as_pointer()]), _ENTRY)


def _call_type(number: Number) -> ir.LiteralStructType:
    kinds = {"x": FLOAT.as_pointer(), "bias": FLOAT.as_pointer(), "weight": BYTES, "out": number.kind.as_pointer()}
    return ir.LiteralStructType([kinds.get(name, INT64) for name, *_ in Call._fields_])


def _decoder(module: ir.Module, decode: Decode | Shared, *, narrow: bool = False) -> ir.Function:
    """``decode(row, band, band_bytes, column, columns, width, out, state)``; of a :class:`Shared` scheme also ``scales`` and ``minima``, which it
    fills with those of the columns, and ``whole``: nought, where the weights themselves are not needed."""
    signature = [BYTES, BYTES, INT64, INT64, INT64, INT64, (INT16 if narrow else FLOAT).as_pointer(), INT64.as_pointer()]
    shared = isinstance(decode, Shared)
    more = [FLOAT.as_pointer(), FLOAT.as_pointer(), INT64] if shared else []
    function = ir.Function(module, ir.FunctionType(VOID, signature + more), "decode")
    function.linkage = "internal"
    for number in (0, 1, 6, 7, *((8, 9) if shared else ())):
        function.args[number].add_attribute("noalias")
    b = Builder(function.append_basic_block())
    spot = Spot(*function.args[: len(signature)], narrow=narrow)
    if not isinstance(decode, Shared):
        decode(b, spot)
        b.ret_void()
        return function
    scales, minima, whole = function.args[len(signature) :]
    decode.parameters(b, spot, scales, minima)

    def group(i: Value) -> None:
        for place, values in enumerate(decode.values(b, spot.row, spot.width, b.add(spot.column, i), scales, spot.column)):
            put(b, spot, b.add(i, INT64(LANES * place)), values)

    with b.if_then(b.icmp_signed("!=", whole, INT64(0))):
        loop(b, INT64(0), spot.columns, GROUP, group)
    b.ret_void()
    return function
