"""Matrices of small integers, some columns of a row with a scale: what gptq.py and compressed_tensors.py find in checkpoints.

weight = (integer − zero) · scale, computed in fp32 and rounded once. Where a scheme of GGUF's blocks says exactly that, it may be kept so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, Final

import torch

from potatod.errors import ModelDataError, UnsupportedModel
from potatod.schemes import GGML

from .checkpoint import STORED_NAMES, Lazy

INTEGERS: Final = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
#: Rows that are multiplied out at a time, a multiple of what a word holds.
_AT_A_TIME: Final = 1024
#: Columns of a block of GGUF's.
_BLOCK: Final = 32



@dataclass(frozen=True, slots=True)
class Meaning:
    """Of one matrix's integers."""

    bits: int
    #: (out, groups)
    scales: torch.Tensor
    #: (out, groups) int16
    zeros: torch.Tensor
    #: (in): the group of each column
    group_of: torch.Tensor


@dataclass(frozen=True)
class GroupedTensor:
    """A matrix of integers with what they mean."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    #: ``integers(first, last)`` reads rows of (out, in) int16, as they are packed
    integers: Callable[[int, int], torch.Tensor]
    #: reads the rest
    meaning: Callable[[], Meaning]

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        return self.rows(0, self.shape[0])

    def rows(self, first: int, last: int) -> torch.Tensor:
        meaning = self._checked()
        out = torch.empty(last - first, self.shape[1], dtype=self.dtype)
        for at in range(first, last, _AT_A_TIME):  # in fp32 they are eight times as large
            to = min(at + _AT_A_TIME, last)
            scales, zeros = (each[at:to][:, meaning.group_of] for each in (meaning.scales, meaning.zeros))
            out[at - first : to - first] = ((self.integers(at, to) - zeros) * scales.float()).to(self.dtype)
        return out

    def get_dtype(self) -> str:
        return STORED_NAMES[self.dtype]

    def scheme(self) -> str | None:
        """See checkpoint.Blocks."""
        return _scheme(self._checked())

    def planes(self) -> torch.Tensor:
        """See checkpoint.Blocks."""
        meaning, rows = self._checked(), self.shape[0]
        name, groups = str(_scheme(meaning)), meaning.group_of[::_BLOCK]
        planes = []
        for at in range(0, rows, _AT_A_TIME):
            some = slice(at, min(at + _AT_A_TIME, rows))
            scales, zeros, integers = meaning.scales[some][:, groups], meaning.zeros[some][:, groups], self.integers(some.start, some.stop)
            fields = [scales.half()] if name != "q4_1" else [scales.half(), (-zeros * scales.double()).half()]
            planes.append(GGML[name].joined(fields, (integers - 128).to(torch.int8) if name == "q8_0" else integers.to(torch.uint8)))
        return torch.cat(planes)

    def _checked(self) -> Meaning:
        meaning, (outputs, columns) = self.meaning(), self.shape
        group_of, shapes = meaning.group_of, f"scales {list(meaning.scales.shape)} and zeros {list(meaning.zeros.shape)}"
        if meaning.scales.shape[0] != outputs or meaning.zeros.shape != meaning.scales.shape or group_of.shape != (columns,):
            raise ModelDataError(f"{self.name}: {shapes} do not fit {list(self.shape)} weights")
        if not 0 <= int(group_of.min()) <= int(group_of.max()) < meaning.scales.shape[1]:
            raise ModelDataError(f"{self.name}: columns belong to groups {int(group_of.min())} to {int(group_of.max())}, and there are {shapes}")
        return meaning


def _scheme(meaning: Meaning) -> str | None:
    """That holds a matrix exactly."""
    by_blocks = meaning.group_of.view(-1, _BLOCK) if len(meaning.group_of) % _BLOCK == 0 else None
    if by_blocks is None or not torch.equal(by_blocks, by_blocks[:, :1].expand_as(by_blocks)) or not _in_fp16(meaning.scales.double()):
        return None
    if meaning.bits == 8 and bool((meaning.zeros == 128).all()):
        return "q8_0"
    if meaning.bits != 4:
        return None
    if bool((meaning.zeros == 8).all()):
        return "q4_0"
    return "q4_1" if _in_fp16(-meaning.zeros * meaning.scales.double()) else None


def _in_fp16(values: torch.Tensor) -> bool:
    return torch.equal(values.half().double(), values)


def one_of(where: Path, key: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise UnsupportedModel(
            f'{where}: its weights are quantised with "{key}": {value!r}, and {", ".join(map(str, known))} can be read; take the original '
            "bf16 or fp16 checkpoint, or a GGUF file"
        )


Found = tuple[dict[str, Lazy], set[str]]


def sizes_of(said: list[Any], where: object) -> tuple[int, ...]:
    """Columns that groups have, as a config says it: what is nought or below means all."""
    if not all(size is None or type(size) is int for size in said):
        raise ModelDataError(f'{where}: "group_size" must be a whole number')
    return tuple(size for size in said if size and size > 0)


def groups_of(g_idx: Lazy | None, stem: str, columns: int, groups: int, sizes: tuple[int, ...]) -> torch.Tensor:
    """The group of each column."""
    if g_idx is not None:
        if g_idx.dtype not in INTEGERS or tuple(g_idx.shape) != (columns,):
            raise ModelDataError(f"{stem}: {list(g_idx.shape)} groups of columns of {g_idx.get_dtype()}, and there are {columns} columns")
        if bool(((found := g_idx[...].long()) != -1).any()):  # all of them −1: in order
            return found
    size = next((size for size in sizes if -(-columns // size) == groups), None)
    if size is None and columns % groups:
        raise ModelDataError(f"{stem}: {groups} groups for {columns} columns, and nothing says how long they are")
    return torch.arange(columns) // (size or columns // groups)


def part(tensors: Mapping[str, Lazy], stem: str, end: str) -> Lazy:
    if (found := tensors.get(f"{stem}.{end}")) is None:
        raise ModelDataError(f"{stem}.{end} is missing: the checkpoint is incomplete")
    return found


def matrix(tensors: Mapping[str, Lazy], stem: str, end: str, *dtypes: torch.dtype) -> Lazy:
    found = part(tensors, stem, end)
    if found.dtype not in dtypes or len(found.shape) != 2 or 0 in found.shape:
        names = " or ".join(STORED_NAMES[dtype] for dtype in dtypes)
        raise ModelDataError(f"{stem}.{end} is {list(found.shape)} of {found.get_dtype()}, and should be a matrix of {names}")
    return found


def fits(stem: str, tensor: Lazy, shape: tuple[int, int]) -> None:
    if tuple(tensor.shape) != shape:
        raise ModelDataError(f"{stem}: a tensor of {list(tensor.shape)} words where {list(shape)} belong")


def unpacked(words: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """(rows, words) int32 → (rows, integers) int16, the lowest bits first; ``order``: where a word's integers belong."""
    count = 32 // bits
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    out = (words.contiguous()[..., None] >> shifts & ((1 << bits) - 1)).short()
    if order is not None:
        out = out[..., torch.tensor(order).argsort()]
    return out.view(len(words), words.shape[1] * count)
