"""Decoder layers that are Llama's own code, computed by ours: two lists of steps (steps.py) instead of a hundred of torch's operations.

    x ─▶ norm ─▶ q, k, v ─▶ turned by their positions ──▶ attention.py ──▶ o ─▶ + x ─▶ norm ─▶ gate · up ─▶ down ─▶ +

transformers writes these functions anew into every family's file, and in many of them it is the same code: Llama, Mistral, Qwen 2 and 3, and what is
built like them. Where it is not, in the layer or in any of its parts, transformers computes the layer.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from . import native
from .likeness import same_code
from .native import LANES, Product, pieces_of
from .rows import unwatched
from .steps import Desk, Listed, Listing, Op, StepsCode

#: What an attention says of its window, as the code says it that is alike.
Tells = Callable[[Any], dict[str, Any]]
_ATTENTIONS: Final[Mapping[type[nn.Module], Tells]] = MappingProxyType({
    llama.LlamaAttention: lambda _: {},
    mistral.MistralAttention: lambda module: {"sliding_window": getattr(module.config, "sliding_window", None)},
    qwen2.Qwen2Attention: lambda module: {"sliding_window": module.sliding_window},
    qwen3.Qwen3Attention: lambda module: {"sliding_window": module.sliding_window},
})  # fmt: skip
#: Linear layers: q, k, v, o, gate, up, down.
_LINEARS: Final = 7


@dataclass(frozen=True, slots=True)
class Parts:
    """Of a decoder layer like Llama's."""

    attention: Any
    tells: Tells
    #: q, k, v, o, gate, up, down
    linears: tuple[nn.Module, ...]
    #: before attention and behind it; of each head of queries and of keys, where there are any
    norms: tuple[Any, ...]

    @classmethod
    def of(cls, layer: Any) -> Parts | None:
        """None where its code or that of one of its parts is another."""
        if not _runs(layer, llama.LlamaDecoderLayer):
            return None
        attention, mlp = layer.self_attn, layer.mlp
        tells = next((tells for known, tells in _ATTENTIONS.items() if _runs(attention, known)), None)
        if tells is None or not _runs(mlp, llama.LlamaMLP) or type(mlp.act_fn) is not type(ACT2FN["silu"]):
            return None
        linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        of_heads = (attention.q_norm, attention.k_norm) if _runs(attention, qwen3.Qwen3Attention) else ()
        norms = (layer.input_layernorm, layer.post_attention_layernorm, *of_heads)
        turns = inspect.unwrap(type(attention).forward).__globals__["apply_rotary_pos_emb"]
        alike = (
            all(type(linear).forward is nn.Linear.forward for linear in linears)
            and all(_runs(norm, llama.LlamaRMSNorm) for norm in norms)
            and same_code(turns, llama.apply_rotary_pos_emb)
            and same_code(inspect.unwrap(turns).__globals__["rotate_half"], llama.rotate_half)
            and attention.head_dim % (2 * LANES) == 0
        )
        return cls(attention, tells, linears, norms) if alike else None

    def bound(self) -> list[torch.Tensor | None]:
        """The linear layers' weights, then their biases, then the norms' weights."""
        linears = [module._parameters for module in self.linears]
        return [each["weight"] for each in linears] + [each["bias"] for each in linears] + [norm._parameters["weight"] for norm in self.norms]


def _runs(module: nn.Module, known: type[nn.Module]) -> bool:
    return same_code(type(module).forward, known.forward)


def _split(bound: Sequence[torch.Tensor | None]) -> tuple[list[Any], list[Any], list[Any]]:
    """Weights, biases, weights of norms."""
    return list(bound[:_LINEARS]), list(bound[_LINEARS : 2 * _LINEARS]), list(bound[2 * _LINEARS :])


class NativeLayer:
    """The ``forward`` of one decoder layer."""

    def __init__(
        self, own: Callable[..., torch.Tensor], parts: Parts, product: Product, code: StepsCode, attend: Callable[..., Any], desk: Desk
    ) -> None:  # fmt: skip
        """``own``: transformers'; ``attend``: what its AttentionInterface has for the layer's attention."""
        self._own, self._parts, self._product, self._code, self._attend, self._desk = own, parts, product, code, attend, desk
        self._program: _Program | None = None

    def __call__(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, *, position_embeddings: tuple[torch.Tensor, torch.Tensor], **arguments: Any
    ) -> torch.Tensor:  # fmt: skip
        """(1, rows, hidden) → the same."""
        attention = self._parts.attention
        with unwatched():
            program = self._for_what_is_bound(hidden_states)
            if program is not None:
                x = hidden_states.contiguous()
                query, key, value = program.before(x, *position_embeddings)
                told = {"dropout": 0.0, "scaling": attention.scaling, **self._parts.tells(attention), **arguments}
                attended, _ = self._attend(attention, query, key, value, attention_mask, **told)
                return program.behind(x, attended)
        return self._own(hidden_states, attention_mask, position_embeddings=position_embeddings, **arguments)

    def _for_what_is_bound(self, x: torch.Tensor) -> _Program | None:
        """None where there is no code of ours for these weights."""
        bound = self._parts.bound()
        if self._program is None or not self._program.is_of(bound):
            suits = x.dtype is self._code.dtype and _suit(bound, self._product)
            self._program = _Program(self._parts, bound, self._product, self._code, self._desk) if suits else None
        return self._program


