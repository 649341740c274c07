"""KV: the keys and values of every sequence.

transformers sees one packed sequence of all new tokens, ``[1, tokens]``; each :class:`Piece` of the pack belongs to one sequence, and our
attention stores its keys and values there. Two ways of storing them, by ``[worker] kernels``:

- :class:`Grown` (invariant, fast): one tensor per layer that grows in whole key blocks, zeros beyond the last token;
- :class:`AsTransformers` (reference): transformers' own DynamicCache, so that shapes are the same as there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache

#: Keys are attended to in whole blocks of so many. A multiple of attention.TILE.
BLOCK: Final = 128


class SequenceKV(ABC):
    """The keys and values of one sequence, all layers."""

    #: tokens whose KV is complete in every layer
    length: int = 0

    @abstractmethod
    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Takes (1, kv_heads, new_tokens, head_dim) each."""

    @abstractmethod
    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, kv_heads, tokens, head_dim) of keys and of values; see the class for how many tokens."""


class Grown(SequenceKV):
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


def _grow(stored: tuple[torch.Tensor, torch.Tensor] | None, new: torch.Tensor, tokens: int, which: int = 0) -> torch.Tensor:
    """A zeroed tensor for at least ``tokens`` tokens with what is stored at its start; at least doubles, so copies are few."""
    held = stored[which].shape[2] if stored else 0
    capacity = max(tokens, min(2 * held, held + 16 * BLOCK))
    grown = new.new_zeros(1, new.shape[1], -(-capacity // BLOCK) * BLOCK, new.shape[3])
    if stored:
        grown[:, :, :held] = stored[which]
    return grown


class AsTransformers(SequenceKV):
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


@dataclass(frozen=True, slots=True)
class Piece:
    """One sequence's tokens in the pack."""

    kv: SequenceKV
    #: rows ``[first, end)`` of the pack
    first: int
    end: int
    #: position of the first of them in its sequence
    start: int


@dataclass(slots=True)
class Batch:
    """The pack of one sweep: what attention needs to know beyond queries, keys and values."""

    pieces: list[Piece]
    #: the attention kernel: see attention.py
    attend: Callable[..., torch.Tensor]
    #: masks that several layers share, for this sweep
    masks: dict[Any, torch.Tensor] = field(default_factory=dict)


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
