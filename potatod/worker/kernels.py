"""The three names of exactness, ``[worker] kernels``, and what each means for a sweep.

| name      | attention | KV                | rows of linear layers | promise                                                          |
|-----------|-----------|-------------------|-----------------------|------------------------------------------------------------------|
| reference | whole     | as in transformers| as they come          | bit-identical to transformers for one sequence, unchunked        |
| invariant | tiled     | grown             | in groups             | a row's bits do not depend on what else is in the sweep          |
| fast      | whole     | grown             | as they come          | none beyond rounding: texts may part at near-ties                |

So it is where a sweep is packed. Families that cannot be packed (passes.py) bring attention and KV of their own; under ``invariant`` they are
computed token by token, and a row alone needs no group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from transformers import PreTrainedConfig

from . import attention
from .attention import PackedAttention
from .kv import AsTransformers, Grown
from .passes import CUTS, Abreast, Batching, Pack, Packed
from .rows import Grouping, Watch

#: The batchings that can keep each name's promise, best first.
BATCHINGS: Final = {
    "reference": ("packed", "sequences", "prompts"),
    "invariant": ("packed", "tokens"),
    "fast": ("packed", "sequences", "prompts"),
}


@dataclass(frozen=True, slots=True)
class Kernels:
    batching: Batching
    #: entered around every sweep's passes
    around: Callable[[Pack], AbstractContextManager[Any]]


def choose(
    name: str, batching: str, config: PreTrainedConfig, device: torch.device, packed: PackedAttention,
    groupings: Mapping[tuple[int, int], Grouping], tile: int,
) -> Kernels:  # fmt: skip
    """The kernels of that name; ``batching``, ``groupings`` (for linear layers) and ``tile`` (of attention) are what the probe found."""
    if batching != "packed":
        return Kernels(Abreast(device, config, CUTS[batching]), _as_they_come)
    if name == "reference":
        return Kernels(Packed(device, packed, attention.attend_whole, lambda: AsTransformers(config)), _as_they_come)
    if name == "fast":
        return Kernels(Packed(device, packed, attention.attend_whole, Grown), _as_they_come)
    watch = Watch(groupings)
    return Kernels(
        Packed(device, packed, partial(attention.attend_tiled, tile), Grown), lambda pack: watch.around(len(pack.tokens), len(pack.wanted))
    )


def _as_they_come(_pack: Pack) -> AbstractContextManager[Any]:
    return contextlib.nullcontext()
