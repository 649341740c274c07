"""What sums of products lie in: this processor's registers. LLVM's intermediate code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import llvmlite.binding as llvm
from llvmlite import ir

from potatod import machine

from ..native import LANES
from .emit import FLOAT, INT16, INT32


@dataclass(frozen=True, slots=True)
class Registers:
    #: fp32 in one of them: LANES or twice as many
    lanes: int
    #: (rows, outputs) of the tiles, largest first: their sums and what they are made of fit the registers
    tiles: tuple[tuple[int, int], ...]
    #: whether bf16 is multiplied by AMX
    amx: bool = False

    @property
    def floats(self) -> ir.VectorType:
        return ir.VectorType(FLOAT, self.lanes)

    @property
    def ints(self) -> ir.VectorType:
        return ir.VectorType(INT32, self.lanes)

    @property
    def words(self) -> ir.VectorType:
        return ir.VectorType(INT16, 2 * self.lanes)


#: Sixteen of AVX2, and thirty-two of AVX-512.
SIXTEEN: Final = Registers(LANES, ((6, 2), (3, 4), (2, 6), (1, 6)))
THIRTY_TWO: Final = Registers(2 * LANES, ((6, 4), (3, 6), (2, 6), (1, 6)))
WITH_AMX: Final = replace(THIRTY_TWO, amx=True)
#: What a processor must have for the second, and besides for the third, as LLVM calls it.
_WIDE: Final = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
_AMX: Final = ("amx-tile", "amx-bf16")


@cache
def here() -> Registers:
    features = llvm.get_host_cpu_features()
    if not all(features.get(name) for name in _WIDE):
        return SIXTEEN
    return WITH_AMX if all(features.get(name) for name in _AMX) and machine.lets_us_use_amx() else THIRTY_TWO
