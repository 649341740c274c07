"""Checkpoints whose weights are stored in fewer bits with scales beside them: dequantised as they are read, by
transformers' own code.

fp8     DeepSeek-V3 and its kin: NAME.weight in float8, NAME.weight_scale_inv per block of 128 × 128
mxfp4   gpt-oss: NAME_blocks, two fp4 values a byte, and NAME_scales, an exponent for 32 of them

Integers in groups are gptq.py's and compressed_tensors.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType, ModuleType
from typing import Any, Final

import torch
from torch.nn.functional import pad
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import dequantize_convertops

from potatod.errors import ModelDataError, UnsupportedModel

from . import compressed_tensors, gptq
from .checkpoint import PLAIN, Lazy
from .grouped import Found

_NAMES: Final = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_READABLE: Final = ("fp8", "mxfp4", *gptq.METHODS, *compressed_tensors.METHODS)


@dataclass(frozen=True)
class Fp8Tensor:
    """A float8 matrix with the inverse scales of its blocks."""

    name: str
    weight: Lazy
    scales: Lazy
    #: rows and columns that share a scale; None where one serves the whole
    block: tuple[int, int] | None
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        weight, scales = self.weight[...], self.scales[...]
        rows, columns = weight.shape[-2:]
        if self.block is not None:  # transformers takes whole blocks only, and 576 rows are four and a half of 128
            below, right = scales.shape[-2] * self.block[0] - rows, scales.shape[-1] * self.block[1] - columns
            if not (0 <= below < self.block[0] and 0 <= right < self.block[1]):
                shapes = f"{list(scales.shape)} scales for {list(weight.shape)} weights"
                raise ModelDataError(f"{self.name}: {shapes} do not fit in blocks of {list(self.block)}")
            weight = pad(weight.to(torch.float32), (0, right, 0, below)) if below or right else weight
        values: torch.Tensor = Fp8Dequantize(None)._dequantize_one(weight, scales, output_dtype=self.dtype)
        return values[..., :rows, :columns].contiguous()

    def rows(self, first: int, last: int) -> torch.Tensor:
        return self[...][first:last]

    def get_dtype(self) -> str:
        return _NAMES[self.dtype]


@dataclass(frozen=True)
class Mxfp4Tensor:
    """One projection of a layer's experts, in fp4 blocks."""

    name: str
    #: (experts, rows, blocks in a row, 16) uint8
    blocks: Lazy
    #: (experts, rows, blocks in a row) uint8
    scales: Lazy
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(experts, columns, rows): transformers keeps these transposed."""
        experts, rows, groups, half = self.blocks.shape
        return experts, groups * half * 2, rows

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        if tuple(self.blocks.shape[:-1]) != tuple(self.scales.shape):
            raise ModelDataError(
                f"{self.name}: blocks {list(self.blocks.shape)} and scales {list(self.scales.shape)} do not fit each other"
            )
        out = torch.empty(self.shape, dtype=self.dtype)
        for expert in range(self.shape[0]):  # one at a time: the table of indices takes eight times the blocks
            blocks, scales = self.blocks.rows(expert, expert + 1), self.scales.rows(expert, expert + 1)
            out[expert : expert + 1] = dequantize_convertops(blocks, scales, self.dtype)
        return out

    def rows(self, first: int, last: int) -> torch.Tensor:
        return self[...][first:last]

    def get_dtype(self) -> str:
        return _NAMES[self.dtype]


def _others(method: Mapping[str, Any]) -> ModuleType | None:
    """Who reads what is not read here."""
    return next((each for each in (gptq, compressed_tensors) if method.get("quant_method") in each.METHODS), None)


def check(method: dict[str, Any] | None, where: Path) -> None:
    """Refuses what cannot be dequantised on import; ``method`` is the config's quantization_config."""
    name = None if method is None else method.get("quant_method", "a method without a name")
    if name is not None and name not in _READABLE:
        raise UnsupportedModel(
            f"{where}: its weights are quantised ({name}), and only {', '.join(_READABLE)} can be read; take the original bf16 or fp16 "
            "checkpoint, or a GGUF file"
        )
    if method is not None and (others := _others(method)) is not None:
        others.check(method, where)


def dequantised(tensors: dict[str, Lazy], method: dict[str, Any] | None, dtype: torch.dtype) -> dict[str, Lazy]:
    """The same checkpoint as if it had been stored in ``dtype``."""
    if method is not None and (others := _others(method)) is not None:
        found: Found = others.found(tensors, method, dtype)
        matrices, taken = found
        return {name: lazy for name, lazy in tensors.items() if name not in taken} | matrices
    block = None if method is None else method.get("weight_block_size")
    out: dict[str, Lazy] = {}
    for name, lazy in tensors.items():
        scales = tensors.get(f"{name}_scale_inv")
        if name.endswith(("_scale_inv", ".activation_scale")):
            continue
        if name.endswith("_blocks") and (stem := name.removesuffix("_blocks")) + "_scales" in tensors:
            out[stem] = Mxfp4Tensor(stem, lazy, tensors[f"{stem}_scales"], dtype)
        elif name.endswith("_scales") and name.removesuffix("_scales") + "_blocks" in tensors:
            continue
        elif scales is not None:
            out[name] = Fp8Tensor(name, lazy, scales, (int(block[0]), int(block[1])) if block else None, dtype)
        elif lazy.dtype.is_floating_point and lazy.dtype not in PLAIN:
            raise ModelDataError(f"{name} is stored as {lazy.get_dtype()} without scales ({name}_scale_inv): the checkpoint is incomplete")
        else:
            out[name] = lazy
    return out
