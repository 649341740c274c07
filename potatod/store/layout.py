"""Where tensors lie in a shard's file: pure arithmetic over names, dtypes and shapes.

Law: every file is valid safetensors, every part starts at a multiple of 4096 bytes and is padded to one, every tensor
of a part starts at a multiple of 64. Holes are tensors too (``__pad.N``), since safetensors allows none.

    | length, header, spaces to 4096 | part: tensor, pad, tensor, pad to 4096 | part … |
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from potatod.manifest import ALIGNMENT, Part, Tensor

#: Inside a part. Below it kernels change bits or crash.
TENSOR_ALIGNMENT: Final = 64
#: A tensor of this size is a part of its own; smaller ones of a layer share one.
OWN_PART_BYTES: Final = 64 << 10
#: The embedding is checked in bands of about this size, when a row of one is first gathered.
EMBED_BAND_BYTES: Final = 1 << 20
#: The head is streamed in bands of about this size.
HEAD_BAND_BYTES: Final = 32 << 20

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


def layer_layout(file: str, values: Iterable[Value]) -> Layout:
    """A layer's file: its small tensors as one part, then each large one as a part of its own."""
    values = list(values)
    small = [value for value in values if value.nbytes < OWN_PART_BYTES]
    groups = ([small] if small else []) + [[value] for value in values if value.nbytes >= OWN_PART_BYTES]
    return _layout(file, groups)


def matrix_layout(file: str, value: Value) -> Layout:
    """A file that holds one matrix, contiguous. Its parts are made by :func:`bands`."""
    return _layout(file, [[value]])


def bands(file: str, layout: Layout, name: str, band_bytes: int) -> tuple[Part, ...]:
    """The only matrix of ``layout`` as parts of whole rows, about ``band_bytes`` each; the tensors are called ``name``.

    Each band must start at a multiple of ALIGNMENT in the file, so its rows are a multiple of a number that depends on
    the width.
    """
    (place,) = layout.places
    value = place.value
    rows, columns = value.shape
    row_bytes = value.nbytes // rows
    assert place.offset % ALIGNMENT == 0 and row_bytes * rows == value.nbytes
    step = band_rows(row_bytes, band_bytes)
    parts = []
    for first in range(0, rows, step):
        height = min(step, rows - first)
        length = height * row_bytes
        tensor = Tensor(name, value.dtype, (height, columns), value.scheme, 0, length, first)
        parts.append(Part(file, place.offset + first * row_bytes, _round_up(length, ALIGNMENT), "", (tensor,)))
    return tuple(parts)


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
            entries[value.name] = _entry(value, at)
            offsets.append((value, at))
            tensors.append(Tensor(value.name, value.dtype, value.shape, value.scheme, at - start, value.nbytes))
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
