"""KV: the keys and values of every sequence, and what else a family keeps of the tokens it has seen.

Where a sweep is packed (passes.py) transformers sees one sequence of all new tokens, ``[1, tokens]``; each :class:`Piece` of the pack belongs
to one sequence, and our attention stores its keys and values there. Two ways of storing them, by ``[worker] kernels``:

- :class:`Paged` (invariant, fast): blocks of tokens, which sequences that begin alike share;
- caches.AsTransformers (reference): transformers' own DynamicCache, so that shapes are the same as there.

Where each sequence has a pass of its own the family stores what it stores, in caches.Own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from potatod.kv_layout import BLOCK, blocks, first_kept, first_read


class SequenceKV(ABC):
    """What is kept of one sequence, all layers."""

    #: tokens that every layer has seen
    length: int = 0

    @abstractmethod
    def tensors(self) -> Iterator[torch.Tensor]:
        """Everything that is kept."""


class PackedKV(SequenceKV):
    """The keys and values of one sequence, stored by our attention."""

    @abstractmethod
    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor, window: int | None) -> None:
        """Takes (1, kv_heads, new_tokens, head_dim) each; ``window``: tokens that the newest one sees in this layer, None for all."""

    @abstractmethod
    def read(self, layer: int, first: int, end: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, kv_heads, end − first, head_dim) of keys and of values of these positions, in ``dtype``."""


#: Keys and values of BLOCK tokens, (kv_heads, BLOCK, head_dim) each.
Block = tuple[torch.Tensor, torch.Tensor]


