"""Which scheme each tensor of a model is stored in, out of what `prepare --dtype` was told.

    --dtype int4 --dtype "*.down_proj.weight=int8"

Only linear layers' matrices and the head are stored otherwise than as their dtype's own bytes. What is small, or decides much with few weights
(norms, biases, routers, the embedding), stays as it is; under int4 the head is int8, as elsewhere in the field. A matrix whose width a scheme
cannot take gets the next better one that can, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

import torch
from torch import nn

from potatod import forms, machine, memory
from potatod.dtypes import AUTO, CHOICES, FLOATS, KEEP, PACKED, RAW, SCHEMES
from potatod.errors import UsageError
from potatod.sizes import human_size

from .skeleton import Skeleton

#: What routes tokens to experts: few weights that decide which others are used.
_ROUTERS: Final = ("gate", "router")
#: RAM that weights do not get: the processes and a little KV.
_BESIDE: Final = 800 << 20
#: A matrix of fewer rows is not worth it.
_FEW_ROWS: Final = 64
#: What is tried where a scheme cannot take a width.
_BETTER: Final = {"int4": "int8", "int8": RAW, PACKED: RAW}


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for."""

    #: of the values: None for the checkpoint's own
    dtype: torch.dtype | None
    #: of matrices: "auto" until it is settled(), "raw", one of SCHEMES, or "keep"
    scheme: str
    #: (pattern of names, scheme); the first that fits counts
    patterns: tuple[tuple[str, str], ...]


def wish(dtype: str) -> Wish:
    """Out of dtypes and PATTERN=SCHEME, separated by commas: at most one dtype of values, and one scheme. Raises UsageError."""
    own, chosen, patterns = "", AUTO, []
    for text in dtype.split(","):
        pattern, equals, scheme = text.rpartition("=")
        if equals and scheme not in (RAW, *SCHEMES):
            raise UsageError(f'dtype "{text}": "{scheme}" is not one of {", ".join((RAW, *SCHEMES))}, which modules can be stored as')
        if equals:
            patterns.append((pattern, scheme))
        elif scheme not in CHOICES:
            raise UsageError(f'dtype "{scheme}" is not one of {", ".join(CHOICES)}')
        elif (own if scheme in FLOATS else chosen) not in ("", AUTO):
            raise UsageError(f'dtype "{dtype}" says twice what weights are to be')
        elif scheme in FLOATS:
            own = scheme
        else:
            chosen = scheme
    return Wish(getattr(torch, own) if own else None, RAW if own and chosen == AUTO else chosen, tuple(patterns))


def settled(asked: Wish, dtype: torch.dtype, weights: Iterable[torch.Tensor], ram: int | None, notice: Callable[[str], None]) -> Wish:
    """What `auto` comes to: packed where the weights in bf16 would not fit into the RAM, and so come from the disk for every token; else as they are.
    So they are too where no code of ours runs, or a card computes: elsewhere than on such a processor packed weights are decoded more slowly.

    ``weights``: of this dtype, on meta; ``ram``: bytes, None for what is available here; ``notice`` is told of packed.
    """
    if asked.scheme != AUTO:
        return asked
    nbytes = sum(each.numel() * each.element_size() for each in weights)
    room = (memory.available().spare_bytes if ram is None else ram) - _BESIDE
    if dtype != torch.bfloat16 or nbytes <= room or not machine.runs_our_code() or torch.cuda.is_available():
        return replace(asked, scheme=RAW)
    notice(
        f"{human_size(nbytes)} of weights in bfloat16 do not fit into the RAM here: their matrices are stored packed, the same bits in 0.70 of the "
        "bytes (--dtype bfloat16 stores them as they are; keep, where the checkpoint is quantised, as it has them)"
    )
    return replace(asked, scheme=PACKED)


class Storing:
    """``of(name, tensor)``: the scheme of each tensor."""

    def __init__(self, asked: Wish, built: Skeleton, kept: Mapping[str, str]) -> None:
        """``kept``: the scheme that holds a checkpoint's quantised tensor as it is, by the model's name for it."""
        self._asked = asked
        self._kept = {built.head_name: kept[built.embed_name], **kept} if built.tied and built.embed_name in kept else kept
        self._head = built.head_name
        self._matrices = {
            f"{name}.weight" for name, module in built.model.named_modules() if type(module).forward is nn.Linear.forward
        }  # fmt: skip
        for pattern, _ in asked.patterns:
            if not any(fnmatchcase(name, pattern) for name in self._matrices):
                raise UsageError(f'no linear layer\'s weight is called "{pattern}"; there are such as {", ".join(sorted(self._matrices)[:3])}')
        #: by name, how and why it is stored otherwise than was asked
        self._otherwise: dict[str, str] = {}

    @property
    def ties_stay(self) -> bool:
        """Whether a tied head is the embedding's own bytes."""
        return self._wanted(self._head) == RAW

    def of(self, name: str, tensor: torch.Tensor) -> str:
        """``tensor``: its dtype and shape, on meta or anywhere."""
        if name not in self._matrices or tensor.shape[0] < _FEW_ROWS:
            return RAW
        wanted = self._wanted(name)
        if wanted == RAW:
            return RAW
        if wanted == PACKED and tensor.dtype != torch.bfloat16:
            return self._instead(name, RAW, f"packed holds bf16 and not {str(tensor.dtype).removeprefix('torch.')}")
        scheme = wanted
        while scheme != RAW and (why := forms.refusal(scheme, tensor.shape[1])):
            scheme = self._instead(name, _BETTER.get(scheme, RAW), why)
        return scheme

    def unpackable(self, name: str) -> str:
        """A matrix turned out not to be what the scheme holds."""
        return self._instead(name, RAW, "its weights' exponents lie too far apart for packed")

    def sentences(self) -> Sequence[str]:
        """What is stored otherwise than was asked, and why."""
        names: dict[str, list[str]] = {}
        for name, why in self._otherwise.items():
            names.setdefault(why, []).append(name)
        return [f"{own[0]}{f' and {len(own) - 1} more' if len(own) > 1 else ''}: {why}" for why, own in names.items()]

    def _wanted(self, name: str) -> str:
        for pattern, scheme in self._asked.patterns:
            if fnmatchcase(name, pattern):
                return scheme
        if name.split(".")[-2] in _ROUTERS:
            return RAW
        if self._asked.scheme == KEEP:
            if name not in self._kept and name in self._matrices:
                self._instead(name, RAW, "the file has it in no form that can be kept: its values are stored")
            return self._kept.get(name, RAW)
        return "int8" if name == self._head and self._asked.scheme == "int4" else self._asked.scheme

    def _instead(self, name: str, scheme: str, why: str) -> str:
        self._otherwise[name] = f"stored as {scheme}, since {why}"
        return scheme
