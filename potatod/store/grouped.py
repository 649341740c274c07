"""Checkpoints whose matrices are small integers, some columns of a row with a scale: GPTQ, AWQ and compressed-tensors.

    GPTQ                NAME.qweight, .qzeros, .scales, .g_idx     packed input by input, zeros output by output and less one
    AWQ                 NAME.qweight, .qzeros, .scales             packed output by output, eight of them in an order of their own
    compressed-tensors  NAME.weight_packed, .weight_scale, …       packed input by input, of every output; or NAME.weight in int8 or float8

weight = (integer − zero) · scale, computed in fp32 and rounded once. Where a scheme of GGUF's blocks says exactly that, it may be kept so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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
class Meaning:
    """Of one matrix's integers."""

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
    #: reads (out, in) int16, as they are packed
    integers: Callable[[], torch.Tensor]
    #: reads the rest
    meaning: Callable[[], Meaning]

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        integers, meaning = self.integers(), self._checked()
        out = torch.empty(self.shape, dtype=self.dtype)
        for first in range(0, len(out), 1024):  # in fp32 they are eight times as large
            some = slice(first, first + 1024)
            scales, zeros = (each[some][:, meaning.group_of] for each in (meaning.scales, meaning.zeros))
            out[some] = ((integers[some] - zeros) * scales.float()).to(self.dtype)
        return out

    def rows(self, first: int, last: int) -> torch.Tensor:
        return self[...][first:last]

    def get_dtype(self) -> str:
        return STORED_NAMES[self.dtype]

    def scheme(self) -> str | None:
        """See checkpoint.Blocks."""
        return _scheme(self._checked())

    def planes(self) -> torch.Tensor:
        """See checkpoint.Blocks."""
        integers, meaning = self.integers(), self._checked()
        name = str(_scheme(meaning))
        groups = meaning.group_of[::_BLOCK]
        scales, zeros = meaning.scales[:, groups], meaning.zeros[:, groups]
        fields = [scales.half()] if name != "q4_1" else [scales.half(), (-zeros * scales.double()).half()]
        values = (integers - 128).to(torch.int8) if name == "q8_0" else integers.to(torch.uint8)
        return GGML[name].joined(fields, values)

    def _checked(self) -> Meaning:
        meaning, (outputs, columns) = self.meaning(), self.shape
        group_of, shapes = meaning.group_of, f"scales {list(meaning.scales.shape)} and zeros {list(meaning.zeros.shape)}"
        if meaning.scales.shape[0] != outputs or meaning.zeros.shape != meaning.scales.shape or group_of.shape != (columns,):
            raise ModelDataError(f"{self.name}: {shapes} do not fit {list(self.shape)} weights")
        if columns and not 0 <= int(group_of.min()) <= int(group_of.max()) < meaning.scales.shape[1]:
            raise ModelDataError(f"{self.name}: columns belong to groups {int(group_of.min())} to {int(group_of.max())}, and there are {shapes}")
        return meaning


def _scheme(meaning: Meaning) -> str | None:
    """That holds a matrix exactly."""
    by_blocks = meaning.group_of.view(-1, _BLOCK) if len(meaning.group_of) % _BLOCK == 0 else None
    if by_blocks is None or not torch.equal(by_blocks, by_blocks[:, :1].expand_as(by_blocks)) or not _in_fp16(meaning.scales.double()):
        return None
    if meaning.bits == 8 and bool((meaning.zeros == 128).all()):
        return "q8_0"
    if meaning.bits != 4:
        return None
    if bool((meaning.zeros == 8).all()):
        return "q4_0"
    return "q4_1" if _in_fp16(-meaning.zeros * meaning.scales.double()) else None


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
    stems = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    matrices: dict[str, Lazy] = {f"{stem}.weight": _words(tensors, stem, method, dtype) for stem in stems}
    return matrices, {f"{stem}.{end}" for stem in stems for end in ("qweight", "qzeros", "scales", "g_idx")}


