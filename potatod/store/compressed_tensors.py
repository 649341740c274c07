"""Checkpoints in the formats of compressed-tensors.

    NAME.weight_packed, .weight_shape    integers, packed input by input
    NAME.weight                          int8 or float8
    NAME.weight_scale                    of each output, or of some of its inputs
    NAME.weight_zero_point, .weight_g_idx    where there are some
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any, Final

import torch

from potatod.errors import ModelDataError, UnsupportedModel

from .checkpoint import PLAIN, STORED_NAMES, Lazy
from .grouped import INTEGERS, Found, GroupedTensor, Meaning, fits, groups_of, matrix, one_of, part, sizes_of, unpacked

METHODS: Final = ("compressed-tensors",)
_FORMATS: Final = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
#: Beside a weight, what rounds activations where it was made: not ours to do.
_OF_ACTIVATIONS: Final = (".input_scale", ".output_scale", ".input_zero_point", ".output_zero_point", ".input_global_scale")


def check(method: Mapping[str, Any], where: Path) -> None:
    """Refuses a variant of these that is not read."""
    one_of(where, "format", method.get("format"), _FORMATS)
    one_of(where, "sparsity_config.format", _object(where, method, "sparsity_config").get("format", "dense"), ("dense",))
    one_of(where, "transform_config", bool(method.get("transform_config")), (False,))
    for group in _object(where, method, "config_groups").values():
        weights = _object(where, group, "weights") if isinstance(group, Mapping) else {}
        if weights.get("type", "int") == "int":
            one_of(where, "num_bits", weights.get("num_bits"), (2, 4, 8))
    _sizes(method, where)


def _object(where: Path, page: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = page.get(key) or {}
    if not isinstance(found, Mapping):
        raise ModelDataError(f'{where}: "{key}" must be an object')
    return found


def found(tensors: Mapping[str, Lazy], method: Mapping[str, Any], dtype: torch.dtype) -> Found:
    matrices: dict[str, Lazy] = {}
    taken: set[str] = {name for name in tensors if name.endswith(_OF_ACTIVATIONS)}
    for stem in [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]:
        name = f"{stem}.weight"
        if f"{name}_packed" in tensors:
            matrices[name] = _packed(tensors, stem, method, dtype)
        elif (stored := matrix(tensors, stem, "weight", torch.int8, torch.float8_e4m3fn)).dtype == torch.int8:
            shape = stored.shape[0], stored.shape[1]
            meaning = partial(_meaning, tensors, stem, shape, 8, _sizes(method, stem))
            matrices[name] = GroupedTensor(name, shape, dtype, partial(_above_nought, stored), meaning)
        else:
            matrices[name] = FloatTensor(name, stored, tensors[f"{name}_scale"], dtype)
        taken |= {f"{name}{end}" for end in ("", "_packed", "_scale", "_zero_point", "_shape", "_g_idx")}
    return matrices, taken


def _packed(tensors: Mapping[str, Lazy], stem: str, method: Mapping[str, Any], dtype: torch.dtype) -> GroupedTensor:
    words, said, known = matrix(tensors, stem, "weight_packed", torch.int32), part(tensors, stem, "weight_shape"), _bits(method)
    if said.dtype not in INTEGERS or tuple(said.shape) != (2,):
        raise ModelDataError(f"{stem}.weight_shape is {list(said.shape)} of {said.get_dtype()}, and a matrix has two whole numbers")
    shape = tuple(said[...].tolist())
    bits = next((bits for bits in known if tuple(words.shape) == (shape[0], -(-shape[1] // (32 // bits)))), None)
    if bits is None:
        raise ModelDataError(f"{stem}: {list(words.shape)} words do not hold {list(shape)} integers of {' or '.join(map(str, known))} bits")

    def integers(first: int, last: int) -> torch.Tensor:
        return unpacked(words.rows(first, last), bits)[:, : shape[1]]

    return GroupedTensor(f"{stem}.weight", shape, dtype, integers, partial(_meaning, tensors, stem, shape, bits, _sizes(method, stem)))


def _above_nought(stored: Lazy, first: int, last: int) -> torch.Tensor:
    return stored.rows(first, last).short() + 128


def _meaning(tensors: Mapping[str, Lazy], stem: str, shape: tuple[int, ...], bits: int, sizes: tuple[int, ...]) -> Meaning:
    own = part(tensors, stem, "weight_scale")
    if own.dtype not in PLAIN or (tuple(own.shape) not in ((), (1,), (1, 1), (shape[0],)) and (len(own.shape) != 2 or own.shape[0] != shape[0])):
        raise ModelDataError(f"{stem}: scales {list(own.shape)} of {own.get_dtype()} do not fit {list(shape)} weights")
    scales = own[...]
    scales = scales.view(1, 1).expand(shape[0], 1) if scales.numel() == 1 else scales.view(shape[0], -1)
    zeros = torch.full(scales.shape, 1 << (bits - 1), dtype=torch.int16)
    if (offsets := tensors.get(f"{stem}.weight_zero_point")) is not None:
        found = offsets[...]
        if found.dtype == torch.int32:  # packed output by output
            fits(stem, offsets, (-(-shape[0] * bits // 32), scales.shape[1]))
            zeros = unpacked(found.t(), bits).t()[: shape[0]]
        elif found.dtype not in INTEGERS or found.numel() not in (1, zeros.numel()):
            raise ModelDataError(f"{stem}: zeros {list(found.shape)} do not fit scales {list(scales.shape)}")
        else:
            zeros = zeros + (found.short().view(()) if found.numel() == 1 else found.short().view_as(zeros))
    return Meaning(bits, scales, zeros, groups_of(tensors.get(f"{stem}.weight_g_idx"), stem, shape[1], scales.shape[1], sizes))


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
        return self.rows(0, self.shape[0])

    def rows(self, first: int, last: int) -> torch.Tensor:
        shape = tuple(self.scales.shape)
        if shape not in ((), (1,), (1, 1), self.shape[:1], (self.shape[0], 1)):
            shapes = f"{list(shape)} scales for {list(self.shape)} weights in float8"
            raise UnsupportedModel(f"{self.name}: {shapes} are of blocks that potatod does not read")
        scales = self.scales[...].float().view(-1, 1)
        return (self.weight.rows(first, last).float() * (scales if len(scales) == 1 else scales[first:last])).to(self.dtype)

    def get_dtype(self) -> str:
        return STORED_NAMES[self.dtype]


def _weights_of(method: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What compressed-tensors says of each of its groups of modules."""
    return [group.get("weights") or {} for group in (method.get("config_groups") or {}).values() if isinstance(group, Mapping)]


def _bits(method: Mapping[str, Any]) -> tuple[int, ...]:
    """That packed integers may have."""
    return tuple(sorted({int(weights["num_bits"]) for weights in _weights_of(method) if weights.get("num_bits") in (2, 4, 8)})) or (4, 8)


def _sizes(method: Mapping[str, Any], where: object) -> tuple[int, ...]:
    return sizes_of([weights.get("group_size") for weights in _weights_of(method)], where)
