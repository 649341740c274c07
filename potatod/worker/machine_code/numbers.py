"""Numbers in memory and in registers: how they become fp32, and fp32 one of them. LLVM's intermediate code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from ..native import LANES
from . import emit
from .emit import FLOAT, FLOATS, HALF, INT16, INT32, load


def _bf16(b: Builder, pointer: Value, count: int = LANES) -> Value:
    """bf16 is the upper half of fp32."""
    wide = b.zext(load(b, pointer, INT16, count), ir.VectorType(INT32, count))
    return b.bitcast(b.shl(wide, emit.alike(INT32, 16, count)), ir.VectorType(FLOAT, count))


def _fp16(b: Builder, pointer: Value, count: int = LANES) -> Value:
    return b.fpext(load(b, pointer, HALF, count), ir.VectorType(FLOAT, count))


def _fp32(b: Builder, pointer: Value, count: int = LANES) -> Value:
    return load(b, pointer, FLOAT, count)


def _float8(b: Builder, pointer: Value, count: int = LANES) -> Value:
    """e4m3: sign, four bits of exponent, three of mantissa, which are fp16's, 256 times as small; what is no number stays none."""
    words = ir.VectorType(INT16, count)
    bits = b.zext(load(b, pointer, emit.INT8, count), words)
    size = b.and_(bits, emit.alike(INT16, 0x7F, count))
    sign = b.shl(b.and_(bits, emit.alike(INT16, 0x80, count)), emit.alike(INT16, 8, count))
    halves = b.or_(sign, b.shl(size, emit.alike(INT16, 7, count)))
    halves = b.select(b.icmp_unsigned("==", size, emit.alike(INT16, 0x7F, count)), emit.alike(INT16, 0x7E00, count), halves)
    floats = b.fpext(b.bitcast(halves, ir.VectorType(HALF, count)), ir.VectorType(FLOAT, count))
    return b.fmul(floats, emit.alike(FLOAT, 256.0, count))


def _rounded_bf16(b: Builder, value: Value) -> Value:
    """To nearest, ties to even; a NaN stays one."""
    bits = b.bitcast(value, INT32)
    up = b.add(INT32(0x7FFF), b.and_(b.lshr(bits, INT32(16)), INT32(1)))
    rounded = b.select(b.fcmp_unordered("uno", value, value), INT32(0x7FC00000), b.add(bits, up))
    return b.trunc(b.lshr(rounded, INT32(16)), INT16)


def _stored_bf16(b: Builder, values: Value) -> Value:
    bits = b.bitcast(values, emit.INTS)
    up = b.add(emit.alike(INT32, 0x7FFF), b.and_(b.lshr(bits, emit.alike(INT32, 16)), emit.alike(INT32, 1)))
    rounded = b.bitcast(b.and_(b.add(bits, up), emit.alike(INT32, -65536)), FLOATS)
    return b.select(b.fcmp_unordered("uno", values, values), values, rounded)


def _rounded_fp16(b: Builder, value: Value) -> Value:
    return b.fptrunc(value, HALF)


def _halves(b: Builder, values: Value) -> Value:
    return b.fptrunc(values, ir.VectorType(HALF, LANES))


@dataclass(frozen=True, slots=True)
class Number:
    """A dtype: what it is in memory, how LANES of them, or another count, become fp32, how one is made of fp32."""

    kind: ir.Type
    as_floats: Callable[..., Value]
    rounded: Callable[[Builder, Value], Value]
    #: of LANES fp32 the nearest that the dtype holds, as fp32: ties to even, and a NaN stays one
    stored: Callable[[Builder, Value], Value]
    #: LANES fp32 that the dtype holds, as it has them in memory
    written: Callable[[Builder, Value], Value]

    def put(self, b: Builder, pointer: Value, values: Value) -> None:
        """Rounded, to memory."""
        vector = self.written(b, self.stored(b, values))
        b.store(vector, b.bitcast(pointer, vector.type.as_pointer()), align=1)


def _as_it_is(_b: Builder, value: Value) -> Value:
    return value


NUMBERS: Final = {
    "bfloat16": Number(INT16, _bf16, _rounded_bf16, _stored_bf16, emit.upper_halves),
    "float16": Number(HALF, _fp16, _rounded_fp16, lambda b, values: b.fpext(_halves(b, values), FLOATS), _halves),
    "float32": Number(FLOAT, _fp32, _as_it_is, _as_it_is, _as_it_is),
}
#: What is only read: its kind in memory, and how it becomes fp32.
READ: Final[Mapping[str, tuple[ir.Type, Callable[..., Value]]]] = {
    **{name: (number.kind, number.as_floats) for name, number in NUMBERS.items()}, "float8_e4m3fn": (emit.INT8, _float8),
}  # fmt: skip