def _words(tensors: Mapping[str, Lazy], stem: str, method: Mapping[str, Any], dtype: torch.dtype) -> GroupedTensor:
    """A matrix of GPTQ's or AWQ's."""
    awq = method["quant_method"] == "awq"
    bits, order = (4, _AWQ_ORDER) if awq else (int(method["bits"]), None)
    fewer = 0 if awq or method.get("checkpoint_format") == "gptq_v2" else 1
    qweight, qzeros, scales = (_of(tensors, stem, end) for end in ("qweight", "qzeros", "scales"))
    groups, outputs = scales.shape
    inputs = qweight.shape[0] if awq else qweight.shape[0] * (32 // bits)
    _fits(stem, qweight, (inputs, outputs * bits // 32) if awq else (inputs * bits // 32, outputs))
    _fits(stem, qzeros, (groups, outputs * bits // 32))

    def integers() -> torch.Tensor:
        words = qweight[...]
        return _unpacked(words, bits, order).t() if awq else _unpacked(words.t(), bits)

    def meaning() -> Meaning:
        zeros, g_idx = _unpacked(qzeros[...], bits, order) + fewer, tensors.get(f"{stem}.g_idx")
        return Meaning(bits, scales[...].t(), zeros.t(), _even(inputs, groups) if g_idx is None else g_idx[...].long())

    return GroupedTensor(f"{stem}.weight", (outputs, inputs), dtype, integers, meaning)


def _compressed(tensors: Mapping[str, Lazy], method: Mapping[str, Any], dtype: torch.dtype) -> Found:
    matrices: dict[str, Lazy] = {}
    taken: set[str] = {name for name in tensors if name.endswith(_OF_ACTIVATIONS)}
    for stem in [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]:
        name = f"{stem}.weight"
        if f"{name}_packed" in tensors:
            matrices[name] = _packed(tensors, stem, _bits(method), dtype)
        elif (stored := _of(tensors, stem, "weight")).dtype == torch.float8_e4m3fn:
            matrices[name] = FloatTensor(name, stored, tensors[f"{name}_scale"], dtype)
        elif stored.dtype == torch.int8:
            meaning = partial(_compressed_meaning, tensors, stem, tuple(stored.shape), 8)
            matrices[name] = GroupedTensor(name, tuple(stored.shape), dtype, partial(_above_nought, stored), meaning)
        else:
            raise UnsupportedModel(f"{name} is stored as {stored.get_dtype()} with a scale, which potatod does not read")
        taken |= {f"{name}{end}" for end in ("", "_packed", "_scale", "_zero_point", "_shape", "_g_idx")}
    return matrices, taken


def _packed(tensors: Mapping[str, Lazy], stem: str, known: tuple[int, ...], dtype: torch.dtype) -> GroupedTensor:
    words, shape = tensors[f"{stem}.weight_packed"], tuple(_of(tensors, stem, "weight_shape")[...].tolist())
    if len(shape) != 2:
        raise ModelDataError(f"{stem}.weight_shape says {list(shape)}, and a matrix has two")
    bits = next((bits for bits in known if tuple(words.shape) == (shape[0], -(-shape[1] // (32 // bits)))), None)
    if bits is None:
        raise ModelDataError(f"{stem}: {list(words.shape)} words do not hold {list(shape)} integers of {' or '.join(map(str, known))} bits")

    def integers() -> torch.Tensor:
        return _unpacked(words[...], bits)[:, : shape[1]]

    return GroupedTensor(f"{stem}.weight", shape, dtype, integers, partial(_compressed_meaning, tensors, stem, shape, bits))


def _above_nought(stored: Lazy) -> torch.Tensor:
    return stored[...].short() + 128


def _compressed_meaning(tensors: Mapping[str, Lazy], stem: str, shape: tuple[int, ...], bits: int) -> Meaning:
    scales = tensors[f"{stem}.weight_scale"][...]
    scales = scales.view(1, 1).expand(shape[0], 1) if scales.numel() == 1 else scales.view(len(scales), -1)
    zeros = torch.full(scales.shape, 1 << (bits - 1), dtype=torch.int16)
    if (own := tensors.get(f"{stem}.weight_zero_point")) is not None:
        found = own[...]
        if found.dtype == torch.int32:  # packed output by output
            _fits(stem, own, (-(-shape[0] * bits // 32), scales.shape[1]))
            zeros = _unpacked(found.t(), bits).t()[: shape[0]]
        elif found.numel() not in (1, zeros.numel()):
            raise ModelDataError(f"{stem}: zeros {list(found.shape)} do not fit scales {list(scales.shape)}")
        else:
            zeros = zeros + (found.short() if found.numel() == 1 else found.short().view_as(zeros))
    g_idx = tensors.get(f"{stem}.weight_g_idx")
    return Meaning(bits, scales, zeros, _even(shape[1], scales.shape[1]) if g_idx is None else g_idx[...].long())


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


def _unpacked(words: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """(rows, words) int32 → (rows, integers) int16, the lowest bits first; ``order``: where a word's integers belong."""
    count = 32 // bits
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    out = (words.contiguous()[..., None] >> shifts & ((1 << bits) - 1)).short()
    if order is not None:
        out = out[..., torch.tensor(order).argsort()]
    return out.view(len(words), words.shape[1] * count)
