"""How a sweep becomes forward passes of transformers' own model.

| batching  | one pass for                         | attention and cache     | serves                                                       |
|-----------|--------------------------------------|-------------------------|--------------------------------------------------------------|
| packed    | all tokens of the sweep              | ours (attention.py)     | families that attend through transformers' AttentionInterface |
| sequences | each sequence                        | the family's own        | the others                                                   |
| prompts   | each prompt; then each token         | the family's own        | those that go on from a state by single tokens only          |
| tokens    | each token, one after the other      | the family's own        | the others, ``invariant``                                    |

All passes of a sweep go through the layers in lockstep: the weights are read once for all of them. Which batching serves a family is found by the
self-check. *tokens* is invariant by construction: what a pass computes with depends on its token's position and on nothing else in the sweep.

NOTE [ longrope ]
Such a model has two sets of frequencies, and transformers takes the long one for a whole text as soon as the text is longer than the original
length. In a pack there are several texts, and a long prompt may come in short pieces; so each piece is turned apart, and transformers is shown the
position of the last token that is known. Where a text grows over the border its KV is made anew (front/scheduler.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .attention import NAME, PackedAttention
from .caches import Own, PackedCache
from .kv import Batch, PackedKV, Piece, SequenceKV
from .native_attention import NativeAttention

#: A forward pass that is ready to run: returns the logits (wanted rows, vocabulary).
Pass = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Pack:
    """One sweep's tokens in a row, sequence after sequence."""

    tokens: Sequence[int]
    pieces: Sequence[Piece]
    #: rows whose logits are wanted, ascending
    wanted: Sequence[int]


class Batching(Protocol):
    """Makes the passes of sweeps over a model."""

    def prepare(self, model: PreTrainedModel) -> None:
        """Once, before the first pass."""

    def new_kv(self) -> SequenceKV:
        """For a sequence that begins."""

    def passes(self, model: PreTrainedModel, pack: Pack) -> list[Pass]:
        """Their logits, one after the other, are those of ``pack.wanted``."""


class Packed:
    """One pass for all tokens, attention and KV our own."""

    def __init__(
        self, device: torch.device, attention: PackedAttention, attend: Callable[..., torch.Tensor], new_kv: Callable[[], PackedKV],
        at_once: NativeAttention | None = None,
    ) -> None:  # fmt: skip
        """``at_once``: attends to all pieces together, where a layer allows it."""
        self._device = device
        self._attention = attention
        self._attend = attend
        self._new_kv = new_kv
        self._at_once = at_once

    def prepare(self, model: PreTrainedModel) -> None:
        model.set_attn_implementation(NAME)
        for module in model.modules():
            if "longrope" in _rope_types(module):
                module.forward = partial(self._turn, module.forward)

    def new_kv(self) -> SequenceKV:
        return self._new_kv()

    def passes(self, model: PreTrainedModel, pack: Pack) -> list[Pass]:
        return [partial(self._pass, model, pack)]

    def _pass(self, model: PreTrainedModel, pack: Pack) -> torch.Tensor:
        positions = [at for piece in pack.pieces for at in range(piece.start, piece.start + piece.end - piece.first)]
        around = self._attention.batch  # of the model whose sweep waits while its draft model looks ahead
        self._attention.batch = Batch(list(pack.pieces), self._attend, self._at_once)
        try:
            return _forward(
                model, self._device, pack.tokens, _rows(pack.wanted, self._device),
                position_ids=torch.tensor([positions], device=self._device), past_key_values=PackedCache(),
            )  # fmt: skip
        finally:
            self._attention.batch = around

    def _turn(
        self, rope: Callable[..., tuple[torch.Tensor, torch.Tensor]], x: torch.Tensor, position_ids: torch.Tensor, **arguments: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """NOTE [ longrope ]. cos and sin, (1, tokens, width) each."""
        batch = self._attention.batch
        assert batch is not None
        turned = []
        for piece in batch.pieces:
            ids = torch.cat([position_ids[:, piece.first : piece.end], position_ids.new_tensor([[piece.known - 1]])], dim=1)
            turned.append(rope(x, ids, **arguments))
        cos, sin = (torch.cat([pair[which][:, :-1] for pair in turned], dim=1) for which in (0, 1))
        return cos, sin


#: (first, end) in a piece's tokens, for each pass
Cut = Callable[[Piece], Iterator[tuple[int, int]]]


class Abreast:
    """Passes of their own for each sequence, attention and cache the family's."""

    def __init__(self, device: torch.device, config: PreTrainedConfig, cut: Cut) -> None:
        self._device = device
        self._config = config
        self._cut = cut

    def prepare(self, model: PreTrainedModel) -> None:
        """Nothing: models are built with the family's own attention."""

    def new_kv(self) -> SequenceKV:
        return Own(self._config)

    def passes(self, model: PreTrainedModel, pack: Pack) -> list[Pass]:
        return [
            partial(self._pass, model, pack, piece, piece.first + first, piece.first + end)
            for piece in pack.pieces
            for first, end in self._cut(piece)
        ]

    def _pass(self, model: PreTrainedModel, pack: Pack, piece: Piece, first: int, end: int) -> torch.Tensor:
        kv = piece.kv
        assert isinstance(kv, Own)
        cache = {_cache_argument(type(model)): kv.seen_at(piece.start + first - piece.first)}
        wanted = [row - first for row in pack.wanted if first <= row < end]
        keep = 1 if wanted == [end - first - 1] else _rows(wanted, self._device)  # 1 is what generate() says: some families spare the other rows
        return _forward(model, self._device, pack.tokens[first:end], keep, **cache)


def _whole(piece: Piece) -> Iterator[tuple[int, int]]:
    yield 0, piece.end - piece.first


def _by_token(piece: Piece) -> Iterator[tuple[int, int]]:
    for at in range(piece.end - piece.first):
        yield at, at + 1


def _prompts(piece: Piece) -> Iterator[tuple[int, int]]:
    return _whole(piece) if piece.start == 0 else _by_token(piece)


#: how *sequences*, *prompts* and *tokens* cut a sequence's tokens
CUTS: Final[dict[str, Cut]] = {"sequences": _whole, "prompts": _prompts, "tokens": _by_token}


def _forward(model: PreTrainedModel, device: torch.device, tokens: Sequence[int], keep: int | torch.Tensor, **arguments: Any) -> torch.Tensor:
    ids = torch.tensor([tokens], device=device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=True, logits_to_keep=keep, **arguments).logits[0]
    return logits


def _rows(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.long, device=device)


def _cache_argument(cls: type[PreTrainedModel]) -> str:
    return "cache_params" if "cache_params" in inspect.signature(cls.forward).parameters else "past_key_values"


def _rope_types(module: torch.nn.Module) -> list[str]:
    """Of a rotary embedding: its type, or one for each kind of layer."""
    found = getattr(module, "rope_type", None)
    return list(found.values()) if isinstance(found, dict) else [found] if isinstance(found, str) else []
