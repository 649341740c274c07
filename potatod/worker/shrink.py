"""A config made small: the same architecture in seconds. Layer kinds, rope, biases, head sizes and ratios stay; widths, counts and windows shrink."""

from __future__ import annotations

import copy
from typing import Any, Final

import torch
from transformers import PreTrainedConfig

from potatod.store import skeleton as skeletons

#: Tokens of the small vocabulary.
VOCABULARY: Final = 160
#: Every window, and the border of longrope: shorter than the prompts that are tried.
WINDOW: Final = 16
_MOST_LAYERS: Final = 6


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same architecture, small, in fp32."""
    small: Any = copy.deepcopy(config)
    heads = int(getattr(config, "num_attention_heads", 4))
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = _head_dim(config) or config.hidden_size // heads
    group = max(1, heads // kv_heads)
    few_kv = 1 if kv_heads == 1 else 2
    _set(small, "num_key_value_heads", few_kv)
    _set(small, "num_attention_heads", few_kv * group)
    _set(small, "hidden_size", few_kv * group * head_dim)
    for name in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "n_inner",
                 "intermediate_size_mlp"):  # fmt: skip
        _set(small, name, 96)
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if isinstance(getattr(config, name, None), int):
            setattr(small, name, min(getattr(config, name), 8))
    for name in ("n_group", "topk_group"):
        if isinstance(getattr(config, name, None), int):
            setattr(small, name, 1)
    for name in ("sliding_window", "attention_chunk_size"):
        if getattr(config, name, None):
            setattr(small, name, WINDOW)
    for rope in skeletons.rope_sets(small):
        if rope.get("rope_type") == "longrope":
            rope["original_max_position_embeddings"] = WINDOW
    _shrink_layers(small, config)
    small.vocab_size = VOCABULARY
    _forget_special_tokens(small, config)
    small.dtype = torch.float32
    return small


def first_layer_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same with real widths, one layer and the small vocabulary."""
    one: Any = copy.deepcopy(config)
    _keep_layers(one, config, 1)
    if getattr(one, "num_kv_shared_layers", None):
        one.num_kv_shared_layers = 0
    one.vocab_size = VOCABULARY
    _forget_special_tokens(one, config)
    return one


def _forget_special_tokens(small: Any, config: PreTrainedConfig) -> None:
    """Those of the real vocabulary are beyond the small one's end."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name, None) is not None:
            setattr(small, name, 0)


def _head_dim(config: PreTrainedConfig) -> int | None:
    """The first layer's, where layers differ."""
    try:
        return getattr(config, "head_dim", None)
    except RuntimeError:  # transformers says that this attribute differs from layer to layer
        return getattr(config.per_layer_config[0], "head_dim", None)


def _shrink_layers(small: Any, config: PreTrainedConfig) -> None:
    """So many layers that each kind occurs; where later layers use what earlier ones keep, twice."""
    kinds = getattr(config, "layer_types", None) or ["all alike"]
    period = next(n for n in range(1, len(kinds) + 1) if set(kinds[:n]) == set(kinds))
    shares = bool(getattr(config, "num_kv_shared_layers", None))
    _keep_layers(small, config, max(min(int(config.num_hidden_layers), _MOST_LAYERS), 2 * period if shares else period))
    if shares:
        small.num_kv_shared_layers = period


def _keep_layers(small: Any, config: PreTrainedConfig, count: int) -> None:
    """The first ``count`` layers, and of everything that is listed layer by layer so many."""
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == config.num_hidden_layers and name != "architectures":
            setattr(small, name, type(value)(value[:count]))
    small.num_hidden_layers = count


def _set(small: Any, name: str, value: int) -> None:
    if isinstance(getattr(small, name, None), int):
        setattr(small, name, value)
