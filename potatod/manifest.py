"""The index of a model folder: which bytes of which file hold which tensor.

    manifest.json ─▶ Manifest ─▶ shards (embed, layer 0 … n, head, resident) ─▶ parts ─▶ tensors

A **part** is the unit of everything: read, checked, placed, lent, resident. It starts at a multiple of 4096 bytes in its file and is
padded to one, so it is one aligned read. Parsing is pure and trusts nothing; :func:`check_files` holds a parsed manifest
against the files themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

FORMAT: Final = 1
ALIGNMENT: Final = 4096

Kind = Literal["embed", "layer", "head", "resident"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor, or a band of its rows, inside a part."""

    #: of a layer's tensor: as the layer's module calls it ("self_attn.q_proj.weight"); elsewhere as the whole model does
    name: str
    #: torch's name of the reference dtype: "bfloat16", "float32", …
    dtype: str
    #: of what lies here: a band of n rows of a (rows, columns) tensor has shape (n, columns)
    shape: tuple[int, ...]
    #: how the values lie: a name in potatod.schemes ("raw": the dtype's own bytes)
    scheme: str
    #: bytes from the start of the part
    offset: int
    length: int
    #: first row of a band; None where the tensor is whole
    first_row: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    file: str
    #: bytes from the start of the file, a multiple of ALIGNMENT
    offset: int
    #: bytes, a multiple of ALIGNMENT, padding included
    length: int
    #: XXH3-64 of the ``length`` bytes, 16 hex digits
    checksum: str
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    kind: Kind
    #: of a layer, counted from 0; 0 elsewhere
    layer: int
    parts: tuple[Part, ...]
