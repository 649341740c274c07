"""exp, LANES numbers at a time. LLVM's intermediate code."""

from __future__ import annotations

from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from ..native import LANES
from .emit import FLOAT, FLOATS, INT32, INTS, alike

#: Below it exp is 0 in fp32.
_LOWEST: Final = -87.33654
#: ln 2 in two parts.
_LN2: Final = (0.693359375, -2.12194440e-4)
#: Of exp(r) − 1 − r over r², |r| ≤ ln 2 / 2 (Cephes, expf).
_POLYNOMIAL: Final = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


class Exponential:
    """``exponential(b, x)``: exp of LANES numbers of no more than 0; a NaN stays one."""

    def __init__(self, module: ir.Module, fma: ir.Function) -> None:
        self._fma = fma
        self._floor = ir.Function(module, ir.FunctionType(FLOATS, [FLOATS]), f"llvm.floor.v{LANES}f32")

    def __call__(self, b: Builder, x: Value) -> Value:
        x = b.select(b.fcmp_ordered("<", x, alike(FLOAT, _LOWEST)), alike(FLOAT, _LOWEST), x)
        n = b.call(self._floor, [b.call(self._fma, [x, alike(FLOAT, 1.44269504088896341), alike(FLOAT, 0.5)])])
        r = b.call(self._fma, [n, alike(FLOAT, -_LN2[0]), x])
        r = b.call(self._fma, [n, alike(FLOAT, -_LN2[1]), r])
        p = alike(FLOAT, _POLYNOMIAL[0])
        for coefficient in _POLYNOMIAL[1:]:
            p = b.call(self._fma, [p, r, alike(FLOAT, coefficient)])
        y = b.fadd(b.call(self._fma, [p, b.fmul(r, r), r]), alike(FLOAT, 1.0))
        power = b.bitcast(b.shl(b.add(b.fptosi(n, INTS), alike(INT32, 127)), alike(INT32, 23)), FLOATS)
        return b.fmul(y, power)
