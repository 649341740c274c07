"""How a GGUF file scales its positions, in transformers' words: its loader leaves it out, and long texts would go wrong silently.

    rope_freqs.weight            divisors of the frequencies: what llama.cpp's converter makes of "llama3" scaling
    ARCH.rope.scaling.*          "linear" and "yarn" as keys; a factor without a type is linear

Law: stated only where llama.cpp and transformers compute the same frequencies from it; whatever else scales is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from potatod.errors import UnsupportedModel

#: Architectures whose layers all turn all of a head by one set of frequencies, there and in transformers.
_UNIFORM: Final = ("llama", "mistral", "qwen2", "qwen2moe", "qwen3", "qwen3moe")
#: There its full layers alone are scaled; sliding ones keep this base.
_GEMMA, _GEMMA_SLIDING_BASE = "gemma3", 10000.0
#: The one tensor of divisors that is understood.
FREQUENCIES: Final = "rope_freqs.weight"
#: Of every llama3 scaling that is published, and of llama.cpp's converter whatever the config says; the factor differs.
_LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
#: Relative, times the divisor: two ways to compute the same in fp32 differ by less, two sets of parameters by far more.
_ROUNDING: Final = 2.0**-21
#: Keys that change nothing at these values (None: at any), by what is scaled.
_WITHOUT_EFFECT: Final[Mapping[str, float | None]] = {
    "type": None, "factor": None, "finetuned": None, "original_context_length": None, "attn_factor": 1.0,
}  # fmt: skip
_YARN_WITHOUT_EFFECT: Final[Mapping[str, float | None]] = {
    **_WITHOUT_EFFECT, "yarn_beta_fast": None, "yarn_beta_slow": None, "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_log_multiplier": 0.0,
}  # fmt: skip


class Unstated(UnsupportedModel):
    """Scaled in a way that is not certain; says only which."""


def is_rope(tensor: str) -> bool:
    """Whether a tensor of this name is of divisors."""
    return "rope_f" in tensor


def scaling_of(
    architecture: str, metadata: Mapping[str, Any], divisors: Mapping[str, torch.Tensor], config_with: Callable[[dict[str, Any]], PreTrainedConfig]
) -> dict[str, Any] | None:
    """What config.json has as "rope_scaling"; None where nothing is scaled. Raises Unstated.

    ``divisors`` are the tensors by name, fp32; ``config_with`` is the model's config with a given scaling.
    """
    prefix = f"{architecture}.rope.scaling."
    keys = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    # llama.cpp takes scaling without a type as linear, and knows the factor by an older name too
    kind = keys.get("type", "linear")
    factor = _short(keys.get("factor", metadata.get(f"{architecture}.rope.scale_linear", 0.0)) or 1.0)
    by_keys = kind != "none" and not (kind == "linear" and factor == 1.0)
    if not by_keys and keys.get("attn_factor", 1.0) != 1.0:
        raise Unstated("a rope scaling attn_factor")
    for name, values in divisors.items():
        if name != FREQUENCIES or architecture != "llama" or by_keys:
            raise Unstated(f"rope factors ({name})")
        if bool((values != 1.0).any()):
            return _llama3(values, config_with)
    if not by_keys:
        return None
    if kind not in ("linear", "yarn"):
        raise Unstated(f"{kind} rope scaling")
    if not (math.isfinite(factor) and factor >= 1.0):
        raise Unstated(f"{kind} rope scaling by {factor}")
    without_effect = _YARN_WITHOUT_EFFECT if kind == "yarn" else _WITHOUT_EFFECT
    for key, value in keys.items():
        if key not in without_effect or without_effect[key] not in (None, value):
            raise Unstated(f"{kind} rope scaling with {key} = {value}")
    if not (_is_uniform(architecture, metadata, config_with) or (kind == "linear" and _is_gemma(architecture, metadata))):
        raise Unstated(f"{kind} rope scaling of {architecture}")
    stated: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        length = keys.get("original_context_length") or metadata.get(f"{architecture}.context_length")
        if not isinstance(length, int):
            raise Unstated("yarn rope scaling without an original length")
        stated["original_max_position_embeddings"] = length
        stated |= {beta: _short(keys[f"yarn_{beta}"]) for beta in ("beta_fast", "beta_slow") if keys.get(f"yarn_{beta}")}
    return stated


def _llama3(divisors: torch.Tensor, config_with: Callable[[dict[str, Any]], PreTrainedConfig]) -> dict[str, Any]:
    """The parameters that give these divisors: the lowest frequencies are divided by the factor itself."""
    base, _ = ROPE_INIT_FUNCTIONS["linear"](config_with({"rope_type": "linear", "factor": 1.0}))
    stated = {"rope_type": "llama3", "factor": _short(float(divisors.max())), **_LLAMA3}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config_with(stated))
    if divisors.shape != base.shape or bool(((scaled * divisors / base - 1.0).abs() > _ROUNDING * divisors).any()):
        raise Unstated(f"rope factors ({FREQUENCIES}) of no published llama3 scaling")
    return stated


def _is_uniform(architecture: str, metadata: Mapping[str, Any], config_with: Callable[[dict[str, Any]], PreTrainedConfig]) -> bool:
    if architecture not in _UNIFORM:
        return False
    config = config_with({"rope_type": "linear", "factor": 1.0})
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return bool(metadata.get(f"{architecture}.rope.dimension_count", width) == width)


def _is_gemma(architecture: str, metadata: Mapping[str, Any]) -> bool:
    base = metadata.get(f"{architecture}.rope.freq_base_swa", _GEMMA_SLIDING_BASE)
    return architecture == _GEMMA and bool(metadata.get(f"{architecture}.attention.sliding_window")) and base == _GEMMA_SLIDING_BASE


def _short(value: Any) -> float:
    """The shortest decimal that is this fp32: what the config said before it was stored."""
    if not isinstance(value, int | float):
        raise Unstated(f"rope scaling by {str(value)[:40]!r}")
    return float(str(np.float32(value)))