class Paged(PackedKV):
    """Blocks, by the rules of potatod.kv_layout: zeros follow the last token up to the end of its block.

    A whole block may belong to several sequences, and nobody writes into it any more; the last one belongs to one. What nobody refers to is freed.
    """

    def __init__(self, across: bool = False, dtype: torch.dtype | None = None) -> None:
        """``across``: a block's keys lie dimension by dimension, (kv_heads, head_dim, BLOCK), as native_attention.py reads them; ``dtype``: what is
        kept is rounded to it, None: nothing is."""
        self._across = across
        self._dtype = dtype
        #: of each layer: its window, and its blocks from the first token on, None where the window has left one behind
        self._layers: dict[int, tuple[int | None, list[Block | None]]] = {}
        #: of each layer where keys lie across: where each of its blocks' keys and values lie
        self._addresses: dict[int, list[int]] = {}

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor, window: int | None) -> None:
        self._leave_behind(layer, window)
        self._write(layer, key, value)

    def room(self, layer: int, tokens: int, key: torch.Tensor, value: torch.Tensor, window: int | None) -> list[int]:
        """As :meth:`append`, but that whoever asks writes so many tokens, like these, where keys lie across: the :meth:`addresses` then."""
        kept = self._leave_behind(layer, window)
        while len(kept) * BLOCK < self.length + tokens:
            self._begin_like(layer, kept, key, value)
        return self._addresses[layer]

    def _leave_behind(self, layer: int, window: int | None) -> list[Block | None]:
        """What the window does; the layer's blocks."""
        kept = self._layers.setdefault(layer, (window, []))[1]
        for behind in range(first_kept(window, self.length) - 1, -1, -1):
            if kept[behind] is None:
                break
            kept[behind] = None
        return kept

    def _write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Behind what is there, and nothing is left behind for it."""
        kept = self._layers[layer][1]
        at, end = self.length, self.length + key.shape[2]
        if self._dtype is not None:
            key, value = (rounded(each, self._dtype) for each in (key, value))
        while at < end:
            if at // BLOCK == len(kept):
                self._begin_like(layer, kept, key, value)
            block = kept[at // BLOCK]
            assert block is not None, "the last block is never left behind"
            taken = min(end, at - at % BLOCK + BLOCK) - at
            for place, new in zip(self._by_token(block), (key, value), strict=True):
                place[:, at % BLOCK : at % BLOCK + taken] = new[0, :, at - self.length : at - self.length + taken]
            at += taken

    def read(self, layer: int, first: int, end: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        kept = self._layers[layer][1][first // BLOCK : blocks(end)]
        start = first - first % BLOCK
        if len(kept) == 1 and kept[0] is not None and not self._across:
            keys, values = (half[None, :, first - start : end - start].to(dtype) for half in kept[0])
            return keys, values
        found = [block and self._by_token(block) for block in kept]
        keys, values = (_joined(found, which, first - start, end - start, dtype) for which in (0, 1))
        return keys, values

    def addresses(self, layer: int) -> list[int]:
        """Of its blocks from the first on: where the keys lie, and the values."""
        return self._addresses[layer]

    def _by_token(self, block: Block) -> Block:
        """Views of (kv_heads, BLOCK, head_dim) each."""
        return (block[0].transpose(1, 2), block[1]) if self._across else block

    def _begin_like(self, layer: int, kept: list[Block | None], key: torch.Tensor, value: torch.Tensor) -> None:
        self._begin(layer, kept, (_empty_block(key.transpose(2, 3) if self._across else key, self._across), _empty_block(value)))

    def _begin(self, layer: int, kept: list[Block | None], block: Block | None) -> None:
        kept.append(block)
        if self._across:
            self._addresses.setdefault(layer, []).extend([half.data_ptr() for half in block] if block else (0, 0))

    def cut(self, length: int) -> None:
        """Forgets what lies behind the first ``length`` tokens. What is left there of a block is written over, and until then nothing attends to it."""
        for layer, (_, kept) in self._layers.items():
            del kept[blocks(length) :]
            del self._addresses.get(layer, [])[2 * blocks(length) :]
        self.length = length

    def reaches(self, length: int) -> bool:
        """Whether what is there is enough to go on behind the first ``length`` tokens."""
        return length <= self.length and all(
            len(kept) >= blocks(length) and all(block is not None for block in kept[first_read(window, length) : blocks(length)])
            for window, kept in self._layers.values()
        )

    @property
    def slides(self) -> bool:
        """Whether any layer leaves tokens behind."""
        return any(window is not None for window, _ in self._layers.values())

    def fork(self, length: int) -> Paged:
        """A sequence that begins with the first ``length`` tokens of this one."""
        other = Paged(self._across, self._dtype)
        other.length = length
        for layer in self._layers:
            other._fork_layer(layer, self, length)
        return other

    def _fork_layer(self, layer: int, of: Paged, length: int) -> None:
        """In this layer it begins with the first ``length`` tokens of the other one: whole blocks are shared, and the part of one is copied."""
        window, kept = of._layers[layer]
        first, whole = first_kept(window, length), length // BLOCK
        taken: list[Block | None] = [*([None] * first), *kept[first:whole]]
        if length % BLOCK:
            last = kept[whole]
            assert last is not None
            begun = torch.zeros_like(last[0]), torch.zeros_like(last[1])
            for place, half in zip(self._by_token(begun), self._by_token(last), strict=True):
                place[:, : length % BLOCK] = half[:, : length % BLOCK]
            taken.append(begun)
        assert all(block is not None for block in taken[first_read(window, length) :]), "what the window has left behind cannot be gone on from"
        self._forget_layer(layer)
        self._layers[layer] = window, []
        for block in taken:
            self._begin(layer, self._layers[layer][1], block)

    def _forget_layer(self, layer: int) -> None:
        self._layers.pop(layer, None)
        self._addresses.pop(layer, None)

    def tensors(self) -> Iterator[torch.Tensor]:
        for _, kept in self._layers.values():
            for block in kept:
                yield from block or ()

    def bytes_per_token(self) -> dict[int | None, int]:
        """By window: of the layers that have it."""
        sums: dict[int | None, int] = {}
        for window, kept in self._layers.values():
            if kept and kept[-1] is not None:
                sums[window] = sums.get(window, 0) + sum(half.numel() * half.itemsize for half in kept[-1]) // BLOCK
        return sums


class Branch(Paged):
    """Guesses beside the ones that a sequence goes on with in the same sweep: they begin with tokens whose keys and values that sweep itself brings.

    So it is a fork made layer by layer, as each layer brings them. Its blocks live as long as the layer is computed; what is left are its own
    tokens, which the sequence takes over where they turn out to be right.
    """

    def __init__(self, of: Paged, length: int) -> None:
        """It follows the first ``length`` tokens of the sequence or branch ``of``, which comes before it in the pack."""
        super().__init__(of._across, of._dtype)
        self.of = of
        self.length = self.follows = length
        self._own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._present = -1

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor, window: int | None) -> None:
        if layer != self._present:
            self._forget_layer(self._present)
            self._present = layer
        self._own[layer] = key.clone(), value.clone()
        self._fork_layer(layer, self.of, self.length)
        super().append(layer, key, value, window)

    def forget_blocks(self) -> None:
        """All layers have been computed."""
        self._forget_layer(self._present)

    def adopt(self, length: int) -> None:
        """The sequence that it belongs to goes on with the first ``length`` tokens of this branch. What its windows leave behind they leave when it
        goes on: until then front/ledger.py has it go on from there too."""
        root = self.of
        if isinstance(root, Branch):
            root.adopt(self.follows)
            root = root.root
        else:
            root.cut(self.follows)
        for layer, (key, value) in self._own.items():
            root._write(layer, key[:, :, : length - self.follows], value[:, :, : length - self.follows])
        root.length = length

    @property
    def root(self) -> Paged:
        """The sequence that it belongs to."""
        return self.of.root if isinstance(self.of, Branch) else self.of


def rounded(new: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Held back where the dtype ends: torch would make what lies behind it no number."""
    if new.dtype == dtype:
        return new
    most = torch.finfo(dtype).max
    return new.clamp(-most, most).to(dtype)


