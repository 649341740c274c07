"""Checkpoints whose matrices are small integers, some columns of a row with a scale: GPTQ, AWQ and compressed-tensors.

    GPTQ                NAME.qweight, .qzeros, .scales, .g_idx     packed input by input, zeros output by output and less one
    AWQ                 NAME.qweight, .qzeros, .scales             packed output by output, eight of them in an order of their own
    compressed-tensors  NAME.weight_packed, .weight_scale, …       packed input by input, of every output; or NAME.weight in int8 or float8

weight = (integer − zero) · scale, computed in fp32 and rounded once. Where a scheme of GGUF's blocks says exactly that, it may be kept so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, Final

import torch

from potatod.errors import ModelDataError, UnsupportedModel
from potatod.schemes import GGML

from .checkpoint import STORED_NAMES, Lazy

METHODS: Final = ("gptq", "awq", "compressed-tensors")
_GPTQ_FORMATS: Final = ("gptq", "gptq_v2")
_COMPRESSED_FORMATS: Final = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
#: Where AWQ has the eight outputs of a word.
_AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
#: Columns of a block of GGUF's.
_BLOCK: Final = 32
#: Beside a weight, what rounds activations where it was made: not ours to do.
_OF_ACTIVATIONS: Final = (".input_scale", ".output_scale", ".input_zero_point", ".output_zero_point", ".input_global_scale")


@dataclass(frozen=True, slots=True)
class Parts:
    """Of one matrix."""

    #: (out, in) int16, as they are packed
    integers: torch.Tensor
    bits: int
    #: (out, groups)
    scales: torch.Tensor
    #: (out, groups) int16
    zeros: torch.Tensor
    #: (in): the group of each column
    group_of: torch.Tensor


@dataclass(frozen=True)
class GroupedTensor:
    """A matrix of integers with what they mean."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    #: reads all of it
    parts: Callable[[], Parts]

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        parts = self.parts()
        group_of = parts.group_of
        out = torch.empty(self.shape, dtype=self.dtype)
        for first in range(0, len(out), 1024):  # in fp32 they are eight times as large
            some = slice(first, first + 1024)
            scales, zeros = parts.scales[some].float()[:, group_of], parts.zeros[some][:, group_of]
            out[some] = ((parts.integers[some] - zeros) * scales).to(self.dtype)
        return out

    def rows(self, first: int, last: int) -> torch.Tensor:
        return self[...][first:last]

    def get_dtype(self) -> str:
        return STORED_NAMES[self.dtype]

    def scheme(self) -> str | None:
        """See checkpoint.Blocks."""
        return _scheme(self.parts())

    def planes(self) -> torch.Tensor:
        """See checkpoint.Blocks."""
        parts = self.parts()
        name = str(_scheme(parts))
        groups = parts.group_of[::_BLOCK]
        scales, zeros = parts.scales[:, groups], parts.zeros[:, groups]
        fields = [scales.half()] if name != "q4_1" else [scales.half(), (-zeros * scales.double()).half()]
        integers = parts.integers if name != "q8_0" else parts.integers - parts.zeros[:, parts.group_of]
        return GGML[name].joined(fields, integers.to(torch.int8 if name == "q8_0" else torch.uint8))


def _scheme(parts: Parts) -> str | None:
    """That holds a matrix exactly."""
    columns = parts.integers.shape[1]
    by_blocks = parts.group_of.view(-1, _BLOCK) if columns % _BLOCK == 0 else None
    if by_blocks is None or not torch.equal(by_blocks, by_blocks[:, :1].expand_as(by_blocks)) or not _in_fp16(parts.scales.double()):
        return None
    if parts.bits == 8 and bool((parts.zeros == 128).all()):
        return "q8_0"
    if parts.bits != 4:
        return None
    if bool((parts.zeros == 8).all()):
        return "q4_0"
    return "q4_1" if _in_fp16(-parts.zeros * parts.scales.double()) else None


def _in_fp16(values: torch.Tensor) -> bool:
    return torch.equal(values.half().double(), values)


