"""Decoder layers that are Llama's own code, computed by ours: a few lists of steps (steps.py) instead of a hundred of torch's operations.

    x ─▶ norm ─▶ q, k, v ─▶ turned by their positions ──▶ attention.py ──▶ o ─▶ + x ─▶ norm ─▶ gate · up ─▶ down ─▶ +

transformers writes these functions anew into every family's file, and in many of them it is the same code: Llama, Mistral, Qwen 2 and 3, and what is
built like them. Where it is not, in the layer or in any of its parts, transformers computes the layer.
"""

from __future__ import annotations

import inspect
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from .banded import Banded, Piece
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
_O: Final = 3
_GATE: Final = 4


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


#: (queries, keys, values), (1, heads, rows, depth) each → (1, rows, heads, depth)
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class NativeLayer:
    """The ``forward`` of one decoder layer: its products by our code where there is code for its weights, and else by its own linear layers."""

    def __init__(
        self, own: Callable[..., torch.Tensor], parts: Parts, product: Product | None, code: StepsCode, attend: Callable[..., Any], desk: Desk
    ) -> None:  # fmt: skip
        """``own``: transformers'; ``attend``: what its AttentionInterface has for the layer's attention."""
        self._own, self._parts, self._product, self._code, self._attend, self._desk = own, parts, product, code, attend, desk
        self._bound: list[torch.Tensor | None] = []
        self._threads = 0
        self._computes = self._suits = False
        self._pieces: list[Piece] = []
        #: by whether our own product is used
        self._programs: dict[bool, _Program] = {}
        #: the last that was asked for
        self.program: _Program | None = None

    def __call__(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, *, position_embeddings: tuple[torch.Tensor, torch.Tensor], **arguments: Any
    ) -> torch.Tensor:  # fmt: skip
        """(1, rows, hidden) → the same."""
        program = self._program_for(hidden_states)
        turned = (1, hidden_states.shape[1], self._parts.attention.head_dim)
        if program is None or not all(each.dtype is hidden_states.dtype and each.shape == turned for each in position_embeddings):
            return self._own(hidden_states, attention_mask, position_embeddings=position_embeddings, **arguments)
        attention = self._parts.attention
        told = {"dropout": 0.0, "scaling": attention.scaling, **self._parts.tells(attention), **arguments}

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            attended: torch.Tensor = self._attend(attention, query, key, value, attention_mask, **told)[0]
            return attended.contiguous()

        with unwatched():
            x, (cos, sin) = hidden_states.contiguous(), (each.contiguous() for each in position_embeddings)
        return program(x, cos, sin, attend)

    def _program_for(self, x: torch.Tensor) -> _Program | None:
        """With what is bound now; None where the layer is not of the dtype that the code is for."""
        bound, threads = self._parts.bound(), torch.get_num_threads()
        if not (len(bound) == len(self._bound) and all(map(operator.is_, bound, self._bound)) and threads == self._threads):
            self._bound, self._threads = bound, threads
            self._programs = {}
            weights, biases, norms = _split(bound)
            in_lanes = all(weights[number].shape[0] % LANES == 0 for number in (_O, _GATE))  # what lies between products is computed so many at a time
            self._computes = x.dtype is self._code.dtype and in_lanes and all(_is_plain(norm, x.dtype) for norm in norms)
            self._suits = self._product is not None and _suit(weights, biases, self._product)
            self._pieces = [piece for weight in weights for piece in pieces_of(weight)] if self._suits else []
        if not self._computes:
            self.program = None
            return None
        ours = self._product if self._product is not None and self._suits and not self._product.leaves(x.shape[1], self._pieces) else None
        if (kind := ours is not None) not in self._programs:
            arguments = self._parts, bound, self._code, self._desk
            self._programs[kind] = _ByItsLinears(*arguments) if ours is None else _ByOurProduct(*arguments, ours)
        self.program = self._programs[kind]
        return self.program


def _is_plain(norm: torch.Tensor, dtype: torch.dtype) -> bool:
    return type(norm) is not Banded and norm.is_cpu and norm.dtype is dtype and norm.is_contiguous() and norm.numel() % LANES == 0