def _empty_block(new: torch.Tensor, across: bool = False) -> torch.Tensor:
    """For tokens like these, (1, kv_heads, tokens, head_dim), or with the last two the other way."""
    return new.new_zeros(new.shape[1], new.shape[2], BLOCK) if across else new.new_zeros(new.shape[1], BLOCK, new.shape[3])


def _joined(kept: Sequence[Block | None], which: int, first: int, end: int, dtype: torch.dtype) -> torch.Tensor:
    """(1, kv_heads, end − first, head_dim) of blocks one after the other, in ``dtype``."""
    some = kept[0]
    assert some is not None
    joined = torch.empty(1, some[which].shape[0], end - first, some[which].shape[2], dtype=dtype, device=some[which].device)
    for number, block in enumerate(kept):
        assert block is not None, "the window has left behind what is read"
        at, to = max(first, number * BLOCK), min(end, (number + 1) * BLOCK)
        joined[0, :, at - first : to - first] = block[which][:, at - number * BLOCK : to - number * BLOCK]
    return joined


@dataclass(frozen=True, slots=True)
class Piece:
    """One sequence's tokens in the pack."""

    kv: SequenceKV
    #: rows ``[first, end)`` of the pack
    first: int
    end: int
    #: position of the first of them in its sequence
    start: int
    #: tokens of the sequence that are known, those of later sweeps included
    known: int


@dataclass(slots=True)
class Batch:
    """What attention needs to know of the pack beyond queries, keys and values."""

    pieces: list[Piece]
    #: the attention kernel: see attention.py
    attend: Callable[..., torch.Tensor]
    #: attention of all pieces at once, where a layer allows it; see native_attention.py
    at_once: Any = None
    #: masks that several layers share, and the like, for this sweep
    masks: dict[Any, Any] = field(default_factory=dict)
