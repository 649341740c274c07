"""q4_0 … q6_k: the values of GGUF's blocks as they are, in planes that vector operations decode.

A GGUF block has everything of 32 or 256 columns: scales, halves, higher bits. Here each of them lies together for the whole row:

    q4_0  [d]              [halves]               weight = (half − 8) · d
    q4_1  [d][m]           [halves]               weight = half · d + m
    q5_0  [d]              [halves][fifth bits]   weight = (value − 16) · d
    q5_1  [d][m]           [halves][fifth bits]   weight = value · d + m
    q8_0  [d]              [int8]                 weight = integer · d
    q4_k  [d][dmin][s][m]  [halves]               weight = half · (d · s) − dmin · m
    q5_k  [d][dmin][s][m]  [halves][fifth bits]   weight = value · (d · s) − dmin · m
    q6_k  [d][s]           [halves][higher pairs] weight = (value − 32) · (d · s)

d and m of the first five are fp16 for each 32 columns. Of the K kinds d and dmin are fp16 for each 256; s and m are a uint8 for each 32, of q6_k an
int8 for each 16. A row's halves are those of records.py; fifth bits a bit a column in their order; of 32 columns' 8 bytes of pairs byte i has those
of columns i, 8 + i, 16 + i and 24 + i, lowest first. All is computed in fp32 in the order written here, as gguf does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from . import records
from .records import GROUP

Array = npt.NDArray[Any]

_SUPER: Final = 256


@dataclass(frozen=True, slots=True)
class Kind:
    bits: int
    #: a scale for each 256 columns, and smaller ones within
    k: bool
    minimum: bool

    @property
    def share(self) -> int:
        """Columns that share the smallest scale."""
        return 16 if self.bits == 6 else GROUP


class Ggml:
    def __init__(self, name: str, kind: Kind) -> None:
        self.name = name
        self.kind = kind

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        raise TypeError(f"{self.name} stores GGUF's blocks, not values")

    def planes(self, blocks: torch.Tensor) -> torch.Tensor:
        """Flat uint8 of ``blocks``, (rows, bytes) as they lie in a GGUF file."""
        rows = len(blocks)
        columns, fields = _taken_apart(self.name, blocks.numpy())
        values = torch.from_numpy(fields.pop("values")).view(rows, columns)
        return self.joined([torch.from_numpy(np.ascontiguousarray(field)).view(rows, -1) for field in fields.values()], values)

    def joined(self, fields: Sequence[torch.Tensor], values: torch.Tensor) -> torch.Tensor:
        """Flat uint8 of what stands before the integers, in the order of the record, and of the integers, ``(rows, columns)``."""
        kind, out, columns = self.kind, list(fields), values.shape[1]
        if kind.bits == 8:
            out.append(values.to(torch.int8))
        else:
            out.append(records.halves(values & 15))
        if kind.bits == 5:
            out.append(_bits_of(values >> 4))
        if kind.bits == 6:
            out.append(_pairs_of(values >> 4))
        return records.join(self.name, out, columns)

    def view(self, lies: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        rows, columns = shape
        kind = self.kind
        blocks = columns // (_SUPER if kind.k else GROUP)
        fields = [(torch.float16, blocks)] * (2 if kind.minimum else 1)
        if kind.k:
            fields.append((torch.int8 if kind.bits == 6 else torch.uint8, columns // kind.share))
        if kind.k and kind.minimum:
            fields.append((torch.uint8, columns // kind.share))
        fields.append((torch.int8, columns) if kind.bits == 8 else (torch.uint8, columns // 2))
        if kind.bits in (5, 6):
            fields.append((torch.uint8, columns // (8 if kind.bits == 5 else 4)))
        found = iter(records.split(self.name, lies, shape, *fields))
        scale = next(found).float()
        minimum = next(found).float() if kind.minimum else None
        if kind.k:
            scale = _within(scale, next(found))
            if minimum is not None:
                minimum = -_within(minimum, next(found))
        values = next(found)
        if kind.bits < 8:
            values = records.unhalved(values)
            if kind.bits == 5:
                values = values | _bits(next(found)) << 4
            if kind.bits == 6:
                values = values | _pairs(next(found)) << 4
        numbers = values.float()
        if kind.bits < 8 and not kind.minimum:
            numbers -= 1 << (kind.bits - 1)
        numbers = numbers.view(rows, columns // kind.share, kind.share) * scale[..., None]
        if minimum is not None:
            numbers += minimum[..., None]
        return numbers.view(rows, columns).to(getattr(torch, dtype))


def _within(steps: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The scales of 256 columns times their step."""
    rows, blocks = steps.shape
    return (scales.float().view(rows, blocks, -1) * steps[..., None]).view(rows, -1)


