"""Linear layers whose rows do not depend on how many rows there are.

A matrix product of one row may be computed by another kernel than one of two, and a row in a full group of four by another than a row in
the remainder; how large a group must be depends on the processor, the dtype and the weight's shape (narrow weights are the worst).
So in ``invariant`` mode rows are padded to whole groups, of the size that the probe found to be enough for that shape on this processor.
Where nothing was enough, or nothing was tried, every product is made of exactly FIXED rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import overrides
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from . import cpu

#: Group sizes to try, smallest first.
GROUPS: Final = (1, 2, 4, 8, 16)
#: The group where none of them makes rows independent: then every product has exactly so many rows.
FIXED: Final = 16
#: Numbers of rows that the probe compares; for large weights those up to _FEW where a cpu has no instructions for the dtype and would take minutes.
#: Where it has them, what multiplies 32 rows may be another kernel than what multiplies 35.
TRIED_ROWS: Final = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 48, 64, 65, 96, 128, 160)
_FEW: Final = 32
_LARGE: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Grouping:
    """How rows are grouped: padded to a multiple of ``rows``, or (``fixed``) computed ``rows`` at a time."""

    rows: int
    fixed: bool


#: A row needs no other.
ALONE: Final = Grouping(1, fixed=False)
#: What is always right.
BY_FIXED: Final = Grouping(FIXED, fixed=True)


#: Gives a linear layer's result, whose rows are independent already, or None where it cannot.
Independent = Callable[..., torch.Tensor | None]


class Watch:
    """What is entered around every sweep of ``invariant``: :class:`GroupedRows`, but where it is known to change nothing.

    That is so for a sweep of one token where a row alone is a whole group for every weight, and no function of such a sweep needed anything else:
    the shapes of the others do not depend on the token or on its position. Attention looks after itself.
    """

    def __init__(self, table: Mapping[tuple[int, int], Grouping], product: Independent | None = None) -> None:
        self._table = table
        self._product = product
        self._rows_stand_alone = all(grouping == ALONE for grouping in table.values())
        self._as_they_come: set[tuple[int, int]] = set()

    @contextmanager
    def around(self, tokens: int, wanted: int) -> Iterator[None]:
        """For a sweep of so many tokens, of which so many give logits."""
        if (tokens, wanted) in self._as_they_come:
            yield
            return
        with GroupedRows(self._table, self._product) as grouping:
            yield
        if tokens == 1 and self._rows_stand_alone and not grouping.grouped:
            self._as_they_come.add((tokens, wanted))


class GroupedRows(TorchFunctionMode):
    """While entered, every product of rows with a weight matrix is computed in groups.

    ``table`` has the grouping for linear layers by their weight's (out, in) shape; everything else is computed FIXED rows at a time. What
    ``product(input, weight, bias)`` gives of linear layers is taken as it is.
    Looking at a function costs several microseconds, and a sweep calls thousands: what is independent already runs :func:`unwatched`.
    """

    def __init__(self, table: Mapping[tuple[int, int], Grouping], product: Independent | None = None) -> None:
        super().__init__()
        self._table = table
        self._product = product
        #: whether anything has been computed otherwise than it was called
        self.grouped = False

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear and self._product is not None and (out := self._product(*args, **kwargs or {})) is not None:
            self.grouped = True
            return out
        handler = _HANDLERS.get(func)
        if handler is not None and (out := handler(self._table, func, args, kwargs or {})) is not None:
            self.grouped = True
            return out
        return func(*args, **kwargs) if kwargs else func(*args)


def unwatched() -> AbstractContextManager[None]:
    """While entered, functions run as they are: for what reads no rows, or whose shapes do not depend on what else is in the sweep."""
    guard: AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return guard


@contextmanager
def apart() -> Iterator[None]:
    """While entered, nothing of what a sweep has entered is: another model is computed in the middle of it."""
    with torch._C._EnableTorchFunction():
        modes = [overrides._pop_mode() for _ in range(torch._C._len_torch_function_stack())]
        try:
            yield
        finally:
            for mode in reversed(modes):
                overrides._push_mode(mode)


#: Elementwise functions have one implementation for whole vectors and another for the remainder, of a row as of a thread's share.
#: This many elements are whole vectors on every processor, and up to _ONE_THREAD of them are one thread's share.
VECTOR: Final = 64
_ONE_THREAD: Final = 32768

Table = Mapping[tuple[int, int], Grouping]
Arguments = tuple[Any, ...]


# Each gives None where the function may run as it is.


def _linear(table: Table, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Any:
    if len(args) < 2:
        return None
    return _in_groups(table.get(tuple(args[1].shape), BY_FIXED), lambda x: func(x, *args[1:], **kwargs), args[0])


def _product(_table: Table, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Any:
    if len(args) == 2 and args[1].dim() == 2:
        return _in_groups(BY_FIXED, lambda x: func(x, args[1]), args[0])
    if len(args) == 2 and args[0].dim() == args[1].dim() == 3:  # experts, all tokens each
        return _batches_in_groups(lambda x: func(x, args[1]), args[0])
    return None


def _added_product(_table: Table, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Any:
    if len(args) == 3 and args[0].dim() == 1:
        return _in_groups(BY_FIXED, lambda x: func(args[0], x, args[2], **kwargs), args[1])
    return None


def _elementwise(_table: Table, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Any:
    if not args or _whole(args[0]):
        return None
    return _by_whole_vectors(lambda x: func(x, *args[1:], **kwargs), args[0])


def _elementwise_of_halves(table: Table, func: Any, args: Arguments, kwargs: dict[str, Any]) -> Any:
    """What is the same for vectors and remainders in fp32 and not below."""
    return None if args[0].dtype == torch.float32 else _elementwise(table, func, args, kwargs)


#: What depends on how many rows there are, and how it is called so that it does not.
_HANDLERS: Final[Mapping[Any, Callable[[Table, Any, Arguments, dict[str, Any]], Any]]] = {
    functional.linear: _linear,
    **dict.fromkeys(
        (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm), _product
    ),
    torch.addmm: _added_product,
    **dict.fromkeys(
        (
            torch.sigmoid, torch.Tensor.sigmoid, functional.sigmoid, torch.tanh, torch.Tensor.tanh, functional.tanh, torch.exp,
            torch.Tensor.exp, functional.silu, functional.gelu, functional.softplus, torch.cos, torch.Tensor.cos, torch.sin,
            torch.Tensor.sin, torch.erf, torch.Tensor.erf, torch.exp2, torch.Tensor.exp2, functional.mish, functional.elu, functional.celu,
            functional.selu,
        ), _elementwise,
    ),
    **dict.fromkeys((torch.rsqrt, torch.Tensor.rsqrt), _elementwise_of_halves),
}  # fmt: skip


def _whole(x: torch.Tensor) -> bool:
    """Whether an elementwise function of x has no remainder anywhere."""
    return x.numel() % VECTOR == 0 and x.numel() <= _ONE_THREAD and x.is_contiguous()


def _by_whole_vectors(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """``function(x)`` of an elementwise function, without remainders."""
    flat = x.reshape(-1)
    size = flat.numel()
    if size % VECTOR:
        flat = functional.pad(flat, (0, -size % VECTOR))
    shares = [function(share) for share in flat.split(_ONE_THREAD)]
    return (shares[0] if len(shares) == 1 else torch.cat(shares))[:size].view(x.shape)


def _in_groups(grouping: Grouping, product: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor | None:
    """``product(x)`` for x of shape (…, width), by whole groups of rows; None where x is whole groups."""
    rows = x.numel() // x.shape[-1] if x.dim() > 1 else 1
    padding = -rows % grouping.rows
    if rows == 0 or (padding == 0 and (not grouping.fixed or rows == grouping.rows)):
        return None
    flat = x.reshape(rows, x.shape[-1])
    if padding:
        flat = torch.cat([flat, flat.new_zeros(padding, x.shape[-1])])
    out = torch.cat([product(group) for group in flat.split(grouping.rows)]) if grouping.fixed else product(flat)
    return out[:rows].reshape(*x.shape[:-1], out.shape[-1])


def _batches_in_groups(product: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor | None:
    """``product(x)`` for x of shape (batches, rows, width), FIXED rows of every batch at a time."""
    rows = x.shape[1]
    if rows == FIXED:
        return None
    padded = functional.pad(x, (0, 0, 0, -rows % FIXED))
    return torch.cat([product(group) for group in padded.split(FIXED, dim=1)], dim=1)[:, :rows].contiguous()


def find_groupings(
    shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device
) -> dict[tuple[int, int], Grouping]:
    """For linear layers with weights of these (out, in) shapes: the smallest grouping that makes rows independent here."""
    return {shape: _find_grouping(shape, dtype, device) for shape in shapes}


def _find_grouping(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Grouping:
    size = shape[0] * shape[1]
    quick = size < _LARGE or device.type != "cpu" or cpu.multiplies(dtype)
    tried = [rows for rows in TRIED_ROWS if quick or rows <= _FEW]
    # Differences are one bit in few rows: small shapes, which show fewest, are tried more often.
    draws = range(max(1, min(16, _LARGE // size)))
    for rows in GROUPS:
        if all(_independent(*_draw(shape, max(tried), dtype, device, seed), rows, tried) for seed in draws):
            return Grouping(rows, fixed=False)
    return BY_FIXED


def _draw(shape: tuple[int, int], rows: int, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows ``(rows, in)`` and a weight ``(out, in)``, random."""
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(*shape, generator=generator) / shape[1] ** 0.5).to(device, dtype)
    return torch.randn(rows, shape[1], generator=generator).to(device, dtype), weight


def _independent(x: torch.Tensor, weight: torch.Tensor, size: int, tried: Sequence[int]) -> bool:
    """Whether any number of whole groups, and any place in its group, gives each row the bits it has in one group alone."""

    def product(rows: torch.Tensor) -> torch.Tensor:
        grouped = _in_groups(Grouping(size, fixed=False), lambda y: functional.linear(y, weight), rows)
        return functional.linear(rows, weight) if grouped is None else grouped

    alone = torch.cat([product(group) for group in x.split(size)])
    for rows in tried:
        for first in {0, min(1, len(x) - rows)}:
            if not torch.equal(product(x[first : first + rows]), alone[first : first + rows]):
                return False
    return True
