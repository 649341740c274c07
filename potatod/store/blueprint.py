"""Every file of a model folder, before a byte of it is written: what `prepare` fills, and what a plan knows of a model that is not here.

    skeleton + names, dtypes, shapes ─▶ draw() ─▶ Blueprint: layouts, bands, sizes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from potatod.dtypes import RAW
from potatod.manifest import Kind, Part, Shard

from .layout import EMBED_BAND_BYTES, HEAD_BAND_BYTES, Layout, Value, bands, layer_layout, matrix_layout
from .shards import cut, expected, group_values, value_of
from .skeleton import Skeleton
from .storing import Storing

EMBED: Final = "embed.safetensors"
HEAD: Final = "head.safetensors"
RESIDENT: Final = "resident.safetensors"


@dataclass(frozen=True, slots=True)
class Group:
    """A layer, or what lies outside the layers: a file of its own, or none where it has no tensors."""

    kind: Kind
    layer: int
    file: str
    #: full names in the model
    names: tuple[str, ...]
    #: what they lose in the file
    prefix: str
    layout: Layout | None


@dataclass(frozen=True, slots=True)
class Blueprint:
    embed: Layout
    embed_bands: tuple[Part, ...]
    #: None where the head is tied: then its bands lie in the embedding's file
    head: Layout | None
    head_bands: tuple[Part, ...]
    layers: tuple[Group, ...]
    resident: Group

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each."""
        grouped = {group.file: group.layout.size for group in (*self.layers, self.resident) if group.layout is not None}
        return {EMBED: self.embed.size, **({} if self.head is None else {HEAD: self.head.size}), **grouped}

    @property
    def shards(self) -> tuple[Shard, ...]:
        """In the manifest's order; checksums are empty."""
        return tuple(self._shards())

    def _shards(self) -> Iterator[Shard]:
        yield Shard("embed", 0, self.embed_bands)
        for group in self.layers:
            yield Shard(group.kind, group.layer, () if group.layout is None else group.layout.parts)
        yield Shard("head", 0, self.head_bands)
        yield Shard("resident", 0, () if self.resident.layout is None else self.resident.layout.parts)


def draw(built: Skeleton, wanted: Mapping[str, torch.Tensor], storing: Storing, band_bytes: int | None = None) -> Blueprint:
    """``wanted``: every tensor that a folder of this model holds, by its name in the model, on meta; ``band_bytes``: of bands of the head and of
    layers' matrices, where that does not follow from sizes. What is packed is as large as it will be, about.

    Bands of the head are read and stay by themselves, and several of them are computed with together (plan.sweep_parts): as large as a layer's
    bands may be, they are the same there, and smaller in small models.
    """
    names, outside = cut(built, wanted)
    layers = tuple(
        _group("layer", number, f"layer.{number:04d}.safetensors", own, f"{built.layers_name}.{number}.", wanted, storing, band_bytes)
        for number, own in enumerate(names)
    )
    average = sum(group.layout.size for group in layers if group.layout is not None) // len(layers)
    if band_bytes is None:
        band_bytes = min(HEAD_BAND_BYTES, max(EMBED_BAND_BYTES, average))
    embed = matrix_layout(EMBED, value_of(built.embed_name, wanted[built.embed_name]))
    head, head_bands = None, bands(EMBED, embed, built.head_name, band_bytes)
    if not built.tied or storing.of(built.head_name, wanted[built.embed_name]) != RAW:
        tensor = wanted[built.embed_name if built.tied else built.head_name]
        head, head_bands = matrix(HEAD, built.head_name, value_of(built.head_name, tensor, storing.of(built.head_name, tensor)), band_bytes)
    return Blueprint(
        embed=embed,
        embed_bands=bands(EMBED, embed, built.embed_name, EMBED_BAND_BYTES),
        head=head,
        head_bands=head_bands,
        layers=layers,
        resident=_group("resident", 0, RESIDENT, outside, "", wanted, storing, None),
    )


def matrix(file: str, name: str, value: Value, band_bytes: int) -> tuple[Layout, tuple[Part, ...]]:
    """A file that holds nothing but this matrix, and its bands."""
    values = expected(value, band_bytes)
    layout = matrix_layout(file, *values)
    return layout, layout.parts if values[0].first_row is not None else bands(file, layout, name, band_bytes)


def _group(
    kind: Kind, number: int, file: str, names: Sequence[str], prefix: str, wanted: Mapping[str, torch.Tensor], storing: Storing,
    band_bytes: int | None,
) -> Group:  # fmt: skip
    values = [value_of(name.removeprefix(prefix), wanted[name], storing.of(name, wanted[name])) for name in names]
    layout = layer_layout(file, group_values(values, band_bytes), band_bytes) if values else None
    return Group(kind, number, file, tuple(names), prefix, layout)
