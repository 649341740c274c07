"""A checkpoint's tensors become the model's own, a layer at a time, by transformers' own conversions.

Values and dtypes are those that ``from_pretrained`` gives: names are renamed, experts fused, block scales applied by
the same code, which is fed only the keys of one layer. Memory holds that layer and what it is converted from.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from potatod.errors import ModelDataError

from .checkpoint import PLAIN, Blocks, Lazy
from .skeleton import Skeleton

#: Rows of a matrix are converted in steps of about this many bytes.
_STEP_BYTES = 8 << 20


def stored(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor that a folder of this model in ``dtype`` holds, by its name in the model, on meta.

    A few stay in fp32: as parameters the skeleton has them so, as buffers only the loader knows of it.
    """
    kept = model._get_dtype_plan(dtype)
    if not kept:
        values: dict[str, torch.Tensor] = model.state_dict()
        return values
    pattern, groups, _ = build_glob_alternation(list(kept))
    out = {}
    for name, value in model.state_dict().items():
        found = pattern.search(name)
        own = kept[groups[found.lastgroup]] if found and value.is_floating_point() else value.dtype
        out[name] = value if own == value.dtype else torch.empty(value.shape, dtype=own, device="meta")
    return out


class Converter:
    """Gives the values of the skeleton's tensors, whole groups or rows of one matrix, from a checkpoint's tensors."""

    def __init__(self, skeleton: Skeleton, tensors: dict[str, Lazy], dtype: torch.dtype, quantizer: Any = None) -> None:
        self._model = skeleton.model
        self._tensors = tensors
        self._dtype = dtype
        self._quantizer = quantizer
        self._plan = self._model._get_dtype_plan(dtype)
        self._mapping = get_model_conversion_mapping(self._model, hf_quantizer=quantizer)
        #: every tensor that a checkpoint holds, by the model's name for it, on meta
        self.wanted = stored(self._model, dtype)
        self._patterns: dict[str, set[str]] = {}
        self._sources = self._find_sources()

    def has(self, name: str) -> bool:
        """Whether the checkpoint has something that becomes this tensor."""
        return name in self._sources

    def sources(self, name: str) -> list[str]:
        """The checkpoint's keys that this tensor is made of."""
        return self._sources.get(name, [])

    def operations(self, name: str) -> list[ConversionOps]:
        """What is done to values on their way into this tensor; nothing where they are only renamed."""
        patterns = self._patterns.get(name, set())
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        return [op for entry in converters if patterns & set(entry.source_patterns) for op in entry.operations]

    def kept(self) -> dict[str, str]:
        """The scheme that holds a tensor's own blocks, for tensors whose rows are only put in another order on their way here."""
        schemes = {}
        for name, keys in self._sources.items():
            lazy = self._tensors[keys[0]]
            if isinstance(lazy, Blocks) and len(keys) == 1 and not self.operations(name) and (scheme := lazy.scheme()):
                schemes[name] = scheme
        return schemes

    def planes(self, name: str) -> torch.Tensor:
        """The bytes of a tensor of :meth:`kept` in its scheme."""
        lazy = self._tensors[self._sources[name][0]]
        assert isinstance(lazy, Blocks)
        return lazy.planes()

    def unused(self) -> list[str]:
        """Keys of the checkpoint that no tensor of the model is made of."""
        used = {key for keys in self._sources.values() for key in keys}
        return [key for key in self._tensors if key not in used]

    def group(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The values of these tensors; raises ModelDataError where one is missing or does not fit."""
        names = list(names)
        keys = [key for name in names for key in self._sources.get(name, ())]
        places = {name: _place(self._model, name) for name in names}
        empty = {name: kind[key] for name, (kind, key) in places.items()}
        try:
            self._load(keys)
            values = {name: kind[key] for name, (kind, key) in places.items()}
        finally:
            for name, (kind, key) in places.items():
                kind[key] = empty[name]
        for name, value in values.items():
            if value is None or value.is_meta:
                raise ModelDataError(f"the checkpoint has nothing for {name}, which the architecture needs: it is incomplete")
        return {name: value.detach() for name, value in values.items() if value is not None}

    def matrix(self, name: str) -> Iterator[torch.Tensor]:
        """The rows of a large matrix, some at a time, without ever holding the whole of it where that can be
        avoided."""
        meta = self.wanted[name]
        keys = self._sources.get(name, [])
        lazy = self._tensors[keys[0]] if len(keys) == 1 else None
        if lazy is None or lazy.dtype not in PLAIN or tuple(lazy.shape) != tuple(meta.shape):
            yield self.group([name])[name]
            return
        rows, columns = meta.shape
        step = max(1, _STEP_BYTES // (columns * 4))
        for first in range(0, rows, step):
            yield lazy.rows(first, min(first + step, rows)).to(meta.dtype)

    def _find_sources(self) -> dict[str, list[str]]:
        """Checkpoint keys by the tensor they go into (the first, where one key feeds several)."""
        mapping = deepcopy(self._mapping)  # matching arms stateful renamings
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        prefix = self._model.base_model_prefix
        sources: dict[str, list[str]] = {}
        for key in self._tensors:
            name, pattern = rename_source_key(key, renamings, converters, prefix, self.wanted)
            if name not in self.wanted and key in self.wanted:
                name, pattern = rename_source_key(key, [], [], prefix, self.wanted)
            if name in self.wanted:
                sources.setdefault(name, []).append(key)
                if pattern is not None:
                    self._patterns.setdefault(name, set()).add(pattern)
        return sources

    def _load(self, keys: list[str]) -> None:
        """Lets transformers convert these keys and set the results in the model."""
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # its threads would read all sources before one is converted
        info, _ = convert_and_load_state_dict_in_model(
            self._model,
            {key: self._tensors[key] for key in keys},
            LoadStateDictConfig(
                dtype=self._dtype, dtype_plan=self._plan, hf_quantizer=self._quantizer, weight_mapping=deepcopy(self._mapping)
            ),
        )
        for name, found, wanted in info.mismatched_keys:
            raise ModelDataError(f"{name} has the shape {list(found)} in the checkpoint, and config.json makes it {list(wanted)}")
        for name, error in info.conversion_errors.items():
            reason = error.strip().splitlines()[-1]
            raise ModelDataError(f"transformers cannot convert what the checkpoint has for {name}: {reason}")


def _place(model: PreTrainedModel, name: str) -> tuple[dict[str, Any], str]:
    """The dictionary of the module in which the tensor lives, and its key there."""
    path, _, key = name.rpartition(".")
    owner: nn.Module = model.get_submodule(path)
    return (owner._parameters, key) if key in owner._parameters else (owner._buffers, key)
