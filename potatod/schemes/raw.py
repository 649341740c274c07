"""raw: the dtype's own bytes, little-endian, in order. Exact, nothing to decode."""

from __future__ import annotations

import torch


class Raw:
    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

    def view(self, lies: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        return lies.view(getattr(torch, dtype)).view(shape)
