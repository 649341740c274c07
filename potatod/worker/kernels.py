"""The three names of exactness, ``[worker] kernels``, and what each means for a sweep.

| name      | attention | KV                | rows of linear layers | promise                                                          |
|-----------|-----------|-------------------|-----------------------|------------------------------------------------------------------|
| reference | whole     | as in transformers| as they come          | bit-identical to transformers for one sequence, unchunked        |
| invariant | tiled     | grown             | in groups             | a row's bits do not depend on what else is in the sweep          |
| fast      | whole     | grown             | as they come          | none beyond rounding: texts may part at near-ties                |
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from . import attention
from .kv import AsTransformers, Grown, SequenceKV
from .rows import GroupedRows, Grouping


@dataclass(frozen=True, slots=True)
class Kernels:
    attend: Callable[..., torch.Tensor]
    new_kv: Callable[[], SequenceKV]
    #: entered around every forward pass
    around: Callable[[], AbstractContextManager[Any]]


def choose(name: str, config: PreTrainedConfig, groupings: Mapping[tuple[int, int], Grouping]) -> Kernels:
    """The kernels of that name; ``groupings`` is the probe's table for linear layers."""
    if name == "reference":
        return Kernels(attention.attend_whole, lambda: AsTransformers(config), contextlib.nullcontext)
    if name == "fast":
        return Kernels(attention.attend_whole, Grown, contextlib.nullcontext)
    return Kernels(attention.attend_tiled, Grown, lambda: GroupedRows(groupings))
