"""Rows as records of bytes: fields behind each other, padded. What the other schemes are written with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch.nn import functional

from potatod import forms

#: Columns that share a scale.
GROUP: Final = 32


def join(scheme: str, fields: Sequence[torch.Tensor], columns: int) -> torch.Tensor:
    """Flat uint8: of each row the bytes of every field, ``(rows, …)`` each."""
    rows = torch.cat([field.contiguous().view(torch.uint8) if field.dtype != torch.uint8 else field for field in fields], dim=1)
    return functional.pad(rows, (0, forms.record_bytes(scheme, columns) - rows.shape[1])).reshape(-1)


def split(scheme: str, lies: torch.Tensor, shape: Sequence[int], *fields: tuple[torch.dtype, int]) -> list[torch.Tensor]:
    """``(rows, count)`` of each field's dtype, in the order of the record."""
    rows, columns = shape
    length = forms.record_bytes(scheme, columns)
    records = lies[: rows * length].view(rows, length)
    out, at = [], 0
    for dtype, count in fields:
        out.append(records[:, at : at + count * dtype.itemsize].contiguous().view(dtype))
        at += count * dtype.itemsize
    return out


def halves(values: torch.Tensor) -> torch.Tensor:
    """``(rows, columns)`` of 0 … 15 → uint8 ``(rows, columns / 2)``: of each 32 columns the first 16 are the lower halves of 16 bytes."""
    rows, columns = values.shape
    low, high = values.view(rows, columns // GROUP, 2, GROUP // 2).unbind(2)
    return (low | high << 4).view(rows, columns // 2)


def unhalved(nibbles: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`halves`."""
    rows, half = nibbles.shape
    pairs = nibbles.view(rows, half * 2 // GROUP, 1, GROUP // 2)
    return torch.cat([pairs & 15, pairs >> 4], dim=2).view(rows, 2 * half)
