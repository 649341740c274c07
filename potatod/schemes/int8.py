"""int8: a signed byte a weight, an fp32 scale a row.

    [scale fp32][int8 × columns]        weight = integer · scale

The scale is the one of SHRINKS of the largest weight that gives the least squared error: clipping a few far ones serves the many.
"""

from __future__ import annotations

from typing import Final

import torch

from . import records

#: Of the scale with which the largest weight of the row is 127.
SHRINKS: Final = (1.0, 0.95, 0.9, 0.84, 0.77, 0.7)
#: Weights that are computed with at a time: they stay in a processor's cache.
_AT_A_TIME: Final = 1 << 18


class Int8:
    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([_packed(some.detach().float()) for some in tensor.split(max(1, _AT_A_TIME // tensor.shape[1]))])

    def view(self, lies: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        scale, integers = records.split("int8", lies, shape, (torch.float32, 1), (torch.int8, shape[1]))
        return (integers.float() * scale).to(getattr(torch, dtype))


def _packed(values: torch.Tensor) -> torch.Tensor:
    largest = values.abs().amax(dim=1, keepdim=True)
    whole = torch.where(largest > 0, largest / 127, 1.0)
    scale, best = whole, torch.full_like(whole, torch.inf)
    for shrink in SHRINKS:
        tried = whole * shrink
        error = _integers(values, tried).mul_(tried).sub_(values).square_().sum(dim=1, keepdim=True)
        scale, best = torch.where(error < best, tried, scale), torch.minimum(error, best)
    return records.join("int8", [scale, _integers(values, scale).to(torch.int8)], values.shape[1])


def _integers(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (values * (1 / scale)).round_().clamp_(-127, 127)
