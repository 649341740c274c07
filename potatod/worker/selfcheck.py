"""Before an architecture is served: its own config, shrunk, through our passes and through plain transformers.

What differs is refused with the reason; there is no switch to serve it anyway. Two claims, as the kernels promise them: ``reference`` gives
transformers' bits for a sequence alone; ``invariant`` and ``fast`` give its tokens, and ``invariant`` the same bits however sequences are
packed and chunked. The same is asked of the model's first layer as it is, real widths and real weights (:func:`check_layer`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from potatod.dtypes import PACKED, RAW
from potatod.errors import UnsupportedModel
from potatod.manifest import Manifest, schemes_of
from potatod.store import skeleton as skeletons

from . import arithmetic as arithmetics
from . import kernels
from .arithmetic import PLAIN, Arithmetic
from .attention import TILES, PackedAttention
from .banded import Banded
from .kv import Piece, SequenceKV
from .lockstep import Lockstep
from .passes import Pack
from .places import places_of
from .shrink import VOCABULARY, first_layer_of, shrink
from .weights import read_parts

#: Longer than the shrunk windows, over a border of tiles and of nothing else that is round.
PROMPT_TOKENS: Final = 45
_CHUNKS: Final = (7, 1, 20, 3, 14)
_CPU: Final = torch.device("cpu")
_SHOWN: Final = {
    "reference": "bit-identical to transformers",
    "invariant": "equal to transformers, bits independent of packing",
    "fast": "equal to transformers",
}


def check(config: PreTrainedConfig, name: str, attention: PackedAttention, tile: int = max(TILES)) -> tuple[str, str]:
    """The first batching that keeps the promise of the kernels ``name``, and a line for the log: what was shown.

    Raises :class:`UnsupportedModel` with the reason where none does.
    """
    family = config.model_type
    prompt = torch.randint(3, VOCABULARY, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    differences: list[UnsupportedModel] = []
    failures: list[UnsupportedModel] = []
    for batching in kernels.BATCHINGS[name]:
        try:
            if (name, batching) == ("invariant", "packed"):  # whether it runs at all is seen before minutes go into how rows are grouped
                _compare(family, "fast", batching, _small(config), prompt, attention, PLAIN, tolerance=1e-4)
            small = _small(config)
            found = arithmetics.find(name, _shapes(small) if batching == "packed" else [], torch.float32, _CPU)
            _compare(family, name, batching, small, prompt, attention, dataclasses.replace(found, tile=tile), tolerance=1e-4)
            return batching, _SHOWN[name]
        except UnsupportedModel as error:
            differences.append(error)
        except Exception as error:  # whatever transformers raises for an architecture that this batching does not suit
            failures.append(_does_not_run(family, error))
    raise (differences or failures)[-1]  # a difference says more than what does not run


def _small(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shrink(config), attn_implementation="eager", dtype=torch.float32).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


def _shapes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Of its weights, (out, in)."""
    return sorted({(p.shape[-2], p.shape[-1]) for p in model.parameters() if p.dim() >= 2})


def check_layer(
    config: PreTrainedConfig, manifest: Manifest, folder: Path, name: str, batching: str, attention: PackedAttention,
    arithmetic: Arithmetic, device: torch.device = _CPU,
) -> None:  # fmt: skip
    """The first layer with its real weights, in the model's dtype, on ``device``: our passes and transformers' module give the same.

    Raises :class:`UnsupportedModel` where they do not.
    """
    dtype = getattr(torch, manifest.dtype)
    skeleton = skeletons.build(first_layer_of(config), dtype)
    shard = next(shard for shard in manifest.shards if shard.kind == "layer")
    read = dict(read_parts(folder, shard.parts))
    weights = {name: value.together().detach() if isinstance(value, Banded) else value for name, value in read.items()}
    generator = torch.Generator().manual_seed(1)
    around = {
        name: torch.randn(value.shape, generator=generator).to(value.dtype) if value.dim() > 1 else torch.ones_like(value, device="cpu")
        for name, value in skeleton.model.state_dict().items()
        if not name.startswith(skeleton.layers_name + ".")
    }
    skeleton.model.load_state_dict(around, strict=False, assign=True)
    skeleton.layers[0].load_state_dict(weights, strict=True, assign=True)
    skeleton.model.tie_weights()
    skeleton.model.to(device)
    prompt = torch.randint(3, VOCABULARY, (PROMPT_TOKENS,), generator=generator).tolist()
    rounded = not schemes_of(manifest).keys() <= {RAW, PACKED}  # transformers gets what other schemes hold in this dtype, and we do not round it
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    if rounded:  # and integers are multiplied with rows of 16 bits
        tolerance = 1e-3 if dtype == torch.float32 else 0.05
    try:
        stored = {f"{skeleton.layers_name}.0.{name}": value.to_device(device) for name, value in read.items() if isinstance(value, Banded)}
        _compare(config.model_type, name, batching, skeleton.model, prompt, attention, arithmetic, stored, tolerance=tolerance)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{error}; seen in its first layer with its real weights") from None
    except Exception as error:  # as in check()
        raise _does_not_run(config.model_type, error) from error


