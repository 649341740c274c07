"""Before an architecture is served: its own config, shrunk, through our attention and through plain transformers.

What differs is refused with the reason; there is no switch to serve it anyway. Two claims, as the kernels promise them: ``reference`` gives
transformers' bits for a sequence alone; ``invariant`` and ``fast`` give its tokens, and ``invariant`` the same bits however sequences are
packed and chunked.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from potatod.errors import UnsupportedModel

from . import kernels
from .attention import NAME, PackedAttention
from .kv import Batch, PackedCache, Piece, SequenceKV
from .rows import find_groupings

#: Longer than the shrunk windows, over a border of tiles and of nothing else that is round.
PROMPT_TOKENS: Final = 45
WINDOW: Final = 16
VOCABULARY: Final = 160
_MOST_LAYERS: Final = 6
_CHUNKS: Final = (7, 1, 20, 3, 14)


def check(config: PreTrainedConfig, name: str, attention: PackedAttention) -> str:
    """Raises :class:`UnsupportedModel` with the reason, or returns what was shown, for the log."""
    try:
        return _check(config, name, attention)
    except UnsupportedModel:
        raise
    except Exception as error:  # whatever transformers raises for an architecture that our path does not suit
        raise UnsupportedModel(
            f"models of the family {config.model_type} cannot be served: the self-check ended in {type(error).__name__}: {error}"
        ) from error


def _check(config: PreTrainedConfig, name: str, attention: PackedAttention) -> str:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shrink(config), attn_implementation="eager", dtype=torch.float32).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    prompt = torch.randint(3, VOCABULARY, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0]
    shapes = sorted({(p.shape[-2], p.shape[-1]) for p in model.parameters() if p.dim() >= 2})
    groupings = find_groupings(shapes, torch.float32, torch.device("cpu")) if name == "invariant" else {}
    model.set_attn_implementation(NAME)
    runner = _Runner(model, kernels.choose(name, model.config, groupings), attention)
    return _compare(config.model_type, name, runner, prompt, expected)


def _compare(family: str, name: str, runner: _Runner, prompt: list[int], expected: torch.Tensor) -> str:
    alone = runner.run([(runner.new_kv(), prompt)])[0]
    chunked = runner.chunked(prompt)
    if name == "reference" and not torch.equal(alone, expected):
        raise UnsupportedModel(_sentence(family, "its logits are not bit for bit transformers'", alone, expected))
    for what, logits in (("alone", alone), ("in chunks beside another sequence", chunked)):
        if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-4):
            raise UnsupportedModel(_sentence(family, f"its logits {what} are not transformers'", logits, expected))
    if name == "invariant" and not torch.equal(alone, chunked):
        raise UnsupportedModel(
            _sentence(family, "its bits depend on what else is computed with it", chunked, alone)
            + '; with [worker] kernels = "fast" that is allowed'
        )
    return {
        "reference": "bit-identical to transformers",
        "invariant": "equal to transformers, bits independent of packing",
        "fast": "equal to transformers",
    }[name]


def _sentence(family: str, what: str, got: torch.Tensor, expected: torch.Tensor) -> str:
    worst = (got - expected).abs().max().item()
    return f"models of the family {family} cannot be served exactly here: {what} (largest difference {worst:.2g})"


class _Runner:
    """Packs sequences of a model that lies in memory, as the worker does with one that streams."""

    def __init__(self, model: PreTrainedModel, chosen: kernels.Kernels, attention: PackedAttention) -> None:
        self._model = model
        self._kernels = chosen
        self._attention = attention
        self.new_kv = chosen.new_kv

    @torch.inference_mode()
    def run(self, steps: Sequence[tuple[SequenceKV, list[int]]]) -> list[torch.Tensor]:
        """Logits (tokens, vocabulary) of each step."""
        tokens: list[int] = []
        positions: list[int] = []
        pieces = []
        for kv, new in steps:
            pieces.append(Piece(kv, len(tokens), len(tokens) + len(new), kv.length))
            positions += range(kv.length, kv.length + len(new))
            tokens += new
        self._attention.batch = Batch(pieces, self._kernels.attend)
        with self._kernels.around():
            out = self._model(
                input_ids=torch.tensor([tokens]), position_ids=torch.tensor([positions]), past_key_values=PackedCache(),
                use_cache=True,
            )  # fmt: skip
        for piece in pieces:
            piece.kv.length += piece.end - piece.first
        return [out.logits[0, piece.first : piece.end] for piece in pieces]

    def chunked(self, prompt: list[int]) -> torch.Tensor:
        """The same prompt in pieces, each packed behind some tokens of another sequence."""
        mine, other = self.new_kv(), self.new_kv()
        out, at = [], 0
        for size in _CHUNKS:
            chunk = prompt[at : at + size]
            out.append(self.run([(other, prompt[at : at + 2][::-1]), (mine, chunk)])[1])
            at += size
        assert at == len(prompt)
        return torch.cat(out)


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same architecture, small: layer kinds, rope, biases, head sizes and ratios stay; widths, counts and windows shrink."""
    small: Any = copy.deepcopy(config)
    heads = int(getattr(config, "num_attention_heads", 4))
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
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
    _shrink_layers(small, config)
    small.vocab_size = VOCABULARY
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name, None) is not None:
            setattr(small, name, 0)
    small.dtype = torch.float32
    return small


def _shrink_layers(small: Any, config: PreTrainedConfig) -> None:
    """So many layers that each kind occurs."""
    kinds = getattr(config, "layer_types", None)
    count = min(int(config.num_hidden_layers), _MOST_LAYERS)
    if kinds:
        missing = set(kinds)
        for number, kind in enumerate(kinds):
            missing.discard(kind)
            if not missing:
                count = max(min(count, len(kinds)), number + 1)
                break
        small.layer_types = list(kinds[:count])
    small.num_hidden_layers = count


def _set(small: Any, name: str, value: int) -> None:
    if isinstance(getattr(small, name, None), int):
        setattr(small, name, value)
