"""Shards written from tensors: laid out, packed by their scheme, checksummed on the way."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import torch

from potatod import schemes
from potatod.errors import DoesNotFit
from potatod.manifest import Part

from . import shard_file
from .checkpoint import Lazy
from .layout import Value, layer_layout
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
    free = shutil.disk_usage(folder).free
    if needed > free:
        missing = needed - free
        raise DoesNotFit(
            f"{folder} needs {needed} more bytes of disk and {free} are free: {missing} bytes ({missing / (1 << 30):.1f} GiB) are missing"
        )


def value_of(name: str, tensor: torch.Tensor | Lazy) -> Value:
    """How a tensor will lie, whether it is there, on meta or not yet read."""
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    return Value(name, dtype, shape, schemes.get("raw").nbytes(dtype, shape))


def packed(tensors: Iterable[torch.Tensor]) -> Iterator[memoryview]:
    for tensor in tensors:
        yield schemes.get("raw").pack(tensor)


def write_group(folder: Path, file: str, tensors: Mapping[str, torch.Tensor], band_bytes: int | None = None) -> tuple[tuple[Part, ...], int]:
    """A layer's file, or one of what lies outside the layers; its parts and its size in bytes. ``band_bytes``: as :func:`layer_layout` takes it."""
    layout = layer_layout(file, (value_of(name, tensor) for name, tensor in tensors.items()), band_bytes)
    values = (packed([tensors[place.value.name]]) for place in layout.places)
    (parts,) = shard_file.write(folder, file, layout, values, layout.parts)
    return parts, layout.size