def _does_not_run(family: str, error: Exception) -> UnsupportedModel:
    return UnsupportedModel(
        f"models of the family {family} cannot be served: the self-check ended in {type(error).__name__}: {' '.join(str(error).split())}"
    )


@torch.inference_mode()
def _compare(
    family: str, name: str, batching: str, model: PreTrainedModel, prompt: list[int], attention: PackedAttention,
    arithmetic: Arithmetic, stored: Mapping[str, Banded] = MappingProxyType({}), *, tolerance: float,
) -> None:  # fmt: skip
    """Plain transformers beside our passes, alone and in chunks; differences up to ``tolerance`` × the largest logit are rounding.

    ``stored``: weights that our passes get as they are stored; plain transformers has their values.
    """
    device = next(model.parameters()).device
    expected = model(torch.tensor([prompt], device=device), use_cache=_counts_tokens(model.config)).logits[0]
    for name_, place in places_of(model).items():  # from here on the weights are bound as the worker binds what it is lent
        place.bind(stored[name_]) if name_ in stored else place.bind_again()
    runner = Runner(model, kernels.choose(name, batching, model.config, device, attention, arithmetic))
    alone = runner.run([(runner.new_kv(), prompt)], len(prompt))[0]
    chunked = runner.chunked(prompt)
    if name == "reference" and not torch.equal(alone, expected):
        raise UnsupportedModel(_sentence(family, "its logits are not bit for bit transformers'", alone, expected))
    for what, logits in (("alone", alone), ("in chunks beside another sequence", chunked)):
        if not (logits - expected).abs().max() <= tolerance * expected.abs().max():
            raise UnsupportedModel(_sentence(family, f"its logits {what} are not transformers'", logits, expected))
    if name == "invariant" and not torch.equal(alone, chunked):
        raise UnsupportedModel(
            _sentence(family, "its bits depend on what else is computed with it", chunked, alone)
            + '; with [worker] kernels = "fast" that is allowed'
        )


def _counts_tokens(config: PreTrainedConfig) -> bool:
    """Whether the family's cache knows how many tokens it has seen: one of recurrent layers only does not, and transformers asks it."""
    layers = DynamicCache(config=config).layers
    return not layers or any(isinstance(layer, CacheLayerMixin) for layer in layers)


def _sentence(family: str, what: str, got: torch.Tensor, expected: torch.Tensor) -> str:
    worst = (got - expected).abs().max().item()
    return f"models of the family {family} cannot be served exactly here: {what} (largest difference {worst:.2g})"


class Runner:
    """Runs sequences through a model that lies in memory, as the worker does with one that streams."""

    def __init__(self, model: PreTrainedModel, chosen: kernels.Kernels) -> None:
        self._model = model
        self._kernels = chosen
        self._lockstep = Lockstep(lambda: None)
        self.new_kv = chosen.batching.new_kv
        chosen.prepare(model)
        for layer in skeletons.find_layers(model, model.config)[1]:
            layer.register_forward_pre_hook(lambda *_: self._lockstep.arrive())

    def run(self, steps: Sequence[tuple[SequenceKV, list[int]]], known: int) -> list[torch.Tensor]:
        """Logits (tokens, vocabulary) of each step."""
        tokens: list[int] = []
        pieces = []
        for kv, new in steps:
            pieces.append(Piece(kv, len(tokens), len(tokens) + len(new), kv.length, known))
            tokens += new
        pack = Pack(tokens, pieces, range(len(tokens)))
        with self._kernels.around(pack):
            passes = self._kernels.batching.passes(self._model, pack)
            logits = torch.cat(self._lockstep.run(passes))
        for piece in pieces:
            piece.kv.length += piece.end - piece.first
        return [logits[piece.first : piece.end] for piece in pieces]

    def chunked(self, prompt: list[int]) -> torch.Tensor:
        """The same prompt in pieces, each packed behind some tokens of another sequence."""
        mine, other = self.new_kv(), self.new_kv()
        out, at = [], 0
        for size in _CHUNKS:
            chunk = prompt[at : at + size]
            out.append(self.run([(other, prompt[at : at + 2][::-1]), (mine, chunk)], len(prompt))[1])
            at += size
        assert at == len(prompt)
        return torch.cat(out)