def _bits_of(values: torch.Tensor) -> torch.Tensor:
    rows, columns = values.shape
    weights = 1 << torch.arange(8, dtype=torch.uint8)
    return (values.view(rows, columns // 8, 8) * weights).sum(dim=2, dtype=torch.uint8)


def _bits(packed: torch.Tensor) -> torch.Tensor:
    rows = len(packed)
    return (packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1).view(rows, -1)


def _pairs_of(values: torch.Tensor) -> torch.Tensor:
    rows, columns = values.shape
    four = values.view(rows, columns // GROUP, 4, 8)
    return (four[:, :, 0] | four[:, :, 1] << 2 | four[:, :, 2] << 4 | four[:, :, 3] << 6).view(rows, -1)


def _pairs(packed: torch.Tensor) -> torch.Tensor:
    rows, count = packed.shape
    eight = packed.view(rows, count // 8, 1, 8)
    return torch.cat([eight >> 2 * number & 3 for number in range(4)], dim=2).view(rows, -1)


def _taken_apart(name: str, blocks: Array) -> tuple[int, dict[str, Array]]:
    """Columns; scales in the order of the record, and ``values`` (rows, columns) uint8 (int8 for q8_0)."""
    rows = len(blocks)
    nbytes = BLOCK_BYTES[name]
    each = blocks.reshape(rows, -1, nbytes)
    count = each.shape[1]
    if name in ("q4_k", "q5_k"):
        columns = count * _SUPER
        scales, minima = _six_bits(each[:, :, 4:16])
        at = 48 if name == "q5_k" else 16
        low = each[:, :, at : at + 128].reshape(rows, count, 4, 32)
        values = np.stack([low & 15, low >> 4], axis=3).reshape(rows, count, 8, 32)
        if name == "q5_k":
            high = each[:, :, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
            values = values | high << 4
        return columns, {
            "d": _half(each, 0), "dmin": _half(each, 2), "s": scales.reshape(rows, -1), "m": minima.reshape(rows, -1),
            "values": values.reshape(rows, columns),
        }  # fmt: skip
    if name == "q6_k":
        columns = count * _SUPER
        low = each[:, :, :128].reshape(rows, count, 2, 1, 64) >> np.array([0, 4], dtype=np.uint8)[:, None] & 15
        high = each[:, :, 128:192].reshape(rows, count, 2, 1, 32) >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None] & 3
        values = low.reshape(rows, columns) | high.reshape(rows, columns) << 4
        return columns, {"d": _half(each, 208), "s": each[:, :, 192:208].reshape(rows, -1).view(np.int8), "values": values}
    columns = count * GROUP
    fields = {"d": _half(each, 0)}
    at = 2
    if name in ("q4_1", "q5_1"):
        fields["m"] = _half(each, at)
        at += 2
    if name == "q8_0":
        return columns, fields | {"values": np.ascontiguousarray(each[:, :, at:]).view(np.int8).reshape(rows, columns)}
    fifth: Array = np.zeros((), dtype=np.uint8)
    if name in ("q5_0", "q5_1"):
        fifth = np.unpackbits(np.ascontiguousarray(each[:, :, at : at + 4]), axis=2, bitorder="little") << 4
        at += 4
    nibbles = each[:, :, at : at + 16]
    values = np.concatenate([nibbles & 15, nibbles >> 4], axis=2) | fifth
    return columns, fields | {"values": values.reshape(rows, columns)}


def _half(blocks: Array, at: int) -> Array:
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)[..., 0]


def _six_bits(packed: Array) -> tuple[Array, Array]:
    """12 bytes → the 8 scales and 8 minima of 256 columns, six bits each: the first four of both whole, of the others the upper two bits lie above."""
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 2 & 0x30)], axis=-1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 2 & 0x30)], axis=-1)
    return scales, minima


#: Of a block in a GGUF file.
BLOCK_BYTES: Final = {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34, "q4_k": 144, "q5_k": 176, "q6_k": 210}

GGML: Final = {
    name: Ggml(name, kind)
    for name, kind in {
        "q4_0": Kind(4, k=False, minimum=False),
        "q4_1": Kind(4, k=False, minimum=True),
        "q5_0": Kind(5, k=False, minimum=False),
        "q5_1": Kind(5, k=False, minimum=True),
        "q8_0": Kind(8, k=False, minimum=False),
        "q4_k": Kind(4, k=True, minimum=True),
        "q5_k": Kind(5, k=True, minimum=True),
        "q6_k": Kind(6, k=True, minimum=False),
    }.items()
}
