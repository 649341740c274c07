"""One row with weights of four bits, 64 columns at a time and never wider than bytes. LLVM's intermediate code.

A rounded row's 16 bits are 256 · high + low, a byte each. A byte of each of 64 columns is multiplied with the weights by one instruction, which adds up
two neighbours in 16 bits; the next multiplies with the scales and adds up two of those in 32. All of it is exact, and each lane gets the columns that
it gets where weights are decoded first (integer_walk.py): so a row alone has the bits that it has among others.

    a lane's four bytes     columns 2j and 2j + 1 of a group of 32, and the same of the next group
    lanes                   j = 0 … 7 from the lower halves of the weights' bytes, 8 … 15 from the higher ones
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from ..native import ALIKE, LANES
from .emit import BYTES, INT8, INT16, INT32, INT64, alike, at, load, splat
from .registers import Registers
from .spot import GROUP

#: ``(b, sums, one, other)``: sums of pairs of products, two for each lane, added to its sum where there is one.
Multiply = Callable[[Builder, Value | None, Value, Value], Value]
#: Columns of a block: two groups.
BLOCK: Final = 2 * GROUP
#: Of a block's sixteen words, each two bytes of four columns' halves, which belong into one lane.
_PAIRED: Final = [place for word in range(8) for place in (word, 8 + word)]


class Nibbles:
    """How ALIKE columns of a row are multiplied."""

    def __init__(self, module: ir.Module, registers: Registers, multiply: Multiply) -> None:
        self._lanes, self._words, self._multiply = registers.lanes, registers.words, multiply
        self._wide = registers.lanes > LANES
        self._bytes = ir.VectorType(INT8, 4 * registers.lanes)
        products = "llvm.x86.avx512.pmaddubs.w.512" if self._wide else "llvm.x86.avx2.pmadd.ub.sw"
        self._of_bytes = ir.Function(module, ir.FunctionType(registers.words, [self._bytes] * 2), products)

    def share(self, b: Builder, planes: Value, halves: Value, scales: Value) -> Value:
        """``Σ x · half · scale`` of each lane's columns, exactly; ``planes``: what write_planes() left of x; ``halves``: the weights' bytes, sixteen of
        each 32 columns; ``scales``: 16 bits of as many."""
        sums: list[Value | None] = [None, None]
        for block in range(ALIKE // BLOCK):
            weights = self._unpacked(b, b.gep(halves, [INT64(block * BLOCK // 2)]))
            pair = b.load(at(b, b.bitcast(scales, BYTES), 4 * block, INT32), align=2)
            scale = b.bitcast(splat(b, pair, self._lanes), self._words)
            for plane in (0, 1):
                source = b.gep(planes, [INT64(BLOCK * (2 * block + plane))])
                words = None
                for part, some in enumerate(weights):
                    x = load(b, b.gep(source, [INT64(part * self._bytes.count)]), INT8, self._bytes.count)
                    products = b.call(self._of_bytes, [some, x] if plane == 0 else [x, some])  # the one without a sign first
                    words = products if words is None else b.add(words, products)
                sums[plane] = self._multiply(b, sums[plane], words, scale)
        return b.add(b.shl(sums[0], alike(INT32, 8, self._lanes)), sums[1])

    def _unpacked(self, b: Builder, pointer: Value) -> list[Value]:
        """32 bytes as 64, a weight each, in the order of the planes."""
        stored = load(b, pointer, INT16, 16)
        mask = _PAIRED * (2 if self._wide else 1)
        paired = b.shuffle_vector(stored, stored, ir.Constant(ir.VectorType(INT32, len(mask)), mask))
        low = alike(INT16, 0x0F0F, len(mask))
        if self._wide:
            shifts = ir.Constant(paired.type, [0] * 16 + [4] * 16)
            return [b.bitcast(b.and_(b.lshr(paired, shifts), low), self._bytes)]
        return [b.bitcast(b.and_(each, low), self._bytes) for each in (paired, b.lshr(paired, alike(INT16, 4, 16)))]
