"""`potatod verify`: every byte of a model folder against its checksums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import xxhash

from potatod import manifest as manifests
from potatod.errors import ModelDataError
from potatod.manifest import Manifest, Part, Shard

_READ_BYTES = 8 << 20


def verify(folder: Path, progress: Callable[[int, int], None] = lambda _done, _total: None) -> int:
    """Bytes checked. ``progress(done, total)`` in bytes. Raises ModelDataError that names every damaged shard."""
    manifest = manifests.load(folder)
    manifests.check_files(folder, manifest)
    if bad := [name_of(shard, part) for shard, part in damaged(folder, manifest, progress)]:
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        mend = f"`potatod verify --repair {folder}` gets them anew" if is_of_hub(manifest) else "prepare the model again"
        raise ModelDataError(f"{folder} is damaged: {shown}; {mend}")
    return sum(part.length for shard in manifest.shards for part in shard.parts)


def damaged(folder: Path, manifest: Manifest, progress: Callable[[int, int], None]) -> list[tuple[Shard, Part]]:
    """Parts whose bytes are missing or others than their checksum is of."""
    parts = [(shard, part) for shard in manifest.shards for part in shard.parts]
    total, done, bad = sum(part.length for _, part in parts), 0, []
    for shard, part in parts:
        if not is_whole(folder, part):
            bad.append((shard, part))
        done += part.length
        progress(done, total)
    return bad


def is_of_hub(manifest: Manifest) -> bool:
    """Whether `potatod pull` made it, so that it is known where its parts come from."""
    return manifest.provenance.keys() >= {"source", "revision", "dtype"}


def is_whole(folder: Path, part: Part) -> bool:
    """Whether its bytes have its checksum; raises OSError where its file is not there."""
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