def _suit(bound: Sequence[torch.Tensor | None], product: Product) -> bool:
    weights, biases, norms = _split(bound)
    pieces = [pieces_of(weight) for weight in weights]
    return (
        all(some and all(product.has(piece) for piece in some) for some in pieces)
        and all(bias is None or (bias.is_cpu and bias.shape == weight.shape[:1]) for weight, bias in zip(weights, biases, strict=True))
        and all(norm.is_cpu and norm.dtype is product.dtype and norm.is_contiguous() and norm.numel() % LANES == 0 for norm in norms)
    )


class _Program:
    """The steps of a layer with the weights that are bound to it. The first list begins with its norm and ends with two turns; the second begins with
    what attention gives and ends with what the layer gives."""

    def __init__(self, parts: Parts, bound: Sequence[torch.Tensor | None], product: Product, code: StepsCode, desk: Desk) -> None:
        self._bound, self._product, self._code, self._desk = bound, product, code, desk
        self._weights, biases, self._norms = _split(bound)
        self._biases = [None if bias is None else bias.float() for bias in biases]
        self._epsilons = [norm.variance_epsilon for norm in parts.norms]
        self._depth: int = parts.attention.head_dim
        outputs = [weight.shape[0] for weight in self._weights]
        self._heads = [count // self._depth for count in outputs[:3]]
        self._hidden, self._wide = outputs[3], outputs[4]
        self._widths = {  # what attention has done with is memory for what comes behind it, and so is what the gate has
            "x32": max(weight.shape[1] for weight in self._weights[: _LINEARS - 1]), "wide32": self._wide,
            "q": max(outputs[0], self._hidden), "k": outputs[1], "v": outputs[2],
            "gate": max(self._wide, self._hidden), "up": max(self._wide, self._hidden),
        }  # fmt: skip
        rounded = [weight.shape[1] for weight in self._weights if native.rounds(pieces_of(weight))]
        self._widths["rounded32"] = native.rounded_bytes(max(rounded, default=0)) // 4
        self._threads = torch.get_num_threads()
        self._grown = -1

    def is_of(self, bound: Sequence[torch.Tensor | None]) -> bool:
        return all(map(operator.is_, bound, self._bound)) and self._threads == torch.get_num_threads()

    def before(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, (1, heads, rows, depth) each, valid until the next layer."""
        rows = x.shape[1]
        self._desk.make_room(rows, self._widths)
        if self._grown != self._desk.grown:
            self._write()
        cos, sin = cos.contiguous(), sin.contiguous()
        self._before.steps[0].x = x.data_ptr()
        for turn in self._before.steps[-2:]:
            turn.other, turn.weight = cos.data_ptr(), sin.data_ptr()
        self._before.take(rows)
        query, key, value = (
            self._desk.rows(name, 1, rows, heads, self._depth).transpose(1, 2) for name, heads in zip("qkv", self._heads, strict=True)
        )
        return query, key, value

    def behind(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """``x``: what came in; ``attended``: (1, rows, heads, depth) → (1, rows, hidden)."""
        attended, out = attended.contiguous(), torch.empty_like(x)
        steps = self._behind.steps
        steps[0].x, steps[self._added].x, steps[-1].out = attended.data_ptr(), x.data_ptr(), out.data_ptr()
        self._behind.take(x.shape[1])
        return out

    def _write(self) -> None:
        """With the desk's addresses as they are."""
        at, self._grown = self._desk.address, self._desk.grown
        before, behind = Listing(), Listing()
        self._norm(before, 0, 0, at("x32"))
        self._products(before, "x32", {0: "q", 1: "k", 2: "v"})
        for number in range(len(self._norms) - 2):
            name = "qk"[number]
            self._norm(before, 2 + number, at(name), at(name), Op.NORM_STORED, self._heads[number])
        for name, heads in zip("qk", self._heads, strict=False):
            before.step(Op.TURN, at(name), out=at(name), width=self._depth, more=heads)
        behind.step(Op.WIDEN, out=at("x32"), width=self._weights[3].shape[1])
        self._products(behind, "x32", {3: "gate"})
        self._added = behind.step(Op.ADD, other=at("gate"), out=at("q"), width=self._hidden)
        self._norm(behind, 1, at("q"), at("x32"))
        self._products(behind, "x32", {4: "gate", 5: "up"})
        behind.step(Op.GATE, at("gate"), at("up"), out=at("wide32"), width=self._wide)
        self._products(behind, "wide32", {6: "up"})
        behind.step(Op.ADD, at("q"), at("up"), width=self._hidden)
        self._before, self._behind = Listed(self._code, before), Listed(self._code, behind)

    def _norm(self, listing: Listing, number: int, x: int, out: int, op: Op = Op.NORM, heads: int = 1) -> None:
        weight = self._norms[number]
        listing.step(op, x, weight=weight.data_ptr(), out=out, width=weight.numel(), more=heads, epsilon=self._epsilons[number])

    def _products(self, listing: Listing, x: str, outs: Mapping[int, str]) -> None:
        """Of the same rows with several matrices."""
        at = self._desk.address
        pieces = {number: pieces_of(self._weights[number]) for number in outs}
        if native.rounds(piece for some in pieces.values() for piece in some):
            call = native.rounding(at(x), 0, self._weights[min(outs)].shape[1], at("rounded32"))
            listing.product(self._product.addresses[native.ROUNDING], call)
        for number, out in outs.items():
            for scheme, call in self._product.calls(at(x), at("rounded32"), 0, pieces[number], self._biases[number], at(out)):
                listing.product(self._product.addresses[scheme], call)
