"""The three names of exactness, ``[worker] kernels``, and what each means for a sweep.

| name      | attention | KV                | linear layers            | promise                                                   |
|-----------|-----------|-------------------|--------------------------|-----------------------------------------------------------|
| reference | whole     | as in transformers| torch's, as rows come    | bit-identical to transformers for one sequence, unchunked |
| invariant | tiled     | paged             | ours, or torch's in groups | a row's bits do not depend on what else is in the sweep |
| fast      | whole     | paged             | ours, or torch's         | none beyond rounding: texts may part at near-ties         |

So it is where a sweep is packed. Families that cannot be packed (passes.py) bring attention and KV of their own; under ``invariant`` they are
computed token by token, and a row alone needs no group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from . import attention, banded
from .arithmetic import Arithmetic
from .attention import PackedAttention
from .caches import AsTransformers
from .kv import Paged
from .native_layer import NativeLayer, Parts
from .passes import CUTS, Abreast, Batching, Pack, Packed
from .rows import Independent, Watch
from .steps import Desk

#: The batchings that can keep each name's promise, best first.
BATCHINGS: Final = {
    "reference": ("packed", "sequences", "prompts"),
    "invariant": ("packed", "tokens"),
    "fast": ("packed", "sequences", "prompts"),
}


#: torch.nn.functional.linear, or what gives the same otherwise.
Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def _as_they_come(_pack: Pack) -> AbstractContextManager[Any]:
    return contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class Kernels:
    batching: Batching
    linear: Linear
    #: entered around every sweep's passes
    around: Callable[[Pack], AbstractContextManager[Any]] = _as_they_come
    #: what a decoder layer's forward becomes; None where it stays as it is
    layer: Callable[[nn.Module], Callable[..., torch.Tensor] | None] = lambda _: None

    def prepare(self, model: PreTrainedModel) -> None:
        """Once, before the first pass."""
        self.batching.prepare(model)
        if self.linear is not functional.linear:
            for module in model.modules():
                if type(module).forward is nn.Linear.forward:
                    module.forward = partial(_forward_of, module, self.linear)
                elif (forward := self.layer(module)) is not None:
                    module.forward = forward


def _forward_of(module: nn.Linear, linear: Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, module.weight, module.bias)


def _layers(arithmetic: Arithmetic, attend: PackedAttention) -> Callable[[nn.Module], Callable[..., torch.Tensor] | None]:
    """Those of one model, by code of ours where their own is known to it."""
    steps = arithmetic.steps
    if steps is None:
        return lambda _: None
    desk = Desk(steps.dtype)

    def forward(module: nn.Module) -> Callable[..., torch.Tensor] | None:
        parts = Parts.of(module)
        return None if parts is None else NativeLayer(module.forward, parts, arithmetic.product, steps, attend, desk)

    return forward


def linear_by(ours: Independent, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear`` by ``ours`` where that can give it, and else by torch's own."""
    out = ours(x, weight, bias)
    return banded.linear(x, weight, bias) if out is None else out


def choose(
    name: str, batching: str, config: PreTrainedConfig, device: torch.device, packed: PackedAttention, arithmetic: Arithmetic
) -> Kernels:
    """The kernels of that name; ``batching`` and ``arithmetic`` are what the probe found."""
    ours = arithmetic.product.attempt if arithmetic.product else None
    linear: Linear = functional.linear if name == "reference" else partial(linear_by, ours) if ours else banded.linear
    if batching != "packed":
        return Kernels(Abreast(device, config, CUTS[batching]), linear)
    if name == "reference":
        return Kernels(Packed(device, packed, partial(attention.attend_whole, attention.as_family), lambda: AsTransformers(config)), linear)
    new_kv = partial(Paged, arithmetic.attention is not None, getattr(torch, arithmetic.kv) if arithmetic.kv else None)
    layers = _layers(arithmetic, packed)
    if name == "fast":
        batching_ = Packed(device, packed, partial(attention.attend_whole, attention.grouped), new_kv, arithmetic.attention)
        return Kernels(batching_, linear, layer=layers)
    watch = Watch(arithmetic.groupings, ours)
    return Kernels(
        Packed(device, packed, partial(attention.attend_tiled, arithmetic.tile), new_kv, arithmetic.attention), linear,
        lambda pack: watch.around(len(pack.tokens), len(pack.wanted)), layers,
    )  # fmt: skip
