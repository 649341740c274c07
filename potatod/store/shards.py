"""Shards written from tensors: laid out, packed by their scheme, checksummed on the way."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch

from potatod import forms, schemes
from potatod.dtypes import RAW, ROUNDED
from potatod.errors import DoesNotFit, ModelDataError
from potatod.manifest import Part

from . import shard_file
from .checkpoint import Lazy
from .layout import Value, layer_band_bytes, layer_layout
from .skeleton import Skeleton

#: Left free on the disk after everything is written.
_SPARE_BYTES: Final = 16 << 20


def cut(built: Skeleton, wanted: Iterable[str]) -> tuple[list[list[str]], list[str]]:
    """The model's tensors by the shard they lie in: each layer's, and what is outside of layers, embedding and head."""
    prefix = f"{built.layers_name}."
    layers = [[f"{prefix}{n}.{name}" for name in layer.state_dict()] for n, layer in enumerate(built.layers)]
    ends = {built.embed_name, built.head_name}
    return layers, [name for name in wanted if not name.startswith(prefix) and name not in ends]


def make_room(folder: Path, size: int) -> None:
    """Raises DoesNotFit where so many bytes cannot be written there."""
    needed = size + _SPARE_BYTES
    free = free_bytes(folder)
    if needed > free:
        missing = needed - free
        raise DoesNotFit(
            f"{folder} needs {needed} more bytes of disk and {free} are free: {missing} bytes ({missing / (1 << 30):.1f} GiB) are missing"
        )


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


#: Bits of a weight in `packed`, about: what is planned with before the weights are known.
_PACKED_BITS: Final = 11.25
#: Rows of a matrix are encoded in steps of about this many weights.
_STEP_WEIGHTS: Final = 1 << 21


def value_of(name: str, tensor: torch.Tensor | Lazy, scheme: str = RAW) -> Value:
    """How a tensor will lie, whether it is there, on meta or not yet read."""
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    nbytes = math.prod(shape) * tensor.dtype.itemsize if scheme == RAW else shape[0] * forms.record_bytes(scheme, shape[1])
    return Value(name, dtype, shape, nbytes, scheme)


def expected(value: Value, band_bytes: int) -> list[Value]:
    """The same with bands that are stored by themselves, where its scheme has such: as large as they will be, about."""
    if not forms.has_more(value.scheme):
        return [value]
    rows, columns = value.shape
    firsts = range(0, rows, -(-rows // -(-value.nbytes // band_bytes)))
    return [
        replace(value, shape=(end - first, columns), nbytes=int((end - first) * columns * _PACKED_BITS / 8), first_row=first)
        for first, end in pairwise([*firsts, rows])
    ]


@dataclass(frozen=True, slots=True)
class Stored:
    """A value, and its bytes some at a time."""

    value: Value
    buffers: Iterable[memoryview]


def group_values(values: Sequence[Value], band_bytes: int | None) -> list[Value]:
    """Of a file of several tensors: ``expected`` of each."""
    most = layer_band_bytes(sum(value.nbytes for value in values)) if band_bytes is None else band_bytes
    return [each for value in values for each in expected(value, most)]


def as_they_are(tensors: Mapping[str, torch.Tensor]) -> list[Stored]:
    """Each in its dtype's own bytes."""
    return [stored for name, tensor in tensors.items() for stored in encoded([value_of(name, tensor)], tensor)]


class Error:
    """How far what was stored is from what it was made of: the root of the squares' sums' ratio."""

    def __init__(self) -> None:
        self._off = self._of = 0.0

    def add(self, tensor: torch.Tensor, scheme: str, data: torch.Tensor) -> None:
        """``data``: what the scheme made of a matrix of weights."""
        values = tensor.float()
        self._off += float((schemes.get(scheme).view(data, "float32", tuple(tensor.shape)) - values).square().sum())
        self._of += float(values.square().sum())

    @property
    def relative(self) -> float:
        return math.sqrt(self._off / self._of) if self._of else 0.0


def encoded(values: Iterable[Value], tensor: torch.Tensor, error: Error | None = None) -> list[Stored]:
    """``tensor`` as ``values`` say: one, or its bands. Raises :class:`Unpackable` where their scheme cannot hold it."""
    stored = []
    for value in values:
        if value.first_row is None:
            stored.append(Stored(value, in_scheme(value.name, value.scheme, _steps(tensor), error)))
        else:
            data = schemes.get(value.scheme).pack(tensor[value.first_row : value.first_row + value.shape[0]])
            stored.append(Stored(replace(value, nbytes=len(data)), [data.numpy().data]))
    return stored


def _steps(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Some rows at a time of a matrix; anything else as it is."""
    if tensor.dim() != 2:
        yield tensor
        return
    yield from tensor.split(max(1, _STEP_WEIGHTS // max(1, tensor.shape[1])))


def in_scheme(name: str, scheme: str, tensors: Iterable[torch.Tensor], error: Error | None = None) -> Iterator[memoryview]:
    """Their bytes behind each other; ``error`` is told of what is rounded, ``name`` is the matrix's. Raises :class:`ModelDataError` where a weight
    cannot be rounded."""
    for tensor in tensors:
        if scheme in ROUNDED and not tensor.isfinite().all():
            raise ModelDataError(f"{name} has weights that are no numbers, which {scheme} cannot hold: the checkpoint is damaged, or store it as it is")
        data = schemes.get(scheme).pack(tensor)
        if error is not None and scheme != RAW:
            error.add(tensor, scheme, data)
        yield data.numpy().data


def write_group(folder: Path, file: str, stored: Iterable[Stored], band_bytes: int | None = None) -> tuple[tuple[Part, ...], int]:
    """A layer's file, or one of what lies outside the layers; its parts and its size in bytes. ``band_bytes``: as :func:`layer_layout` takes it."""
    by_value = {each.value: each.buffers for each in stored}
    layout = layer_layout(file, by_value, band_bytes)
    (parts,) = shard_file.write(folder, file, layout, (by_value[place.value] for place in layout.places), layout.parts)
    return parts, layout.size
