"""How this machine multiplies rows with weights: what the probe finds once, and every worker of this model then does.

It is decided by what the processor can do, not by a clock: it is a part of a text's arithmetic, and the same machine must find the same again.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch

from potatod import forms, machine
from potatod.dtypes import RAW
from potatod.room import Together

from . import cpu, native
from .attention import TILES, find_tile
from .native import Product
from .native_attention import NativeAttention
from .rows import Grouping, find_groupings
from .steps import StepsCode

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    #: how torch's products group rows in ``invariant``, by the weight's (out, in)
    groupings: Mapping[Shape, Grouping] = field(default_factory=dict)
    #: rows of queries that tiled attention computes together
    tile: int = max(TILES)
    #: what linear layers use instead of torch's product; None where none of ours runs
    product: Product | None = None
    #: attention of all sequences at once; None where none of ours runs
    attention: NativeAttention | None = None
    #: what keys and values are kept as, torch's name; None: as they come
    kv: str | None = None
    #: what computes decoder layers whose code is known; None where none of ours runs
    steps: StepsCode | None = None

    def together(self, stored: Collection[str], shapes: Sequence[Shape]) -> Together:
        """What of matrices of these (out, in) shapes, ``stored`` in these schemes, is put together to be multiplied with: our own product takes any of
        them piece by piece, and torch's those that become values a few rows at a time."""
        product = self.product
        if product is None:
            return _together(stored, stored)
        return _together(_torchs(product.most_rows is not None, native.PAIRED in product.codes, shapes), stored)

    def keeping(self, kv: str | None) -> Arithmetic:
        """The same with keys and values that are kept as ``kv``."""
        return replace(self, kv=kv, attention=self.attention and _attention(self.attention.dtype, kv))

    def to_json(self) -> dict[str, Any]:
        return {
            "groupings": [[*shape, grouping.rows, grouping.fixed] for shape, grouping in self.groupings.items()],
            "tile": self.tile,
            "codes": {scheme: base64.b64encode(code).decode() for scheme, code in self.product.codes.items()} if self.product else {},
            "dtype": _name(self.product.dtype) if self.product else "",
            "kv": self.kv,
            "most_rows": self.product.most_rows if self.product else None,
            "steps": [base64.b64encode(self.steps.code).decode(), _name(self.steps.dtype)] if self.steps else [],
            "attention": [*(base64.b64encode(code).decode() for code in self.attention.codes), _name(self.attention.dtype)] if self.attention else [],
        }

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> Arithmetic:
        groupings = {(out, width): Grouping(rows, fixed) for out, width, rows, fixed in page["groupings"]}
        codes = {scheme: base64.b64decode(code) for scheme, code in page["codes"].items()}
        product = Product(codes, getattr(torch, page["dtype"]), page["most_rows"]) if codes else None
        attention = None
        if page["attention"]:
            *attends, name = page["attention"]
            attention = NativeAttention([*map(base64.b64decode, attends)], getattr(torch, name), page["kv"] and getattr(torch, page["kv"]))
        steps = StepsCode(base64.b64decode(page["steps"][0]), getattr(torch, page["steps"][1])) if page["steps"] else None
        return cls(groupings, page["tile"], product, attention, page["kv"], steps)


#: torch's own, however the rows come.
PLAIN: Final = Arithmetic()
#: Rows from which torch's product is the faster where the processor has instructions for what lies in memory, and `fast` lets it have its own bits.
_MANY: Final = 32


def find(name: str, shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device, stored: Collection[str] = (RAW,)) -> Arithmetic:
    """For the kernels ``name`` and linear layers with weights of these (out, in) shapes, which are stored in these schemes."""
    if name == "reference":
        return PLAIN
    here = device.type == "cpu" and native.runs_here()
    product = _product(dtype, sorted(stored), name) if here else None
    others = [shape for shape in shapes if product is None or not all(product.takes(shape, scheme) for scheme in stored)]
    groupings = find_groupings(others, dtype, device) if name == "invariant" else {}
    return Arithmetic(groupings, find_tile(dtype, device), product, _attention(dtype) if here else None, steps=_steps(dtype) if here else None)


def would_put_together(name: str, stored: Collection[str], dtype: torch.dtype, shapes: Sequence[Shape]) -> Together:
    """What :func:`find` would find for a cpu and the kernels ``name``, as :meth:`Arithmetic.together` says it."""
    if name == "reference":
        return "layer"
    if not native.runs_here():
        return _together(stored, stored)
    by_amx = dtype == torch.bfloat16 and machine.lets_us_use_amx() and not native.IN_PAIRS.isdisjoint(stored)
    return _together(_torchs(_leaves(name, dtype, by_amx=by_amx), by_amx, shapes), stored)


def _torchs(leaves: bool, by_amx: bool, shapes: Sequence[Shape]) -> Collection[str]:
    """Schemes of whose matrices some are torch's to multiply with: plain numbers where many rows are left to it, and what AMX has not the width for."""
    narrow = by_amx and any(not native.whole(shape, native.PAIRED) and native.whole(shape, native.PLAIN) for shape in shapes)
    return native.IN_PAIRS if narrow else {RAW} if leaves else ()


def _together(torchs: Collection[str], stored: Collection[str]) -> Together:
    """``torchs``: schemes whose matrices torch multiplies with."""
    theirs = set(torchs) & set(stored)
    if any(forms.exact(scheme) for scheme in theirs):
        return "matrix"
    return "bands" if RAW in theirs else "nothing"


def _leaves(name: str, dtype: torch.dtype, *, by_amx: bool) -> bool:
    """Whether our own product leaves many rows to torch's: in `fast`, where torch has instructions for numbers of which ours makes fp32. Where it has
    none for bf16 ours takes two thirds of its time for one row, a fifth for 64; and fp32 is no slower in ours."""
    return name == "fast" and dtype is not torch.float32 and cpu.multiplies(dtype) and not by_amx


def _attention(dtype: torch.dtype, kv: str | None = None) -> NativeAttention:
    from .machine_code import append_code, attention_code  # as below

    kept = dtype if kv is None else getattr(torch, kv)
    return NativeAttention([attention_code.compiled(_name(dtype), kv), append_code.compiled(kept.itemsize)], dtype, kept)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _steps(dtype: torch.dtype) -> StepsCode:
    from .machine_code import steps_code  # as below

    return StepsCode(steps_code.compiled(_name(dtype)), dtype)


def _product(dtype: torch.dtype, schemes: Sequence[str], name: str) -> Product:
    from .machine_code import microkernel  # only processes that end carry LLVM

    codes = microkernel.codes(_name(dtype), schemes)
    return Product(codes, dtype, _MANY if _leaves(name, dtype, by_amx=native.PAIRED in codes) else None)
