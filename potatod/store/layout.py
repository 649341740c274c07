"""Where tensors lie in a shard's file: pure arithmetic over names, dtypes and shapes.

Law: every file is valid safetensors, every part starts at a multiple of 4096 bytes and is padded to one, every tensor
of a part starts at a multiple of 64. Holes are tensors too (``__pad.N``), since safetensors allows none.

    | length, header, spaces to 4096 | part: tensor, pad, tensor, pad to 4096 | part … |
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from potatod.manifest import ALIGNMENT, Part, Tensor

#: Inside a part. Below it kernels change bits or crash.
TENSOR_ALIGNMENT: Final = 64
#: A tensor of this size is a part of its own; smaller ones of a layer share one.
OWN_PART_BYTES: Final = 64 << 10
#: The embedding is checked in bands of about this size, before a row of one is first read from the file.
EMBED_BAND_BYTES: Final = 1 << 20
#: The head is cut into bands of about this size.
HEAD_BAND_BYTES: Final = 4 << 20
#: A layer's matrices are cut into bands of this size, or of a part in so many of the layer where that is more: residents come in bands, and the ring
#: must hold two beside what of a layer streams.
LAYER_BAND_BYTES: Final = 4 << 20
LAYER_BANDS: Final = 24

#: torch's names of dtypes ↔ safetensors'.
SAFETENSORS_DTYPES: Final = {
    "float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor to be stored."""

    name: str
    #: torch's name: "bfloat16"
    dtype: str
    shape: tuple[int, ...]
    #: bytes as its scheme stores it
    nbytes: int
    scheme: str = "raw"
    #: of a band that is stored by itself, and whose bytes are not those of a whole matrix cut there
    first_row: int | None = None

    @property
    def entry(self) -> str:
        """What it is called in the file."""
        return self.name if self.first_row is None else f"{self.name}.{self.first_row}"


@dataclass(frozen=True, slots=True)
class Place:
    value: Value
    #: bytes from the start of the file
    offset: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A file: what it begins with, where each value lies, and its parts (whose checksums are still empty)."""

    header: bytes
    #: in the order of the file
    places: tuple[Place, ...]
    parts: tuple[Part, ...]
    #: bytes
    size: int


def layer_layout(file: str, values: Iterable[Value], band_bytes: int | None = None) -> Layout:
    """A layer's file: its small tensors as one part, then each large one as a part of its own, matrices in bands.

    ``band_bytes``: of a band, where it does not follow from the layer's size.
    """
    values = list(values)
    own = OWN_PART_BYTES if band_bytes is None else min(OWN_PART_BYTES, band_bytes)
    small = [value for value in values if value.nbytes < own and value.first_row is None]
    layout = _layout(file, ([small] if small else []) + [[value] for value in values if value not in small])
    band_bytes = layer_band_bytes(sum(value.nbytes for value in values)) if band_bytes is None else band_bytes
    return dataclasses.replace(layout, parts=tuple(band for part in layout.parts for band in _in_bands(part, band_bytes)))


def layer_band_bytes(layer_bytes: int) -> int:
    """Of the bands of a layer of so many bytes."""
    return max(LAYER_BAND_BYTES, layer_bytes // LAYER_BANDS)


def _in_bands(part: Part, band_bytes: int) -> Iterable[Part]:
    """A part that is one matrix in bands that differ by little; any other as it is."""
    (tensor, *others) = part.tensors
    if others or len(tensor.shape) != 2 or tensor.first_row is not None or tensor.length <= band_bytes:
        return (part,)
    rows = tensor.shape[0]
    least = band_rows(tensor.length // rows, 0)
    units, count = -(-rows // least), -(-tensor.length // band_bytes)
    count = min(count, units)
    return _cut(part, [units * number // count * least for number in range(count)]) if count > 1 else (part,)


def _cut(part: Part, firsts: Sequence[int]) -> Iterable[Part]:
    """The only matrix of ``part`` in bands that begin with these rows."""
    (tensor,) = part.tensors
    row_bytes = tensor.length // tensor.shape[0]
    for first, end in pairwise([*firsts, tensor.shape[0]]):
        length = (end - first) * row_bytes
        band = dataclasses.replace(tensor, shape=(end - first, *tensor.shape[1:]), length=length, first_row=first)
        yield Part(part.file, part.offset + first * row_bytes, _round_up(length, ALIGNMENT), "", (band,))


def matrix_layout(file: str, *values: Value) -> Layout:
    """A file that holds one matrix: contiguous, and then its parts are made by :func:`bands`, or in bands that are stored by themselves."""
    return _layout(file, [[value] for value in values])


def bands(file: str, layout: Layout, name: str, band_bytes: int) -> tuple[Part, ...]:
    """The only matrix of ``layout`` as parts of whole rows, about ``band_bytes`` each; the tensors are called ``name``.

    Each band must start at a multiple of ALIGNMENT in the file, so its rows are a multiple of a number that depends on
    the width.
    """
    (part,) = layout.parts
    (tensor,) = part.tensors
    whole = dataclasses.replace(part, file=file, tensors=(dataclasses.replace(tensor, name=name),))
    return tuple(_cut(whole, range(0, tensor.shape[0], band_rows(tensor.length // tensor.shape[0], band_bytes))))


def band_rows(row_bytes: int, band_bytes: int) -> int:
    """Rows of a band of about ``band_bytes`` that begins and ends at multiples of ALIGNMENT; the smallest such where it
    must be larger."""
    least = ALIGNMENT // math.gcd(row_bytes, ALIGNMENT)
    return least * max(1, band_bytes // (least * row_bytes))


def _layout(file: str, groups: Sequence[Sequence[Value]]) -> Layout:
    """Each group becomes a part."""
    entries: dict[str, dict[str, object]] = {}
    offsets: list[tuple[Value, int]] = []
    parts: list[tuple[int, int, tuple[Tensor, ...]]] = []
    at = 0
    for group in groups:
        start, tensors = at, []
        for value in group:
            at = _pad(entries, at, TENSOR_ALIGNMENT)
            entries[value.entry] = _entry(value, at)
            offsets.append((value, at))
            tensors.append(Tensor(value.name, value.dtype, value.shape, value.scheme, at - start, value.nbytes, value.first_row))
            at += value.nbytes
        # A part of nothing but empty tensors still is a part.
        at = _pad(entries, at, ALIGNMENT) if at > start else _pad(entries, at + 1, ALIGNMENT, at)
        parts.append((start, at - start, tuple(tensors)))
    header = _header(entries)
    base = len(header)
    return Layout(
        header,
        tuple(Place(value, base + offset) for value, offset in offsets),
        tuple(Part(file, base + start, length, "", tensors) for start, length, tensors in parts),
        base + at,
    )


def _pad(entries: dict[str, dict[str, object]], at: int, alignment: int, start: int | None = None) -> int:
    """Fills from ``start`` (else ``at``) to the next multiple; returns it."""
    start, end = at if start is None else start, _round_up(at, alignment)
    if end > start:
        entries[f"__pad.{start}"] = {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
    return end


def _entry(value: Value, at: int) -> dict[str, object]:
    if value.scheme == "raw":
        described = {"dtype": SAFETENSORS_DTYPES[value.dtype], "shape": list(value.shape)}
    else:  # to safetensors it is bytes
        described = {"dtype": "U8", "shape": [value.nbytes]}
    return {**described, "data_offsets": [at, at + value.nbytes]}


def _header(entries: dict[str, dict[str, object]]) -> bytes:
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = text + b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(padded).to_bytes(8, "little") + padded


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
