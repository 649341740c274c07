"""int4: half a byte a weight, and for each 32 of a row a scale and a minimum of a byte each.

    [step of scales fp32][step of minima fp32][scale uint8 × columns/32][minimum uint8 × columns/32][halves, 16 bytes for 32 columns]
    weight = half · (scale · step) − minimum · step

4.5 bits a weight. For each group scale and minimum are searched (the least squared error among SHRINKS of its range, each refitted to what was
rounded), then rounded to bytes of the row's steps, and the halves are rounded once more with what is stored.
"""

from __future__ import annotations

from typing import Final

import torch

from . import records
from .records import GROUP

#: Of a group's range.
SHRINKS: Final = (1.0, 0.95, 0.9, 0.84, 0.77, 0.68)
_MOST: Final = 255
#: Groups that are searched at a time: what is computed with stays in a processor's cache.
_AT_A_TIME: Final = 8192


class Int4:
    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        rows, columns = tensor.shape
        groups = columns // GROUP
        values = tensor.detach().reshape(rows * groups, GROUP)
        found = [_searched(some.t().float().contiguous()) for some in values.split(_AT_A_TIME)]
        scale, minimum = (torch.cat([pair[which] for pair in found]).view(rows, groups) for which in (0, 1))
        steps = [each.amax(dim=1, keepdim=True) / _MOST for each in (scale, minimum)]
        scale8, minimum8 = (_bytes(each, step) for each, step in zip((scale, minimum), steps, strict=True))
        stored = [(each.float() * step)[..., None] for each, step in zip((scale8, minimum8), steps, strict=True)]
        halves = _rounded(values.view(rows, groups, GROUP).float(), *stored).to(torch.uint8).view(rows, columns)
        return records.join("int4", [*steps, scale8, minimum8, records.halves(halves)], columns)

    def view(self, lies: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        rows, columns = shape
        groups = columns // GROUP
        one, two, scale, minimum, nibbles = records.split(
            "int4", lies, shape, (torch.float32, 1), (torch.float32, 1), (torch.uint8, groups), (torch.uint8, groups), (torch.uint8, columns // 2)
        )
        halves = records.unhalved(nibbles).view(rows, groups, GROUP).float()
        values = halves * (scale.float() * one)[..., None] - (minimum.float() * two)[..., None]
        return values.view(rows, columns).to(getattr(torch, dtype))


def _rounded(values: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    """The nearest of sixteen; where the scale is nought they are all the same."""
    return (values + minimum).mul_(torch.where(scale > 0, 1 / scale, 0.0)).round_().clamp_(0, 15)


def _bytes(values: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return (values / torch.where(step > 0, step, 1.0)).round().clamp(0, _MOST).to(torch.uint8)


def _searched(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum of each group of (GROUP, groups); a weight is half · scale − minimum, and neither is below nought."""
    low, high = values.amin(dim=0).clamp_(max=0), values.amax(dim=0).clamp_(min=0)
    middle, reach, mean = (low + high) / 2, high - low, values.mean(dim=0)
    best = torch.full_like(low, torch.inf)
    scale, minimum = torch.zeros_like(low), torch.zeros_like(low)
    for shrink in SHRINKS:
        wide = reach * shrink
        halves = _rounded(values, wide / 15, wide / 2 - middle)
        about = halves.mean(dim=0)
        halves -= about
        spread = halves.square().sum(dim=0)
        slope = (halves * values).sum(dim=0)
        tried = torch.where(spread > 0, slope / spread, wide / 15).clamp_(min=0)
        under = (tried * about - mean).clamp_(min=0)
        error = (_rounded(values, tried, under).mul_(tried).sub_(under).sub_(values)).square_().sum(dim=0)
        better = error < best
        scale, minimum, best = torch.where(better, tried, scale), torch.where(better, under, minimum), torch.where(better, error, best)
    return scale, minimum