def _suit(weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None], product: Product) -> bool:
    pieces = [pieces_of(weight) for weight in weights]
    return all(some and all(product.has(piece) for piece in some) for some in pieces) and all(
        bias is None or (bias.is_cpu and bias.shape == weight.shape[:1]) for weight, bias in zip(weights, biases, strict=True)
    )


class _Program(ABC):
    """The steps of a layer with the weights that are bound to it."""

    def __init__(self, parts: Parts, bound: Sequence[torch.Tensor | None], code: StepsCode, desk: Desk) -> None:
        self._parts, self._code, self._desk = parts, code, desk
        self._weights, self._biases, self._norms = _split(bound)
        self._epsilons = [norm.variance_epsilon for norm in parts.norms]
        self._depth: int = parts.attention.head_dim
        outputs = [weight.shape[0] for weight in self._weights]
        self._heads = [count // self._depth for count in outputs[:3]]
        self._hidden, self._wide = outputs[_O], outputs[_GATE]

    @abstractmethod
    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attend: Attend) -> torch.Tensor:
        """(1, rows, hidden) → the same."""

    def _norm(self, listing: Listing, number: int, x: int, out: int, op: Op, heads: int = 1) -> None:
        weight = self._norms[number]
        listing.step(op, x, weight=weight.data_ptr(), out=out, width=weight.numel(), more=heads, epsilon=self._epsilons[number])

    def _turn(self, listing: Listing, query: int = 0, key: int = 0) -> None:
        """Queries and keys where they are; what is normed of their heads before."""
        for number, at in enumerate((query, key)[: len(self._norms) - 2]):
            self._norm(listing, 2 + number, at, at, Op.NORM_STORED, self._heads[number])
        for at, heads in zip((query, key), self._heads, strict=False):
            listing.step(Op.TURN, at, out=at, width=self._depth, more=heads)

    def _by_heads(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """(1, rows, heads · depth) each → (1, heads, rows, depth)."""
        return [some.view(1, some.shape[1], heads, self._depth).transpose(1, 2) for some, heads in zip(tensors, self._heads, strict=True)]


class _ByItsLinears(_Program):
    """What lies between the products of torch, or of whatever the linear layers multiply with."""

    def __init__(self, parts: Parts, bound: Sequence[torch.Tensor | None], code: StepsCode, desk: Desk) -> None:
        super().__init__(parts, bound, code, desk)
        first, turn, added, gate, last = (Listing() for _ in range(5))
        self._norm(first, 0, 0, 0, Op.NORM_STORED)
        self._turn(turn)
        added.step(Op.ADD, width=self._hidden)
        self._norm(added, 1, 0, 0, Op.NORM_STORED)
        gate.step(Op.GATE_STORED, width=self._wide)
        last.step(Op.ADD, width=self._hidden)
        self._first, self._turned, self._added, self._gated, self._last = (Listed(code, each) for each in (first, turn, added, gate, last))

    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attend: Attend) -> torch.Tensor:
        rows = x.shape[1]
        q, k, v, o, gate, up, down = (linear.forward for linear in self._parts.linears)
        self._desk.make_room(rows, {"normed": self._hidden, "x": self._hidden})
        normed, between = (self._desk.rows(name, 1, rows, self._hidden) for name in ("normed", "x"))
        self._first.at(0, x=x, out=normed)
        self._first.take(rows)
        taken = [linear(normed).contiguous() for linear in (q, k, v)]
        steps = len(self._turned.steps)
        for number in range(steps):
            self._turned.at(number, x=taken[number % 2], out=taken[number % 2])
        for number in (steps - 2, steps - 1):
            self._turned.at(number, other=cos, weight=sin)
        self._turned.take(rows)
        attended = o(attend(*self._by_heads(taken)).view(1, rows, -1)).contiguous()
        self._added.at(0, x=x, other=attended, out=between)
        self._added.at(1, x=between, out=normed)
        self._added.take(rows)
        opened, other = gate(normed).contiguous(), up(normed).contiguous()
        self._gated.at(0, x=opened, other=other, out=opened)
        self._gated.take(rows)
        closed, out = down(opened).contiguous(), torch.empty_like(x)
        self._last.at(0, x=between, other=closed, out=out)
        self._last.take(rows)
        return out


