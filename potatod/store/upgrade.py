"""`potatod prepare --upgrade`: a folder made with another transformers becomes one of the installed one, out of its own shards.

    manifest ─▶ the installed skeleton ─▶ shards that differ, each under its other name ─▶ the manifest, at once ─▶ old files go

Law: until the new manifest stands, the old one does, with all its files. Nothing is guessed: a tensor keeps its name, or
transformers itself says what an older name has become, or the folder is left as it is and the source is needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from potatod import companions, model_folder
from potatod import manifest as manifests
from potatod.dtypes import RAW
from potatod.errors import ModelDataError
from potatod.manifest import Manifest, Part, Shard

from . import shard_file, skeleton
from .journal import Journal, is_begun, other_name, shard_files
from .layout import layer_layout, matrix_layout
from .prepare import Progress
from .shards import as_they_are, in_scheme, make_room, value_of, write_group
from .skeleton import Skeleton
from .upgrade_plan import Plan, Rewrite, refusal
from .verify import is_whole, name_of

#: Rows of a matrix are copied in steps of about this many bytes.
_STEP_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    #: False where there was nothing to do
    changed: bool
    #: shards written anew, of how many; none where the manifest alone was
    rewritten: int
    shards: int
    #: versions of transformers
    before: str
    now: str


def upgrade(out: Path, progress: Callable[[Progress], None] = lambda _: None, band_bytes: int | None = None) -> Outcome:
    """``band_bytes``: as :func:`prepare.prepare` takes it. Raises NoSuchModel, ModelDataError (the source is needed), DoesNotFit or TryAgain.

    Then the folder is the model that it was. After DoesNotFit shards that are finished lie beside it, and the next run goes on from there.
    """
    transformers.logging.disable_progress_bar()
    manifest = model_folder.load(out)
    model_folder.check_files(out, manifest)
    model_folder.check_companions(out, manifest)
    built = skeleton.build(skeleton.load_config(out), getattr(torch, manifest.dtype))
    plan = Plan(out, manifest, built)
    header = _header(built)
    changed = bool(plan.rewrites) or any(getattr(manifest, name) != value for name, value in header.items())
    if changed or is_begun(out) or _left_over(out, {*manifest.files}):
        key = hashlib.sha256(json.dumps([manifests.dumps(manifest), header]).encode()).hexdigest()[:32]
        with Journal(out, key, upgrading=True) as journal:
            _tidy(out, {*manifest.files, *journal.files})
            if changed:
                manifest = _Upgrade(out, manifest, built, plan, journal, progress, band_bytes).run(header)
            _tidy(out, {*manifest.files})
            journal.close()
    return Outcome(changed, len(plan.rewrites), len(manifest.shards), plan.manifest.transformers, header["transformers"])


def _header(built: Skeleton) -> dict[str, Any]:
    """What of a manifest depends on how transformers builds the model."""
    return {
        "transformers": importlib.metadata.version("transformers"),
        "architecture": type(built.model).__name__,
        "model_type": built.model.config.model_type,
        "layers_name": built.layers_name,
        "embed_name": built.embed_name,
        "head_name": built.head_name,
        "fingerprint": skeleton.fingerprint(built),
    }


def _left_over(out: Path, used: set[str]) -> list[Path]:
    """Files of shards that nothing names: of an upgrade that was cut short, or replaced by this one."""
    return [*(path for path in shard_files(out) if path.name not in used), *out.glob(".*.partial")]


def _tidy(out: Path, used: set[str]) -> None:
    for path in _left_over(out, used):
        path.unlink()


class _Upgrade:
    """One run: writes what is not in the journal yet, then the manifest."""

    def __init__(
        self, out: Path, manifest: Manifest, built: Skeleton, plan: Plan, journal: Journal, progress: Callable[[Progress], None],
        band_bytes: int | None,
    ) -> None:  # fmt: skip
        self._out = out
        self._manifest = manifest
        self._built = built
        self._plan = plan
        self._journal = journal
        self._progress = progress
        self._band_bytes = band_bytes
        self._before = sum(journal.files.values())

    def run(self, header: dict[str, Any]) -> Manifest:
        """The new manifest, written."""
        self._total = sum(self._size(rewrite) for rewrite in self._plan.rewrites)
        make_room(self._out, self._total - self._before)
        self._tell()
        try:
            for rewrite in self._plan.rewrites:
                if not self._journal.has(rewrite.kind, rewrite.layer):
                    self._check(rewrite)
                    self._matrix(rewrite) if rewrite.kind in ("embed", "head") else self._group(rewrite)
                    self._tell()
        except ModelDataError:
            _tidy(self._out, {*self._manifest.files})
            self._journal.close()
            raise
        return self._write_manifest(header)

    def _size(self, rewrite: Rewrite) -> int:
        values = [value_of(name, self._plan.kept[name].tensor if name in self._plan.kept else self._plan.wanted[name]) for name in rewrite.names]
        if not values:
            return 0
        return (matrix_layout("", values[0]) if rewrite.kind in ("embed", "head") else layer_layout("", values)).size

    def _check(self, rewrite: Rewrite) -> None:
        """A flipped bit must not get a new checksum."""
        parts = {id(part): (stored.shard, part) for name in rewrite.names for stored in self._plan.sources(name) for part in stored.parts}
        for shard, part in parts.values():
            if not is_whole(self._out, part):
                raise ModelDataError(f"{self._out} is damaged: {name_of(shard, part)}; prepare the model again from its source")

    def _group(self, rewrite: Rewrite) -> None:
        if not rewrite.names:
            self._journal.add([Shard(rewrite.kind, rewrite.layer, ())], {})
            return
        converter, kept = self._plan.converter, self._plan.kept
        missing = [name for name in rewrite.names if name not in kept]
        try:
            made = converter.group(missing) if missing else {}
        except ModelDataError as error:
            raise refusal(self._out, self._manifest, str(error)) from None
        for name, value in made.items():
            if any(value.dtype.itemsize > stored.tensor.dtype.itemsize for stored in self._plan.sources(name)):
                raise refusal(self._out, self._manifest, f"{name} is needed in {str(value.dtype).removeprefix('torch.')}, more than was stored")
        tensors = {name.removeprefix(rewrite.prefix): kept[name].tensor[...] if name in kept else made[name] for name in rewrite.names}
        file = self._file(rewrite)
        parts, size = write_group(self._out, file, as_they_are(tensors), self._band_bytes if rewrite.kind == "layer" else None)
        self._journal.add([Shard(rewrite.kind, rewrite.layer, parts)], {file: size})

    def _matrix(self, rewrite: Rewrite) -> None:
        """Embedding or head under its new name, in the bands that it had."""
        (name,) = rewrite.names
        matrix, file = self._plan.kept[name].tensor, self._file(rewrite)
        layout = matrix_layout(file, value_of(name, matrix))
        moved = layout.places[0].offset - matrix.offset
        olds = [shard for shard in self._manifest.shards if shard.kind == rewrite.kind or (shard.kind == "head" and self._built.tied)]
        tilings = [_renamed(old.parts, file, moved, name if old.kind == rewrite.kind else self._built.head_name) for old in olds]
        rows, columns = matrix.shape
        step = max(1, _STEP_BYTES // (columns * matrix.dtype.itemsize))
        copied = in_scheme(name, RAW, (matrix.rows(first, min(first + step, rows)) for first in range(0, rows, step)))
        parts = shard_file.write(self._out, file, layout, [copied], *tilings)
        self._journal.add([Shard(old.kind, 0, tiling) for old, tiling in zip(olds, parts, strict=True)], {file: layout.size})

    def _file(self, rewrite: Rewrite) -> str:
        """A name that the old manifest does not use."""
        for shard in self._manifest.shards:
            if (shard.kind, shard.layer) == (rewrite.kind, rewrite.layer) and shard.parts:
                return other_name(shard.parts[0].file)
        return f"{rewrite.kind}.safetensors"

    def _tell(self) -> None:
        done = sum(self._journal.files.values())
        written = sum(self._journal.has(rewrite.kind, rewrite.layer) for rewrite in self._plan.rewrites)
        self._progress(Progress(written, len(self._plan.rewrites), done, max(done, self._total), self._before))

    def _write_manifest(self, header: dict[str, Any]) -> Manifest:
        """Makes what was written the model, at once."""
        fresh = {(shard["kind"], shard["layer"]): shard for shard in self._journal.shards}
        shards = [fresh.get((shard.kind, shard.layer)) or dataclasses.asdict(self._named(shard)) for shard in self._manifest.shards]
        used = {part["file"] for shard in shards for part in shard["parts"]}
        files = {name: size for name, size in {**self._manifest.files, **self._journal.files}.items() if name in used}
        page = dataclasses.asdict(self._manifest) | header
        beside = companions.found(self._out) if self._manifest.companions is None else self._manifest.companions
        page |= {"companions": {name: dataclasses.asdict(companion) for name, companion in beside.items()}}
        page |= {"potatod": importlib.metadata.version("potato-lm"), "files": dict(sorted(files.items())), "shards": shards}
        manifest = manifests.parse(json.dumps(page))
        model_folder.check_files(self._out, manifest)
        shard_file.write_text(self._out, model_folder.NAME, manifests.dumps(manifest))
        return manifest

    def _named(self, shard: Shard) -> Shard:
        """A shard whose file stays: the bands of a tied head may be called otherwise."""
        if shard.kind != "head" or not self._built.tied:
            return shard
        return dataclasses.replace(shard, parts=_renamed(shard.parts, shard.parts[0].file, 0, self._built.head_name))


def _renamed(parts: Iterable[Part], file: str, moved: int, name: str) -> tuple[Part, ...]:
    """The same bands of a matrix, elsewhere and under another name."""
    return tuple(
        dataclasses.replace(part, file=file, offset=part.offset + moved, tensors=(dataclasses.replace(part.tensors[0], name=name),))
        for part in parts
    )
