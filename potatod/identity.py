"""Which model this is, whatever its folder is called: what decides the text of an answer, as one checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .manifest import Manifest

#: Beside the weights these decide which tokens a text becomes, and which end one.
_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json")


def checksum_of(folder: Path, manifest: Manifest) -> str:
    """32 hex digits, of the manifest's checksums and not of the weights themselves: it takes no time. Raises OSError."""
    found = hashlib.sha256(f"{manifest.architecture} {manifest.dtype} {manifest.layers}".encode())
    for shard in manifest.shards:
        for part in shard.parts:
            found.update(f"\n{shard.kind} {shard.layer} {part.checksum}".encode())
            for tensor in part.tensors:
                found.update(f" {tensor.name} {tensor.shape} {tensor.scheme} {tensor.first_row}".encode())
    for name in _FILES:
        path = folder / name
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()[:32]
