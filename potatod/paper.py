"""Models on paper: what a manifest would be with other schemes than `prepare` writes. Pure.

Norms, biases and routers of a few rows keep their dtype; every matrix of a layer and the head becomes smaller, the embedding stays.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from .manifest import ALIGNMENT, Manifest, Part, Shard, Tensor

#: Bytes for each weight of a matrix: a byte and an fp32 scale a row; half a byte, and a scale and a zero in bf16 for each group of 32.
SCHEMES: Final = {"int8": (1.0, 4), "int4": (0.5 + 4 / 32, 0)}
#: A matrix of fewer rows keeps its dtype.
_FEW_ROWS: Final = 64


def as_scheme(manifest: Manifest, scheme: str) -> Manifest:
    """``scheme``: one of SCHEMES."""
    shards = tuple(_smaller(shard, scheme) if shard.kind in ("layer", "head") else shard for shard in manifest.shards)
    kept = sum(part.length for shard in manifest.shards if shard.kind in ("layer", "head") for part in shard.parts)
    now = sum(part.length for shard in shards if shard.kind in ("layer", "head") for part in shard.parts)
    # a tied head is bytes of its own where it is stored otherwise than the embedding
    files = {"weights": max(0, sum(manifest.files.values()) - kept + now + (_head_bytes(manifest) if manifest.tied else 0))}
    return dataclasses.replace(manifest, dtype=f"{scheme} of {manifest.dtype}", files=files, shards=shards)


def _head_bytes(manifest: Manifest) -> int:
    return sum(part.length for shard in manifest.shards if shard.kind == "head" for part in shard.parts)


def _smaller(shard: Shard, scheme: str) -> Shard:
    parts, at = [], 0
    for part in shard.parts:
        length = -(-sum(_bytes(tensor, scheme) for tensor in part.tensors) // ALIGNMENT) * ALIGNMENT
        parts.append(Part(part.file, at, length, part.checksum, part.tensors))
        at += length
    return Shard(shard.kind, shard.layer, tuple(parts))


def _bytes(tensor: Tensor, scheme: str) -> int:
    if len(tensor.shape) < 2 or tensor.shape[-2] < _FEW_ROWS:
        return tensor.length
    rows = 1
    for size in tensor.shape[:-1]:
        rows *= size
    each, of_a_row = SCHEMES[scheme]
    return int(rows * tensor.shape[-1] * each) + rows * of_a_row
