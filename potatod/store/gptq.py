"""Checkpoints quantised with GPTQ or AWQ.

    GPTQ    NAME.qweight, .qzeros, .scales, .g_idx    packed input by input, zeros output by output and less one (but in the format gptq_v2)
    AWQ     NAME.qweight, .qzeros, .scales            packed output by output, eight of them in an order of their own
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from .checkpoint import PLAIN, Lazy
from .grouped import Found, GroupedTensor, Meaning, fits, groups_of, matrix, one_of, sizes_of, unpacked

METHODS: Final = ("gptq", "awq")
_FORMATS: Final = ("gptq", "gptq_v2")
#: Where AWQ has the eight outputs of a word.
_AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)


def check(method: Mapping[str, Any], where: Path) -> None:
    """Refuses a variant of these that is not read."""
    if method["quant_method"] == "gptq":
        one_of(where, "checkpoint_format", method.get("checkpoint_format") or "gptq", _FORMATS)
        one_of(where, "bits", method.get("bits"), (2, 4, 8))
        one_of(where, "dynamic", bool(method.get("dynamic")), (False,))
    else:
        one_of(where, "version", str(method.get("version") or "gemm").lower(), ("gemm",))
        one_of(where, "bits", method.get("bits", method.get("w_bit")), (4,))
    _sizes(method, where)


def _sizes(method: Mapping[str, Any], where: object) -> tuple[int, ...]:
    return sizes_of([method.get("group_size", method.get("q_group_size"))], where)


def found(tensors: Mapping[str, Lazy], method: Mapping[str, Any], dtype: torch.dtype) -> Found:
    stems = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    matrices: dict[str, Lazy] = {f"{stem}.weight": _words(tensors, stem, method, dtype) for stem in stems}
    return matrices, {f"{stem}.{end}" for stem in stems for end in ("qweight", "qzeros", "scales", "g_idx")}


def _words(tensors: Mapping[str, Lazy], stem: str, method: Mapping[str, Any], dtype: torch.dtype) -> GroupedTensor:
    """A matrix of GPTQ's or AWQ's."""
    awq = method["quant_method"] == "awq"
    bits, order = (4, _AWQ_ORDER) if awq else (int(method["bits"]), None)
    fewer = 0 if awq or method.get("checkpoint_format") == "gptq_v2" else 1
    qweight, qzeros = (matrix(tensors, stem, end, torch.int32) for end in ("qweight", "qzeros"))
    scales = matrix(tensors, stem, "scales", *PLAIN)
    groups, outputs = scales.shape
    inputs = qweight.shape[0] if awq else qweight.shape[0] * (32 // bits)
    fits(stem, qweight, (inputs, outputs * bits // 32) if awq else (inputs * bits // 32, outputs))
    fits(stem, qzeros, (groups, outputs * bits // 32))

    def integers(first: int, last: int) -> torch.Tensor:
        words, count = _LAST.of(qweight), 32 // bits
        if not awq:
            return unpacked(words[:, first:last].t(), bits)
        begin = first // count
        return unpacked(words[:, begin : -(-last // count)], bits, order).t()[first - begin * count : last - begin * count]

    def meaning() -> Meaning:
        zeros = unpacked(qzeros[...], bits, order) + fewer & (1 << bits) - 1  # nought less one is the largest
        return Meaning(bits, scales[...].t(), zeros.t(), groups_of(tensors.get(f"{stem}.g_idx"), stem, inputs, groups, _sizes(method, stem)))

    return GroupedTensor(f"{stem}.weight", (outputs, inputs), dtype, integers, meaning)


class _Last:
    """The words of the matrix that was read last: a head is asked for some rows at a time, and its words lie column by column."""

    def __init__(self) -> None:
        self._of: Lazy | None = None
        self._words = torch.empty(0)

    def of(self, tensor: Lazy) -> torch.Tensor:
        if self._of is not tensor:
            self._of, self._words = tensor, tensor[...]
        return self._words


_LAST: Final = _Last()
