"""A matrix that lies in several places: some of its bands stay in the pool, the others pass through the ring.

To the modules that it is bound to it is a tensor like any other. What can multiply with it band by band takes its ``pieces``
(native.Product); for everything else it is put together first, in memory that is used again for the next layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree


class Scratch:
    """Memory in which matrices of the group that is lent are put together."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._used = 0

    def begin(self) -> None:
        """Another group is lent: what was put together is over."""
        self._used = 0

    def take(self, nbytes: int, device: torch.device) -> torch.Tensor:
        """uint8, valid until :meth:`begin`."""
        if self._used == len(self._buffers):
            self._buffers.append(torch.empty(0, dtype=torch.uint8))
        if self._buffers[self._used].numel() < nbytes:
            self._buffers[self._used] = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self._used += 1
        return self._buffers[self._used - 1][:nbytes]


class Banded(torch.Tensor):
    """``pieces``: (rows, columns) each, one below the other. Without memory of its own: on meta, but for what it says of itself."""

    pieces: tuple[torch.Tensor, ...]
    _scratch: Scratch
    _whole: torch.Tensor | None

    @classmethod
    def of(cls, pieces: Sequence[torch.Tensor], scratch: Scratch) -> Banded:
        first = pieces[0]
        rows = sum(piece.shape[0] for piece in pieces)
        made = torch.empty(rows, *first.shape[1:], dtype=first.dtype, device="meta").as_subclass(cls)
        made.pieces, made._scratch, made._whole = tuple(pieces), scratch, None
        return made

    def together(self) -> torch.Tensor:
        """The matrix in one place, valid while its group is lent."""
        if self._whole is None:
            first = self.pieces[0]
            nbytes = sum(piece.numel() for piece in self.pieces) * first.itemsize
            whole = self._scratch.take(nbytes, first.device).view(first.dtype).view(-1, *first.shape[1:])
            at = 0
            for piece in self.pieces:
                whole[at : at + piece.shape[0]] = piece.detach()
                at += piece.shape[0]
            self._whole = whole.requires_grad_()  # places.py, NOTE [ parameters that require gradients ]
        return self._whole

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in _OF_ITSELF:
                return func(*args, **(kwargs or {}))
            args, kwargs = pytree.tree_map_only(Banded, Banded.together, (args, kwargs or {}))
            return func(*args, **kwargs)


#: What is answered without the values: attributes, as torch names them to __torch_function__, and methods.
_OF_ITSELF: frozenset[Any] = frozenset(
    [getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "requires_grad", "ndim", "itemsize")]
    + [getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "requires_grad_")]
)