class _ByOurProduct(_Program):
    """Two lists: from the layer's norm to turned queries and keys, and from what attention gives to what the layer gives."""

    def __init__(self, parts: Parts, bound: Sequence[torch.Tensor | None], code: StepsCode, desk: Desk, product: Product) -> None:
        super().__init__(parts, bound, code, desk)
        self._product = product
        self._added_to = [None if bias is None else bias.float() for bias in self._biases]
        outputs = [weight.shape[0] for weight in self._weights]
        made = {  # of the widest row
            form: max(native.row_bytes(form, weight.shape[1]) for weight in self._weights if form in product.forms(pieces_of(weight)))
            for form in product.forms(piece for weight in self._weights for piece in pieces_of(weight))
        }  # fmt: skip
        self._widths = {  # what attention has done with is memory for what comes behind it, and so is what the gate has
            "x32": max(weight.shape[1] for weight in self._weights[: _LINEARS - 1]), "wide32": self._wide,
            "q": max(outputs[0], self._hidden), "k": outputs[1], "v": outputs[2],
            "gate": max(self._wide, self._hidden), "up": max(self._wide, self._hidden),
            **{_desk_name(form): nbytes // 4 for form, nbytes in made.items()},
        }  # fmt: skip
        self._grown = -1

    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attend: Attend) -> torch.Tensor:
        rows = x.shape[1]
        with unwatched():
            self._desk.make_room(rows, self._widths)
            if self._grown != self._desk.grown:
                self._write()
            self._before.at(0, x=x)
            for turn in (-2, -1):
                self._before.at(turn, other=cos, weight=sin)
            self._before.take(rows)
            widths = (heads * self._depth for heads in self._heads)
            attended = attend(*self._by_heads(self._desk.rows(name, 1, rows, width) for name, width in zip("qkv", widths, strict=True)))
            out = torch.empty_like(x)
            self._behind.at(0, x=attended)
            self._behind.at(self._added, x=x)
            self._behind.at(-1, out=out)
            self._behind.take(rows)
            return out

    def _write(self) -> None:
        """With the desk's addresses as they are."""
        at, self._grown = self._desk.address, self._desk.grown
        before, behind = Listing(), Listing()
        self._norm(before, 0, 0, at("x32"), Op.NORM)
        self._products(before, "x32", {0: "q", 1: "k", 2: "v"})
        self._turn(before, at("q"), at("k"))
        behind.step(Op.WIDEN, out=at("x32"), width=self._weights[3].shape[1])
        self._products(behind, "x32", {3: "gate"})
        self._added = behind.step(Op.ADD, other=at("gate"), out=at("q"), width=self._hidden)
        self._norm(behind, 1, at("q"), at("x32"), Op.NORM)
        self._products(behind, "x32", {4: "gate", 5: "up"})
        behind.step(Op.GATE, at("gate"), at("up"), out=at("wide32"), width=self._wide)
        self._products(behind, "wide32", {6: "up"})
        behind.step(Op.ADD, at("q"), at("up"), width=self._hidden)
        self._before, self._behind = Listed(self._code, before), Listed(self._code, behind)

    def _products(self, listing: Listing, x: str, outs: Mapping[int, str]) -> None:
        """Of the same rows with several matrices."""
        at = self._desk.address
        pieces = {number: pieces_of(self._weights[number]) for number in outs}
        rows = {native.PLAIN: at(x)}
        for form in self._product.forms(piece for some in pieces.values() for piece in some):
            rows[form] = at(_desk_name(form))
            listing.product(self._product.addresses[form], native.making(at(x), 0, self._weights[min(outs)].shape[1], rows[form]))
        for number, out in outs.items():
            for scheme, call in self._product.calls(rows, 0, pieces[number], self._added_to[number], at(out)):
                listing.product(self._product.addresses[scheme], call)


def _desk_name(form: str) -> str:
    """Of rows in this form, whose bytes are whole fp32."""
    return f"{form}32"
