"""Rows that are multiplied as integers: what becomes of fp32. LLVM's intermediate code.

A row is rounded to 16 bits of the power of two above the largest of ALIKE columns: what is within 1/128 of that keeps all bits that bf16 has.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from ..native import ALIKE, LANES
from . import emit
from .emit import BYTES, FLOAT, FLOATS, INT8, INT16, INT32, INT64, INTS, alike, at, least, load, loop, splat, steps
from .nibbles import BLOCK
from .spot import GROUP
from .walk import claims, given_in

_EXPONENT: Final = 0x7F800000
_MANTISSA_BITS: Final = 23


def planes(b: Builder, integers: Value, width: Value) -> Value:
    """Of a rounded row from a column on, a multiple of BLOCK, where its integers lie: they are as far behind those as all of them are long."""
    return b.gep(b.bitcast(integers, BYTES), [b.mul(width, INT64(2))])


class RoundedRow:
    """Where the parts of a rounded row lie: native.rounded_bytes()."""

    def __init__(self, b: Builder, width: Value) -> None:
        self._b = b
        self._scales = b.add(b.mul(width, INT64(2)), b.mul(b.udiv(width, INT64(BLOCK)), INT64(2 * BLOCK)))
        self._sums = b.add(self._scales, b.mul(b.udiv(b.add(width, INT64(ALIKE - 1)), INT64(ALIKE)), INT64(4)))
        eights = b.udiv(b.add(width, INT64(GROUP * LANES - 1)), INT64(GROUP * LANES))
        self.groups = b.mul(eights, INT64(LANES))
        self.nbytes = b.and_(b.add(b.add(self._sums, b.mul(self.groups, INT64(4))), INT64(63)), INT64(-64))

    def integers(self, row: Value, column: Value) -> Value:
        return self._b.gep(self._b.bitcast(row, INT16.as_pointer()), [column])

    def scales(self, row: Value, column: Value) -> Value:
        return self._b.gep(at(self._b, row, self._scales, FLOAT), [self._b.udiv(column, INT64(ALIKE))])

    def sums(self, row: Value, column: Value) -> Value:
        return self._b.gep(at(self._b, row, self._sums, FLOAT), [self._b.udiv(column, INT64(GROUP))])


def _weave(b: Builder, words: Value, planes: Value) -> None:
    """Of a block's 64 rounded numbers: the higher bytes of all, then the lower ones, lane by lane."""
    halves = [load(b, b.gep(words, [INT64(GROUP * group)]), INT16, GROUP) for group in (0, 1)]
    narrow, pairs = ir.VectorType(INT8, GROUP), ir.VectorType(INT16, GROUP // 2)
    mask = [place for pair in range(GROUP // 2) for place in (pair, GROUP // 2 + pair)]
    for plane, shift in enumerate((8, 0)):
        bytes_ = [b.bitcast(b.trunc(b.lshr(each, alike(INT16, shift, GROUP)), narrow), pairs) for each in halves]
        woven = b.shuffle_vector(*bytes_, ir.Constant(ir.VectorType(INT32, GROUP), mask))
        b.store(woven, at(b, planes, BLOCK * plane, woven.type), align=1)


def write_rounding(module: ir.Module, function: ir.Function) -> None:
    """The body of a function that rounds rows instead of multiplying with them."""
    nearest = ir.Function(module, ir.FunctionType(INTS, [FLOATS]), "llvm.x86.avx.cvt.ps2dq.256")
    b = Builder(function.append_basic_block())
    most = b.alloca(INTS)
    places, given = given_in(b, function)
    width = given["width"]
    parts = RoundedRow(b, width)

    def share(x: Value, out: Value, column: Value) -> None:
        columns = least(b, b.sub(width, column), INT64(ALIKE))
        source = b.gep(x, [column])
        b.store(alike(INT32, 0), most)

        def compare(i: Value) -> None:
            bits = b.and_(b.bitcast(load(b, b.gep(source, [i]), FLOAT), INTS), alike(INT32, 0x7FFFFFFF))
            before = b.load(most)
            b.store(b.select(b.icmp_signed(">", bits, before), bits, before), most)

        loop(b, INT64(0), columns, LANES, compare)
        highest = emit.largest(b, b.load(most), lambda one, other: b.icmp_signed(">", one, other))
        exponent = b.and_(highest, INT32(_EXPONENT))
        endless = b.icmp_signed("==", exponent, INT32(_EXPONENT))
        floor = INT32(15 << _MANTISSA_BITS)
        exponent = b.select(b.icmp_signed("<", exponent, floor), floor, exponent)
        scale = b.sub(exponent, INT32(14 << _MANTISSA_BITS))
        inverse = splat(b, b.bitcast(b.sub(INT32(268 << _MANTISSA_BITS), exponent), FLOAT))
        scale = b.select(endless, INT32(0x7FC00000), scale)  # what is no number stays none
        b.store(b.bitcast(scale, FLOAT), parts.scales(out, column))

        def round_(i: Value) -> None:
            integers = b.call(nearest, [b.fmul(load(b, b.gep(source, [i]), FLOAT), inverse)])
            integers = b.select(b.icmp_signed(">", integers, alike(INT32, 32767)), alike(INT32, 32767), integers)
            integers = b.select(b.icmp_signed("<", integers, alike(INT32, -32767)), alike(INT32, -32767), integers)
            narrow = b.trunc(integers, ir.VectorType(INT16, LANES))
            b.store(narrow, b.bitcast(parts.integers(out, b.add(column, i)), narrow.type.as_pointer()), align=2)

        loop(b, INT64(0), columns, LANES, round_)

    def row(number: Value) -> None:
        x = b.gep(given["x"], [b.mul(number, width)])
        out = b.gep(b.bitcast(given["out"], BYTES), [b.mul(number, parts.nbytes)])
        steps(b, INT64(0), width, ALIKE, partial(share, x, out))
        sums = parts.sums(out, INT64(0))
        groups = b.udiv(width, INT64(GROUP))
        last = b.gep(sums, [b.sub(parts.groups, INT64(LANES))])
        b.store(alike(FLOAT, 0.0), b.bitcast(last, FLOATS.as_pointer()), align=4)  # what is not filled in of the last eight

        def sum_up(i: Value) -> None:
            """Of what is multiplied with, not of what it was: minima are taken from products with that."""
            integers = parts.integers(out, b.mul(i, INT64(GROUP)))
            total = alike(INT32, 0)
            for place in range(0, GROUP, LANES):
                total = b.add(total, b.sext(load(b, b.gep(integers, [INT64(place)]), INT16), INTS))
            scale = b.load(parts.scales(out, b.mul(i, INT64(GROUP))))
            b.store(b.fmul(emit.total(b, b.sitofp(total, FLOATS)), scale), b.gep(sums, [i]))

        loop(b, INT64(0), groups, 1, sum_up)

        def weave(column: Value) -> None:
            integers = parts.integers(out, column)
            _weave(b, integers, planes(b, integers, width))

        loop(b, INT64(0), width, BLOCK, weave)

    claims(b, places, given | {"outputs": given["rows"]}, lambda first, _count: row(first))
