"""`potatod verify`: every byte of a model folder against its checksums; and that what was changed beside the weights is so on purpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from potatod import companions, model_folder
from potatod import manifest as manifests
from potatod.errors import ModelDataError, TryAgain
from potatod.manifest import Manifest, Part, Shard

from . import shard_file
from .journal import is_begun

_READ_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Checked:
    #: bytes of parts
    size_bytes: int
    #: files beside the weights; None where the manifest was written before these had checksums
    companions: int | None


def verify(folder: Path, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Checked:
    """``progress(done, total)`` in bytes of parts. Raises ModelDataError that names every damaged shard, and every file beside them."""
    manifest = model_folder.load(folder)
    model_folder.check_files(folder, manifest)
    beside = [f"{name} {why}" for name, why in wrong_beside(folder, manifest).items()]
    if bad := [*beside, *(name_of(shard, part) for shard, part in damaged(folder, manifest, progress))]:
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        accept = model_folder.accept(folder) if len(beside) == len(bad) else ""
        raise ModelDataError(f"{folder} is damaged: {shown}; {model_folder.mend(folder, manifest)}{accept}")
    size = sum(part.length for shard in manifest.shards for part in shard.parts)
    return Checked(size, None if manifest.companions is None else len(manifest.companions))


def wrong_beside(folder: Path, manifest: Manifest) -> dict[str, str]:
    """The files beside the weights that are not those of the manifest, where this says which they are: by name, and what is wrong with each."""
    return companions.differences(folder, manifest.companions) if manifest.companions is not None else {}


def accept(folder: Path) -> list[str]:
    """The files beside the weights are right as they are now: the manifest gets their checksums, at once. Returns the names of those that it had
    otherwise, or not at all. Weights are not looked at. Raises NoSuchModel, ModelDataError, and TryAgain while something is made in the folder."""
    manifest = model_folder.load(folder)
    if is_begun(folder):
        raise TryAgain(f"something is being made in {folder}, or was not finished: end that first, with the command that began it")
    there, before = companions.found(folder), manifest.companions or {}
    if companions.CONFIG not in there:
        raise ModelDataError(f"{folder / companions.CONFIG} is missing, and without it nothing is a model; {model_folder.mend(folder, manifest)}")
    changed = [name for name in companions.NAMES if there.get(name) != before.get(name)]
    if changed:
        shard_file.write_text(folder, model_folder.NAME, manifests.dumps(dataclasses.replace(manifest, companions=there)))
    return changed


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
