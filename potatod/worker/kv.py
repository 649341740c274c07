"""KV: the keys and values of every sequence, and what else a family keeps of the tokens it has seen.

Where a sweep is packed (passes.py) transformers sees one sequence of all new tokens, ``[1, tokens]``; each :class:`Piece` of the pack belongs
to one sequence, and our attention stores its keys and values there. Two ways of storing them, by ``[worker] kernels``:

- :class:`Grown` (invariant, fast): one tensor per layer that grows in whole key blocks, zeros beyond the last token;
- :class:`AsTransformers` (reference): transformers' own DynamicCache, so that shapes are the same as there.

Where each sequence has a pass of its own the family stores what it stores, in :class:`Own`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache

#: KV grows by whole blocks of so many tokens. A multiple of attention.STEP.
BLOCK: Final = 128


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
    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Takes (1, kv_heads, new_tokens, head_dim) each."""

    @abstractmethod
    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, kv_heads, tokens, head_dim) of keys and of values; see the class for how many tokens."""


class Grown(PackedKV):
    """``read`` gives whole blocks: zeros follow the last token up to the next multiple of BLOCK (or further)."""

    def __init__(self) -> None:
        self._stored: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        end = self.length + key.shape[2]
        stored = self._stored.get(layer)
        if stored is None or stored[0].shape[2] < end:
            stored = self._stored[layer] = _grow(stored, key, end), _grow(stored, value, end, 1)
        stored[0][:, :, self.length : end] = key
        stored[1][:, :, self.length : end] = value

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._stored[layer]

    def tensors(self) -> Iterator[torch.Tensor]:
        for pair in self._stored.values():
            yield from pair


def _grow(stored: tuple[torch.Tensor, torch.Tensor] | None, new: torch.Tensor, tokens: int, which: int = 0) -> torch.Tensor:
    """A zeroed tensor for at least ``tokens`` tokens with what is stored at its start; grows by an eighth, so copies are few."""
    held = stored[which].shape[2] if stored else 0
    capacity = max(tokens, held + held // 8)
    grown = new.new_zeros(1, new.shape[1], -(-capacity // BLOCK) * BLOCK, new.shape[3])
    if stored:
        grown[:, :, :held] = stored[which]
    return grown


class AsTransformers(PackedKV):
    """``read`` gives what transformers' cache gives its own attention: exactly the visible tokens."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.cache = DynamicCache(config=config)
        self._visible: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        #: (kv_length, kv_offset) of the mask, taken before the update as transformers does
        self.mask_sizes: dict[int, tuple[int, int]] = {}

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self.mask_sizes[layer] = self.cache.get_mask_sizes(key.shape[2], layer)
        self._visible[layer] = self.cache.update(key, value, layer)

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._visible[layer]

    def tensors(self) -> Iterator[torch.Tensor]:
        return _tensors_of(self.cache)


class Own(SequenceKV):
    """The family's own cache: keys and values, states of recurrences and convolutions, whatever it keeps."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self._cache = DynamicCache(config=config)

    def seen_at(self, start: int) -> Cache:
        """The cache for the pass that begins at position ``start``."""
        return _SeenAt(self._cache, start)

    def tensors(self) -> Iterator[torch.Tensor]:
        return _tensors_of(self._cache)


class _SeenAt(DynamicCache):  # type: ignore[misc]  # transformers is untyped to mypy
    """A cache as a pass sees it before its first layer, while the passes before it have not filled the later ones yet.

    Layers are shared. What is asked to make positions and masks is answered by ``start`` instead of by what is stored.
    """

    def __init__(self, cache: DynamicCache, start: int) -> None:
        Cache.__init__(self, layers=cache.layers)
        self._start = start

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        window = getattr(self.layers[layer_idx], "sliding_window", None)
        kept = self._start if window is None else min(self._start, window - 1)
        return kept + query_length, self._start - kept


def _tensors_of(cache: Cache) -> Iterator[torch.Tensor]:
    for layer in cache.layers:
        for value in vars(layer).values():
            for kept in value.values() if isinstance(value, dict) else (value,):
                if isinstance(kept, torch.Tensor) and kept.dim() > 0:
                    yield kept


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
    #: masks that several layers share, for this sweep
    masks: dict[Any, torch.Tensor | None] = field(default_factory=dict)


class PackedCache(Cache):  # type: ignore[misc]  # transformers is untyped to mypy
    """What transformers' model takes for its ``past_key_values``. It keeps nothing and gives back what it gets: new keys and values
    reach our attention unchanged, and there they are stored with the sequence they belong to. Positions come with the
    sweep and masks are made per piece, so the answers below only have to be harmless.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1
