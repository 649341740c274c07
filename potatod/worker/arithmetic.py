"""How this machine multiplies rows with weights: what the probe finds once, and every worker of this model then does.

It is decided by what the processor can do, not by a clock: it is a part of a text's arithmetic, and the same machine must find the same again.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from potatod import forms
from potatod.dtypes import RAW
from potatod.room import Together

from . import cpu, native
from .attention import TILES, find_tile
from .decoded import Decoded
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
    #: what linear layers use instead of torch's product; None where torch's is the faster
    product: Product | None = None
    #: attention of all sequences at once; None where torch's products are the faster
    attention: NativeAttention | None = None
    #: what computes decoder layers whose code is known; None where none of ours runs
    steps: StepsCode | None = None
    #: what decodes matrices for torch's product, where that is the faster for what they hold; None where there are none
    decoded: Decoded | None = None

    def together(self, stored: Collection[str]) -> Together:
        """What of matrices ``stored`` in these schemes is put together to be multiplied with: our own product takes any of them piece by piece, and
        torch's those that become values a few rows at a time."""
        return _together(stored, self.product.codes if self.product is not None else ())

    def to_json(self) -> dict[str, Any]:
        return {
            "groupings": [[*shape, grouping.rows, grouping.fixed] for shape, grouping in self.groupings.items()],
            "tile": self.tile,
            "codes": {scheme: base64.b64encode(code).decode() for scheme, code in self.product.codes.items()} if self.product else {},
            "dtype": str(self.product.dtype).removeprefix("torch.") if self.product else "",
            "decoding": {scheme: base64.b64encode(code).decode() for scheme, code in self.decoded.codes.items()} if self.decoded else {},
            "steps": [base64.b64encode(self.steps.code).decode(), str(self.steps.dtype).removeprefix("torch.")] if self.steps else [],
            "attention": [base64.b64encode(self.attention.code).decode(), str(self.attention.dtype).removeprefix("torch.")] if self.attention else [],
        }

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> Arithmetic:
        groupings = {(out, width): Grouping(rows, fixed) for out, width, rows, fixed in page["groupings"]}
        codes = {scheme: base64.b64decode(code) for scheme, code in page["codes"].items()}
        product = Product(codes, getattr(torch, page["dtype"])) if codes else None
        attention = NativeAttention(base64.b64decode(page["attention"][0]), getattr(torch, page["attention"][1])) if page["attention"] else None
        steps = StepsCode(base64.b64decode(page["steps"][0]), getattr(torch, page["steps"][1])) if page["steps"] else None
        decoding = {scheme: base64.b64decode(code) for scheme, code in page["decoding"].items()}
        return cls(groupings, page["tile"], product, attention, steps, Decoded(decoding) if decoding else None)


#: torch's own, however the rows come.
PLAIN: Final = Arithmetic()


def find(name: str, shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device, stored: Collection[str] = (RAW,)) -> Arithmetic:
    """For the kernels ``name`` and linear layers with weights of these (out, in) shapes, which are stored in these schemes."""
    if name == "reference":
        return PLAIN
    here = device.type == "cpu" and native.runs_here()
    as_torch = {scheme for scheme in stored if (scheme == RAW or forms.exact(scheme)) and not better_than_torch()}
    schemes = sorted(set(stored) - as_torch)
    product = _product(dtype, schemes) if schemes and here else None
    others = [shape for shape in shapes if product is None or as_torch or not product.takes(shape)]
    groupings = find_groupings(others, dtype, device) if name == "invariant" else {}
    attention = _attention(dtype) if device.type == "cpu" and better_than_torch() else None
    exact = sorted(as_torch - {RAW})
    steps = _steps(dtype) if here else None
    return Arithmetic(groupings, find_tile(dtype, device), product, attention, steps, _decoded(exact) if exact and here else None)


def would_put_together(stored: Collection[str]) -> Together:
    """What :func:`find` would find for a cpu, as :meth:`Arithmetic.together` says it."""
    return _together(stored, stored if better_than_torch() else ())


def _together(stored: Collection[str], ours: Collection[str]) -> Together:
    theirs = [scheme for scheme in stored if scheme not in ours]
    if any(forms.exact(scheme) for scheme in theirs):
        return "matrix"
    return "bands" if RAW in theirs else "nothing"


def better_than_torch() -> bool:
    """Measured where there are no instructions for bf16: one row in two thirds of torch's time, 64 in a fifth, and fp32 is no slower. Where there
    are, torch uses them and we do not."""
    return native.runs_here() and not cpu.multiplies(torch.bfloat16)


def _attention(dtype: torch.dtype) -> NativeAttention:
    from . import attention_code  # as below

    return NativeAttention(attention_code.compiled(str(dtype).removeprefix("torch.")), dtype)


def _steps(dtype: torch.dtype) -> StepsCode:
    from . import steps_code  # as below

    return StepsCode(steps_code.compiled(str(dtype).removeprefix("torch.")), dtype)


def _product(dtype: torch.dtype, schemes: Sequence[str]) -> Product:
    from . import microkernel  # only processes that end carry LLVM

    return Product(microkernel.codes(str(dtype).removeprefix("torch."), schemes), dtype)


def _decoded(schemes: Sequence[str]) -> Decoded:
    from . import microkernel  # as above

    return Decoded({scheme: microkernel.decoding(scheme) for scheme in schemes})