def check(method: Mapping[str, Any], where: Path) -> None:
    """Refuses a variant of these that is not read."""
    name = method["quant_method"]
    if name == "gptq":
        _one_of(where, "checkpoint_format", method.get("checkpoint_format") or "gptq", _GPTQ_FORMATS)
        _one_of(where, "bits", method.get("bits"), (2, 4, 8))
    elif name == "awq":
        _one_of(where, "version", str(method.get("version") or "gemm").lower(), ("gemm",))
        _one_of(where, "bits", method.get("bits", method.get("w_bit")), (4,))
    else:
        _one_of(where, "format", method.get("format"), _COMPRESSED_FORMATS)
        sparse = (method.get("sparsity_config") or {}).get("format", "dense")
        _one_of(where, "sparsity_config.format", sparse, ("dense",))


def _one_of(where: Path, key: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise UnsupportedModel(
            f'{where}: its weights are quantised with "{key}": {value!r}, and {", ".join(map(str, known))} can be read; take the original '
            "bf16 or fp16 checkpoint, or a GGUF file"
        )


def dequantised(tensors: Mapping[str, Lazy], method: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Lazy]:
    """The same checkpoint as if it had been stored in ``dtype``."""
    read = _compressed if method["quant_method"] == "compressed-tensors" else _gptq_or_awq
    matrices, taken = read(tensors, method, dtype)
    return {name: lazy for name, lazy in tensors.items() if name not in taken} | matrices


Found = tuple[dict[str, Lazy], set[str]]


def _gptq_or_awq(tensors: Mapping[str, Lazy], method: Mapping[str, Any], dtype: torch.dtype) -> Found:
    awq = method["quant_method"] == "awq"
    bits = 4 if awq else int(method["bits"])
    fewer = 0 if awq or method.get("checkpoint_format") == "gptq_v2" else 1
    matrices: dict[str, Lazy] = {}
    taken: set[str] = set()
    for stem in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        qweight, qzeros, scales = (_of(tensors, stem, end) for end in ("qweight", "qzeros", "scales"))
        g_idx = tensors.get(f"{stem}.g_idx")
        outputs = scales.shape[1]
        inputs = qweight.shape[0] if awq else qweight.shape[0] * (32 // bits)
        _fits(stem, qweight, (inputs, outputs * bits // 32) if awq else (inputs * bits // 32, outputs))
        _fits(stem, qzeros, (scales.shape[0], outputs * bits // 32))

        def parts(stem: str = stem, qweight: Lazy = qweight, qzeros: Lazy = qzeros, scales: Lazy = scales, g_idx: Lazy | None = g_idx) -> Parts:
            order = _AWQ_ORDER if awq else None
            integers = _unpacked(qweight[...], bits, order) if awq else _unpacked(qweight[...].t(), bits).t()
            zeros = _unpacked(qzeros[...], bits, order) + fewer
            group_of = _even(integers.shape[0], len(zeros)) if g_idx is None else g_idx[...].long()
            return _checked(stem, Parts(integers.t().contiguous(), bits, scales[...].t(), zeros.t(), group_of))

        matrices[f"{stem}.weight"] = GroupedTensor(f"{stem}.weight", (outputs, inputs), dtype, parts)
        taken |= {f"{stem}.{end}" for end in ("qweight", "qzeros", "scales", "g_idx")}
    return matrices, taken


def _compressed(tensors: Mapping[str, Lazy], method: Mapping[str, Any], dtype: torch.dtype) -> Found:
    bits_of = _bits(method)
    matrices: dict[str, Lazy] = {}
    taken: set[str] = {name for name in tensors if name.endswith(_OF_ACTIVATIONS)}
    for stem in [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]:
        scales, packed = tensors[f"{stem}.weight_scale"], tensors.get(f"{stem}.weight_packed")
        stored = packed or _of(tensors, stem, "weight")
        zeros, g_idx = tensors.get(f"{stem}.weight_zero_point"), tensors.get(f"{stem}.weight_g_idx")
        shape = tuple(_of(tensors, stem, "weight_shape")[...].tolist()) if packed else tuple(stored.shape)
        if packed is None and stored.dtype not in (torch.int8, torch.float8_e4m3fn):
            raise UnsupportedModel(f"{stem}.weight is stored as {stored.get_dtype()} with a scale, which potatod does not read")
        bits = next((bits for bits in bits_of if packed is not None and packed.shape[1] == -(-shape[1] // (32 // bits))), 8)
        if packed is not None and (bits not in bits_of or packed.shape[0] != shape[0]):
            raise ModelDataError(f"{stem}: {list(packed.shape)} words do not hold {list(shape)} integers of {' or '.join(map(str, bits_of))} bits")

        def parts(
            stem: str = stem, stored: Lazy = stored, scales: Lazy = scales, zeros: Lazy | None = zeros, g_idx: Lazy | None = g_idx,
            shape: tuple[int, ...] = shape, bits: int = bits, packed: bool = packed is not None,
        ) -> Parts:  # fmt: skip
            middle = 1 << (bits - 1)
            own = scales[...]
            own = own.view(1, 1) if own.numel() == 1 else own.view(len(own), -1)
            own = own.expand(shape[0], own.shape[1])
            values = stored[...]
            integers = _unpacked(values, bits)[:, : shape[1]] if packed else values.short() + middle
            offsets = torch.full(own.shape, middle, dtype=torch.int16)
            if zeros is not None:
                offsets = _offsets(zeros, bits, own.shape, packed)
            group_of = _even(shape[1], own.shape[1]) if g_idx is None else g_idx[...].long()
            return _checked(stem, Parts(integers, bits, own, offsets, group_of))

        name = f"{stem}.weight"
        matrices[name] = FloatTensor(name, stored, scales, dtype) if stored.dtype == torch.float8_e4m3fn else GroupedTensor(name, shape, dtype, parts)
        taken |= {f"{stem}.{end}" for end in ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")}
    return matrices, taken


@dataclass(frozen=True)
class FloatTensor:
    """A float8 matrix with a scale for each row, or one for all."""

    name: str
    weight: Lazy
    scales: Lazy
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        scales = self.scales[...].float()
        if scales.numel() not in (1, self.shape[0]):
            shapes = f"{list(scales.shape)} scales for {list(self.shape)} weights in float8"
            raise UnsupportedModel(f"{self.name}: {shapes} are of blocks that potatod does not read")
        return (self.weight[...].float() * scales.view(-1, 1)).to(self.dtype)

    def rows(self, first: int, last: int) -> torch.Tensor:
        return self[...][first:last]

    def get_dtype(self) -> str:
        return STORED_NAMES[self.dtype]


def _bits(method: Mapping[str, Any]) -> tuple[int, ...]:
    """That packed integers may have."""
    groups = method.get("config_groups") or {}
    found = {int((group.get("weights") or {}).get("num_bits", 8)) for group in groups.values() if isinstance(group, Mapping)}
    return tuple(sorted(bits for bits in found if bits in (2, 4, 8))) or (4, 8)


def _offsets(zeros: Lazy, bits: int, shape: torch.Size, packed: bool) -> torch.Tensor:
    """(out, groups) int16, above nought: packed output by output, or int8 around nought."""
    found = zeros[...]
    if packed and found.dtype == torch.int32:
        return _unpacked(found.t(), bits).t()[: shape[0]]
    return (found.short() + (1 << (bits - 1))).view(shape[0], -1).expand(shape)


def _of(tensors: Mapping[str, Lazy], stem: str, end: str) -> Lazy:
    if (found := tensors.get(f"{stem}.{end}")) is None:
        raise ModelDataError(f"{stem}.{end} is missing: the checkpoint is incomplete")
    return found


def _fits(stem: str, tensor: Lazy, shape: tuple[int, int]) -> None:
    if tuple(tensor.shape) != shape:
        raise ModelDataError(f"{stem}: a tensor of {list(tensor.shape)} words where {list(shape)} belong")


def _even(columns: int, groups: int) -> torch.Tensor:
    """Each group as many columns as the others."""
    return torch.arange(columns) // -(-columns // groups)


def _checked(stem: str, parts: Parts) -> Parts:
    outputs, columns = parts.integers.shape
    groups = parts.scales.shape[1]
    if parts.scales.shape[0] != outputs or parts.zeros.shape != parts.scales.shape or parts.group_of.shape != (columns,):
        raise ModelDataError(f"{stem}: scales {list(parts.scales.shape)} and zeros {list(parts.zeros.shape)} do not fit {[outputs, columns]} weights")
    if columns and not 0 <= int(parts.group_of.min()) <= int(parts.group_of.max()) < groups:
        raise ModelDataError(f"{stem}: a column belongs to group {int(parts.group_of.max())}, and there are {groups}")
    return parts


def _unpacked(words: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """(rows, words) int32 → (rows, integers) int16, the lowest bits first; ``order``: where a word's integers belong."""
    count = 32 // bits
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    out = (words.contiguous()[..., None] >> shifts & ((1 << bits) - 1)).short()
    if order is not None:
        out = out[..., torch.tensor(order).argsort()]
    return out.view(len(words), words.shape[1] * count)
