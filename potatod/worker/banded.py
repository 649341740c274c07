"""A matrix that is not simply there: some of its bands stay in the pool and others pass through the ring, or it is stored in another way.

To the modules that it is bound to it is a tensor like any other. What can multiply with it piece by piece takes its ``pieces``
(native.Product); for everything else its values are put together first, in memory that is used again for the next layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch.nn import functional
from torch.utils import _pytree as pytree

from potatod import forms, schemes

#: Weights that are decoded at a time where no code of ours does it.
AT_A_TIME: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a matrix that lie behind each other."""

    scheme: str
    #: uint8; of a raw matrix that is there as it is, that matrix
    lies: torch.Tensor
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, matrix: torch.Tensor) -> Piece:
        """A matrix that is there as it is, contiguous."""
        return cls("raw", matrix, matrix.dtype, matrix.shape)

    def some(self) -> Iterator[Piece]:
        """The same in pieces of at most about AT_A_TIME weights, where its scheme allows: to decode takes several times their values."""
        rows, columns = self.shape[0], self.shape[-1]
        step = max(1, AT_A_TIME // columns)
        if self.scheme == "raw" or forms.has_more(self.scheme) or rows <= step:
            yield self
            return
        record = forms.record_bytes(self.scheme, columns)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield replace(self, lies=self.lies[first * record : last * record], shape=(last - first, columns))

    def values(self) -> torch.Tensor:
        return schemes.get(self.scheme).view(self.lies, str(self.dtype).removeprefix("torch."), self.shape)


class Scratch:
    """Memory in which matrices of the group that is lent are put together."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._used = 0
        #: groups that have been lent
        self.lent = 0

    def begin(self) -> None:
        """Another group is lent: what was put together is over."""
        self._used = 0
        self.lent += 1

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

    pieces: tuple[Piece, ...]
    _scratch: Scratch
    _whole: torch.Tensor | None
    #: what of the scratch's ``lent`` it was put together for
    _lent: int

    @classmethod
    def of(cls, pieces: Sequence[Piece], scratch: Scratch) -> Banded:
        first = pieces[0]
        rows = sum(piece.shape[0] for piece in pieces)
        made = torch.empty(rows, *first.shape[1:], dtype=first.dtype, device="meta").as_subclass(cls)
        made.pieces, made._scratch, made._whole, made._lent = tuple(pieces), scratch, None, -1
        return made

    def to_device(self, device: torch.device) -> Banded:
        """The same, its bytes there."""
        return Banded.of([replace(piece, lies=piece.lies.to(device)) for piece in self.pieces], Scratch())

    def together(self) -> torch.Tensor:
        """The matrix's values in one place, valid while its group is lent."""
        if self._whole is None or self._lent != self._scratch.lent:
            first = self.pieces[0]
            nbytes = self.numel() * first.dtype.itemsize
            whole = self._put_into(self._scratch.take(nbytes, first.lies.device).view(first.dtype).view(-1, *first.shape[1:]))
            self._lent = self._scratch.lent
            self._whole = whole.requires_grad_()  # places.py, NOTE [ parameters that require gradients ]
        return self._whole

    def values(self) -> torch.Tensor:
        """The same in memory of its own."""
        first = self.pieces[0]
        return self._put_into(torch.empty(tuple(self.shape), dtype=first.dtype, device=first.lies.device))

    def _put_into(self, whole: torch.Tensor) -> torch.Tensor:
        at = 0
        for piece in (some for every in self.pieces for some in every.some()):
            whole[at : at + piece.shape[0]] = piece.values().detach()
            at += piece.shape[0]
        return whole

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in _OF_ITSELF:
                return func(*args, **(kwargs or {}))
            args, kwargs = pytree.tree_map_only(Banded, Banded.together, (args, kwargs or {}))
            return func(*args, **kwargs)


def memory_of(weight: torch.Tensor) -> list[torch.Tensor]:
    """What its values lie in."""
    return [piece.lies for piece in weight.pieces] if isinstance(weight, Banded) else [weight]


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear``; of a matrix in another scheme some rows' values at a time, so that those of the whole are never there. But what
    is bf16 written in another way is to have the bits of bf16, and those depend on the whole: that is there for as long as it takes."""
    if type(weight) is not Banded or any(piece.scheme == "raw" for piece in weight.pieces):
        return functional.linear(x, weight, bias)
    if any(forms.exact(piece.scheme) for piece in weight.pieces):
        return functional.linear(x, weight.values(), bias)
    outs, at = [], 0
    for piece in (some for every in weight.pieces for some in every.some()):
        end = at + piece.shape[0]
        outs.append(functional.linear(x, piece.values(), None if bias is None else bias[at:end]))
        at = end
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)


#: What is answered without the values: attributes, as torch names them to __torch_function__, and methods.
_OF_ITSELF: frozenset[Any] = frozenset(
    [getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "requires_grad", "ndim", "itemsize")]
    + [getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "requires_grad_")]
)
