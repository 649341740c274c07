"""transformers' own caches: what keeps KV where we do not, and what its models are given where we do (kv.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache

from .kv import PackedKV, SequenceKV


class AsTransformers(PackedKV):
    """``read`` gives of what transformers' cache gives its own attention: the visible tokens and no others."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.cache = DynamicCache(config=config)
        self._visible: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        #: (kv_length, kv_offset) of the mask, taken before the update as transformers does
        self.mask_sizes: dict[int, tuple[int, int]] = {}

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor, window: int | None) -> None:
        self.mask_sizes[layer] = self.cache.get_mask_sizes(key.shape[2], layer)
        self._visible[layer] = self.cache.update(key, value, layer)

    def read(self, layer: int, first: int, end: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = self._visible[layer]
        offset = self.mask_sizes[layer][1]
        return key[:, :, first - offset : end - offset].to(dtype), value[:, :, first - offset : end - offset].to(dtype)

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
