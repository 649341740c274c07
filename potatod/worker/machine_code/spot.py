"""What is decoded at a time, and where to. LLVM's intermediate code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

#: Columns that are decoded at a time; fewer that would be left are decoded with the last ones.
PANEL: Final = 512
FEW: Final = 256
#: Room that the decoded columns of a row take.
ROOM: Final = PANEL + FEW
#: Room for the scales of their groups, and for their minima.
PARAMETERS: Final = ROOM // 16
#: Columns that share a scale, in every scheme of four to eight bits.
GROUP: Final = 32


@dataclass(frozen=True, slots=True)
class Spot:
    """What is to be decoded: ``columns`` of a row from ``column`` on."""

    #: the row's record
    row: Value
    #: the band that it lies in, and its bytes
    band: Value
    band_bytes: Value
    column: Value
    columns: Value
    #: of the whole row
    width: Value
    #: fp32, ``columns`` long, or where bf16 will do the same in bf16
    out: Value
    #: two INT64 that are the row's own from its first columns to its last
    state: Value
    #: whether bf16 will do
    narrow: bool = field(default=False, kw_only=True)


Decode = Callable[[Builder, Spot], None]


def put(b: Builder, spot: Spot, column: Value, values: Value) -> None:
    """``column``: from the first that is decoded."""
    b.store(values, b.bitcast(b.gep(spot.out, [column]), values.type.as_pointer()), align=2 if spot.narrow else 4)
