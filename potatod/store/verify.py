"""`potatod verify`: every byte of a model folder against its checksums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import xxhash

from potatod import manifest as manifests
from potatod.errors import ModelDataError
from potatod.manifest import Part, Shard

_READ_BYTES = 8 << 20


def verify(folder: Path, progress: Callable[[int, int], None] = lambda _done, _total: None) -> int:
    """Bytes checked. ``progress(done, total)`` in bytes. Raises ModelDataError that names every damaged shard."""
    manifest = manifests.load(folder)
    manifests.check_files(folder, manifest)
    parts = [(shard, part) for shard in manifest.shards for part in shard.parts]
    total = sum(part.length for _, part in parts)
    done = 0
    bad: list[str] = []
    for shard, part in parts:
        if not is_whole(folder, part):
            bad.append(name_of(shard, part))
        done += part.length
        progress(done, total)
    if bad:
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise ModelDataError(f"{folder} is damaged: {shown}; prepare the model again")
    return done


def is_whole(folder: Path, part: Part) -> bool:
    """Whether its bytes have its checksum."""
    digest = xxhash.xxh3_64()
    left = part.length
    with open(folder / part.file, "rb", buffering=0) as file:
        file.seek(part.offset)
        while left and (data := file.read(min(left, _READ_BYTES))):
            digest.update(data)
            left -= len(data)
    return left == 0 and digest.hexdigest() == part.checksum


def name_of(shard: Shard, part: Part) -> str:
    what = f"layer {shard.layer}" if shard.kind == "layer" else shard.kind
    return f"{what} ({part.file} at byte {part.offset})"
