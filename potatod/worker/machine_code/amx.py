"""AMX: eight registers of SIDE rows of LINE bytes ("tiles"), and what multiplies them. LLVM's intermediate code.

What a thread has told them of their sizes is its own state, and libraries remember what they told: whoever uses them leaves that as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from llvmlite.ir import Value

from . import emit
from .emit import BYTES, INT8, INT16, INT64, VOID, at

#: Rows of a tile, and bytes of a row: 32 bf16 or 16 fp32.
SIDE: Final = 16
LINE: Final = 64
#: Columns that are multiplied at a time.
DEPTH: Final = 32
#: Bytes of a whole tile.
TILE: Final = SIDE * LINE
TILES: Final = 8

_PALETTE: Final = 1
#: Of a configuration: where the bytes of a tile's row are said, two bytes for each tile, and where its rows are.
_COLUMNS_AT, _ROWS_AT = 16, 48


@dataclass(frozen=True, slots=True)
class Size:
    """Of a tile: rows, and bytes of each."""

    rows: Value
    nbytes: Value


class Amx:
    def __init__(self, module: ir.Module, b: Builder) -> None:
        """``b``: at the beginning of the function that computes."""
        self._module = module
        self._configuration, self._before = (b.bitcast(b.alloca(ir.ArrayType(INT8, LINE)), BYTES) for _ in range(2))

    def begin(self, b: Builder) -> None:
        """Keeps what the thread had."""
        self._call(b, "sttilecfg", self._before)
        for place in range(0, LINE, 8):
            b.store(INT64(_PALETTE if place == 0 else 0), at(b, self._configuration, place, INT64), align=1)

    def configure(self, b: Builder, sizes: Sequence[Size]) -> None:
        """Of the first tiles. What lay in tiles is lost."""
        for number, size in enumerate(sizes):
            b.store(b.trunc(size.nbytes, INT16), at(b, self._configuration, _COLUMNS_AT + 2 * number, INT16), align=1)
            b.store(b.trunc(size.rows, INT8), at(b, self._configuration, _ROWS_AT + number, INT8), align=1)
        self._call(b, "ldtilecfg", self._configuration)

    def end(self, b: Builder) -> None:
        """As it was before :meth:`begin`."""
        self._call(b, "ldtilecfg", self._before)

    def zero(self, b: Builder, tile: int) -> None:
        self._call(b, "tilezero", INT8(tile))

    def load(self, b: Builder, tile: int, place: Value, stride: Value) -> None:
        """``stride``: bytes from one row to the next."""
        self._call(b, "tileloadd64", INT8(tile), place, stride)

    def store(self, b: Builder, tile: int, place: Value, stride: Value) -> None:
        self._call(b, "tilestored64", INT8(tile), place, stride)

    def multiply(self, b: Builder, sums: int, left: int, right: int) -> None:
        """``sums[m][n] += Σ left[m][2k] · right[k][2n] + left[m][2k + 1] · right[k][2n + 1]``: bf16, summed in fp32."""
        self._call(b, "tdpbf16ps", INT8(sums), INT8(left), INT8(right))

    def _call(self, b: Builder, name: str, *arguments: Value) -> None:
        full = f"llvm.x86.{name}"
        function = self._module.globals.get(full) or ir.Function(self._module, ir.FunctionType(VOID, [each.type for each in arguments]), full)
        b.call(function, arguments)


def transposed(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """SIDE vectors of SIDE → the same, ``[j][i]`` where ``[i][j]`` was."""
    lanes = range(SIDE)
    step = SIDE // 2
    now = list(rows)
    while step:
        for i in lanes:
            if not i & step:
                low, high = now[i], now[i + step]
                now[i] = _shuffled(b, low, high, lambda lane: SIDE + lane - step if lane & step else lane)  # noqa: B023
                now[i + step] = _shuffled(b, low, high, lambda lane: SIDE + lane if lane & step else lane + step)  # noqa: B023
        step //= 2
    return now


def _shuffled(b: Builder, low: Value, high: Value, source: Callable[[int], int]) -> Value:
    return b.shuffle_vector(low, high, ir.Constant(ir.VectorType(emit.INT32, SIDE), [source(lane) for lane in range(SIDE)]))
