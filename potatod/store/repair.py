"""`potatod verify --repair`: what is wrong or gone is made anew from the hub, shards and files beside them, and nothing else is.

Only for a folder that `potatod pull` made, since its manifest says of which commit, stored as what. What is made anew has the checksums that the
manifest has of it, or is refused.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedConfig

from potatod import model_folder
from potatod.companions import Companion
from potatod.dtypes import AUTO, PACKED, RAW
from potatod.errors import ModelDataError, UsageError
from potatod.manifest import Manifest, Shard
from potatod.model_folder import is_of_hub
from potatod.sizes import human_size

from . import companions, shard_file, staging
from .fetched import Fetched, Terms
from .fitting import fitted
from .hub_source import locate, open_at_hub
from .prepare import Preparation, Progress
from .storing import Storing, wish
from .verify import damaged, wrong_beside

#: Within the staging folder: what lies beside the weights, before it is compared.
_BESIDE: Final = "beside"


def repair(
    folder: Path, checking: Callable[[int, int], None], *, progress: Callable[[Progress, Fetched], None] = lambda _progress, _supply: None,
    notice: Callable[[str], None] = lambda _: None,
) -> list[str]:  # fmt: skip
    """The files that were made anew; empty where nothing was wrong. ``checking`` as :func:`verify.verify` takes it. May be killed and run again.

    Raises UsageError where it is not known what the folder was made of, and otherwise as :func:`pull.pull`.
    """
    manifest = model_folder.load(folder)
    if not is_of_hub(manifest):
        raise UsageError(f"{folder} was not made by `potatod pull`, and its manifest says not of what: prepare the model again")
    beside = _broken_beside(folder, manifest)
    broken = _broken(folder, manifest, checking)
    if not broken and not beside:
        return []
    source_id, revision, dtype = (manifest.provenance[key] for key in ("source", "revision", "dtype"))

    def say(terms: Terms) -> None:
        what = human_size(terms.download_bytes) if broken else "config and tokenizer"
        notice(f"{len(broken) + len(beside)} files are damaged: {what} of {source_id} are downloaded to make them anew")

    with staging.held(folder) as place:
        repository = locate(place, source_id, revision)
        source = open_at_hub(repository, place)
        said = [Progress(0, 0, 0, 0, 0)]

        def tell(now: Progress) -> None:
            said[0] = now
            progress(now, supply)

        with Fetched(repository, place, source, say, lambda: progress(said[0], supply)) as supply:
            asked = wish(dtype)
            chosen = asked.dtype or source.default_dtype()
            built, converter = fitted(source, chosen, supply)
            asked = dataclasses.replace(asked, scheme=_settled(manifest)) if asked.scheme == AUTO else asked
            storing, shards = Storing(asked, built, {}), _Mending(manifest, broken)
            mending = companions.write if manifest.companions is None else partial(_mend_beside, manifest.companions, beside, place / _BESIDE)
            Preparation(
                source, built, converter, storing, shards, supply, folder, chosen, manifest.provenance, None, tell, notice, mending
            ).run()  # fmt: skip
        staging.remove(place)
    return sorted(broken | beside)


def _broken_beside(folder: Path, manifest: Manifest) -> set[str]:
    """Files beside the weights that can be made anew; raises ModelDataError where one is there that the manifest does not know."""
    wrong = wrong_beside(folder, manifest)
    if later := wrong.keys() - (manifest.companions or {}).keys():
        name = min(later)
        raise ModelDataError(f"{folder / name} {wrong[name]}; remove it{model_folder.accept(folder)}")
    return {*wrong}


def _mend_beside(
    recorded: dict[str, Companion], broken: Collection[str], aside: Path, source: Path, config: PreTrainedConfig, architecture: str, dtype: str,
    out: Path,
) -> dict[str, Companion]:  # fmt: skip
    """See prepare.Beside. Takes the place of those that are broken, and of nothing else: others may have been changed on purpose."""
    if broken:
        aside.mkdir(exist_ok=True)
        made = companions.write(source, config, architecture, dtype, aside)
        _check_beside(recorded, broken, made, out)
        try:
            for name in sorted(broken):
                os.replace(aside / name, out / name)
        except OSError as error:
            raise shard_file.explained(error, out / name) from None
        shard_file.sync_folder(out)
    return recorded


def _check_beside(recorded: Mapping[str, Companion], broken: Collection[str], made: Mapping[str, Companion], out: Path) -> None:
    for name in sorted(broken):
        if made.get(name) != recorded[name]:
            raise ModelDataError(
                f"{name} came out otherwise than the manifest says: it had been changed on purpose, or the folder was made by other versions of "
                f"potatod or transformers; put your own back, or pull the model again, with --force{model_folder.accept(out)}"
            )


def _broken(folder: Path, manifest: Manifest, checking: Callable[[int, int], None]) -> set[str]:
    """Files that are not there, not as large as they should be, or have a damaged part."""
    missing = {name for name, size in manifest.files.items() if not _is_file(folder / name, size)}
    there = tuple(shard for shard in manifest.shards if not any(part.file in missing for part in shard.parts))
    return missing | {part.file for _, part in damaged(folder, dataclasses.replace(manifest, shards=there), checking)}


def _is_file(path: Path, size: int) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == size


def _settled(manifest: Manifest) -> str:
    """What `auto` came to."""
    found = {tensor.scheme for shard in manifest.shards for part in shard.parts for tensor in part.tensors}
    return PACKED if PACKED in found else RAW


class _Mending:
    """In a journal's place: has the shards of the manifest but for broken ones, and takes those as they were. See :class:`prepare.Shards`."""

    def __init__(self, manifest: Manifest, broken: Collection[str]) -> None:
        self.shards: list[dict[str, Any]] = []
        self._wanted = {(shard.kind, shard.layer): dataclasses.asdict(shard) for shard in manifest.shards}
        self._broken = {(shard.kind, shard.layer) for shard in manifest.shards if any(part.file in broken for part in shard.parts)}
        self.shards = [page for shard, page in self._wanted.items() if shard not in self._broken]
        self.files = {name: size for name, size in manifest.files.items() if name not in broken}

    def has(self, kind: str, layer: int = 0) -> bool:
        return (kind, layer) not in self._broken

    def add(self, shards: Sequence[Shard], files: dict[str, int]) -> None:
        for shard in shards:
            page = dataclasses.asdict(shard)
            if page != self._wanted.get((shard.kind, shard.layer)):
                raise ModelDataError(
                    f"{', '.join(files)} came out otherwise than the manifest says: the folder was made by other versions of potatod or transformers; "
                    "pull the model again, with --force"
                )
            self.shards.append(page)
        self.files |= files
