"""How this machine multiplies rows with weights: what the probe finds once, and every worker of this model then does.

It is decided by what the processor can do, not by a clock: it is a part of a text's arithmetic, and the same machine must find the same again.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from potatod.dtypes import RAW

from . import cpu, native
from .attention import TILES, find_tile
from .native import Product
from .native_attention import NativeAttention
from .rows import Grouping, find_groupings

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

    def in_pieces(self, stored: Collection[str]) -> bool:
        """Whether matrices ``stored`` in these schemes are multiplied with piece by piece: those of a dtype's own bytes by our own product only."""
        return RAW not in stored or (self.product is not None and RAW in self.product.codes)

    def to_json(self) -> dict[str, Any]:
        return {
            "groupings": [[*shape, grouping.rows, grouping.fixed] for shape, grouping in self.groupings.items()],
            "tile": self.tile,
            "codes": {scheme: base64.b64encode(code).decode() for scheme, code in self.product.codes.items()} if self.product else {},
            "dtype": str(self.product.dtype).removeprefix("torch.") if self.product else "",
            "attention": [base64.b64encode(self.attention.code).decode(), str(self.attention.dtype).removeprefix("torch.")] if self.attention else [],
        }

    @classmethod
    def from_json(cls, page: Mapping[str, Any]) -> Arithmetic:
        groupings = {(out, width): Grouping(rows, fixed) for out, width, rows, fixed in page["groupings"]}
        codes = {scheme: base64.b64decode(code) for scheme, code in page["codes"].items()}
        product = Product(codes, getattr(torch, page["dtype"])) if codes else None
        attention = NativeAttention(base64.b64decode(page["attention"][0]), getattr(torch, page["attention"][1])) if page["attention"] else None
        return cls(groupings, page["tile"], product, attention)


#: torch's own, however the rows come.
PLAIN: Final = Arithmetic()


def find(name: str, shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device, stored: Collection[str] = (RAW,)) -> Arithmetic:
    """For the kernels ``name`` and linear layers with weights of these (out, in) shapes, which are stored in these schemes."""
    if name == "reference":
        return PLAIN
    schemes = [scheme for scheme in sorted(stored) if scheme != RAW or better_than_torch()]
    product = _product(dtype, schemes) if schemes and device.type == "cpu" and native.runs_here() else None
    others = [shape for shape in shapes if product is None or RAW not in product.codes or not product.takes(shape)]
    groupings = find_groupings(others, dtype, device) if name == "invariant" else {}
    attention = _attention(dtype) if device.type == "cpu" and better_than_torch() else None
    return Arithmetic(groupings, find_tile(dtype, device), product, attention)


def better_than_torch() -> bool:
    """Measured where there are no instructions for bf16: one row in two thirds of torch's time, 64 in a fifth, and fp32 is no slower. Where there
    are, torch uses them and we do not."""
    return native.runs_here() and not cpu.multiplies(torch.bfloat16)


def _attention(dtype: torch.dtype) -> NativeAttention:
    from . import attention_code  # as below

    return NativeAttention(attention_code.compiled(str(dtype).removeprefix("torch.")), dtype)


def _product(dtype: torch.dtype, schemes: Sequence[str]) -> Product:
    from . import microkernel  # only processes that end carry LLVM

    return Product({scheme: microkernel.compiled(str(dtype).removeprefix("torch."), scheme) for scheme in schemes}, dtype)
