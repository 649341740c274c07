"""raw: the dtype's own bytes, little-endian, in order. Exact, nothing to decode."""

from __future__ import annotations

import math

import torch


class Raw:
    def nbytes(self, dtype: str, shape: tuple[int, ...]) -> int:
        itemsize: int = getattr(torch, dtype).itemsize
        return math.prod(shape) * itemsize

    def pack(self, tensor: torch.Tensor) -> memoryview:
        flat = tensor.detach().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")

    def view(self, lies: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        return lies.view(getattr(torch, dtype)).view(shape)
