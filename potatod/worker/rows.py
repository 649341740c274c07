"""Linear layers whose rows do not depend on how many rows there are.

A matrix product of one row may be computed by another kernel than one of two, and a row in a full group of four by another than a row in
the remainder. So in ``invariant`` mode rows are padded to whole groups (of a size that the probe found to be enough on this processor), or,
where nothing is enough, every product is made of exactly one group at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

#: Group sizes to try, smallest first.
GROUPS: Final = (1, 2, 4, 8, 16)
#: The group where none of them makes rows independent: then every product has exactly so many rows.
FIXED: Final = 16
#: Numbers of rows that the probe compares.
TRIED_ROWS: Final = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 48, 64, 65, 96, 128, 160)


@dataclass(frozen=True, slots=True)
class Grouping:
    """How rows are grouped: padded to a multiple of ``rows``, or (``fixed``) computed ``rows`` at a time."""

    rows: int
    fixed: bool


class GroupedRows(TorchFunctionMode):
    """While entered, every product of rows with a weight matrix is computed by :class:`Grouping`'s rule."""

    def __init__(self, grouping: Grouping) -> None:
        super().__init__()
        self._grouping = grouping

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear and len(args) >= 2:
            return grouped(self._grouping, lambda x: func(x, *args[1:], **kwargs), args[0])
        if func in _MATMULS and len(args) == 2 and args[1].dim() == 2:
            return grouped(self._grouping, lambda x: func(x, args[1]), args[0])
        if func is torch.addmm and len(args) == 3 and args[0].dim() == 1:
            return grouped(self._grouping, lambda x: func(args[0], x, args[2], **kwargs), args[1])
        return func(*args, **kwargs)


_MATMULS: Final = frozenset({torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm})


def grouped(grouping: Grouping, product: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """``product(x)`` for x of shape (…, width), by whole groups of rows."""
    rows = x.numel() // x.shape[-1] if x.dim() > 1 else 1
    padding = -rows % grouping.rows
    if rows == 0 or (padding == 0 and (not grouping.fixed or rows == grouping.rows)):
        return product(x)
    flat = x.reshape(rows, x.shape[-1])
    if padding:
        flat = torch.cat([flat, flat.new_zeros(padding, x.shape[-1])])
    if grouping.fixed:
        out = torch.cat([product(group) for group in flat.split(grouping.rows)])
    else:
        out = product(flat)
    return out[:rows].reshape(*x.shape[:-1], out.shape[-1])


def find_grouping(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> Grouping:
    """The smallest grouping that makes rows independent for weights of these (out, in) shapes on this processor."""
    candidates = list(GROUPS)
    for index, (out_width, in_width) in enumerate(shapes):
        generator = torch.Generator().manual_seed(index)
        weight = (torch.randn(out_width, in_width, generator=generator) / in_width**0.5).to(device, dtype)
        x = torch.randn(max(TRIED_ROWS), in_width, generator=generator).to(device, dtype)
        candidates = [size for size in candidates if _independent(x, weight, size)]
    return Grouping(candidates[0], fixed=False) if candidates else Grouping(FIXED, fixed=True)


def _independent(x: torch.Tensor, weight: torch.Tensor, size: int) -> bool:
    """Whether any number of whole groups, and any place in its group, gives each row the bits it has in one group alone."""
    grouping = Grouping(size, fixed=False)
    alone = torch.cat([functional.linear(group, weight) for group in x.split(size)])
    for rows in TRIED_ROWS:
        for first in {0, min(1, len(x) - rows)}:
            out = grouped(grouping, lambda y: functional.linear(y, weight), x[first : first + rows])
            if not torch.equal(out, alone[first : first + rows]):
                return False
    return True
