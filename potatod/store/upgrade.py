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
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
import transformers
from transformers.core_model_loading import Concatenate, MergeModulelist

from potatod import manifest as manifests
from potatod.errors import ModelDataError, UnsupportedModel
from potatod.manifest import Kind, Manifest, Part, Shard, Tensor

from . import shard_file, skeleton
from .checkpoint import FileTensor
from .convert import Converter
from .journal import Journal, is_begun, other_name, shard_files
from .layout import layer_layout, matrix_layout
from .prepare import Progress
from .shards import cut, make_room, packed, value_of, write_group
from .skeleton import Skeleton
from .verify import is_whole, name_of

#: What may be done to values: they are put beside each other. Whatever permutes or splits them could have been done when they were stored.
_CERTAIN: Final = (Concatenate, MergeModulelist)
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


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the folder and the parts that hold it."""

    tensor: FileTensor
    shard: Shard
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A shard to be written anew."""

    kind: Kind
    layer: int
    #: its tensors by the whole model's names
    names: list[str]
    #: what its own names lack of those
    prefix: str


def upgrade(out: Path, progress: Callable[[Progress], None] = lambda _: None) -> Outcome:
    """Raises NoSuchModel, ModelDataError (the source is needed), DoesNotFit or TryAgain; then the folder is what it was."""
    transformers.logging.disable_progress_bar()
    manifest = manifests.load(out)
    manifests.check_files(out, manifest)
    built = skeleton.build(skeleton.load_config(out), getattr(torch, manifest.dtype))
    plan = _Plan(out, manifest, built)
    header = _header(built)
    changed = bool(plan.rewrites) or any(getattr(manifest, name) != value for name, value in header.items())
    if changed or is_begun(out) or _left_over(out, {*manifest.files}):
        key = hashlib.sha256(json.dumps([manifests.dumps(manifest), header]).encode()).hexdigest()[:32]
        with Journal(out, key, upgrading=True) as journal:
            _tidy(out, {*manifest.files, *journal.files})
            if changed:
                manifest = _Upgrade(out, manifest, built, plan, journal, progress).run(header)
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


class _Plan:
    """What stays, what is made of what, and which shards that changes; refuses what is not certain."""

    def __init__(self, out: Path, manifest: Manifest, built: Skeleton) -> None:
        self.manifest = manifest
        self._out = out
        self._built = built
        #: by the new model's names: tensors that are there as they should be
        self.kept: dict[str, Stored] = {}
        #: by the old model's names: tensors that the new one has no place for
        self._loose: dict[str, Stored] = {}
        wanted: dict[str, torch.Tensor] = built.model.state_dict()
        if manifest.layers != len(built.layers):
            self._refuse(f"it has {manifest.layers} layers and the model {len(built.layers)}")
        if manifest.tied != built.tied:
            self._refuse(f"head and embedding are {'one' if manifest.tied else 'two'} in it and {'one' if built.tied else 'two'} in the model")
        for shard in manifest.shards:
            self._sort(shard, wanted)
        self.converter = Converter(
            built, {name: stored.tensor for name, stored in self._loose.items()}, getattr(torch, manifest.dtype)
        )
        self.wanted = self.converter.wanted
        self._check()
        self.rewrites = list(self._rewrites())

    def sources(self, name: str) -> list[Stored]:
        """What a tensor of the new model is made of."""
        return [self.kept[name]] if name in self.kept else [self._loose[key] for key in self.converter.sources(name)]

    def _sort(self, shard: Shard, wanted: dict[str, torch.Tensor]) -> None:
        """Every tensor of the shard to those that stay or to those without a place."""
        if shard.kind in ("embed", "head"):
            name = self._built.embed_name if shard.kind == "embed" else self._built.head_name
            if shard.kind == "embed" or not self._built.tied:
                self._keep(name, Stored(_whole(self._out, shard), shard, shard.parts), wanted)
            return
        for part in shard.parts:
            for tensor in part.tensors:
                before, now = tensor.name, tensor.name
                if shard.kind == "layer":
                    before, now = (f"{root}.{shard.layer}.{tensor.name}" for root in (self.manifest.layers_name, self._built.layers_name))
                stored = Stored(_tensor(self._out, part, tensor), shard, (part,))
                if now in wanted:
                    self._keep(now, stored, wanted)
                else:
                    self._loose[before] = stored

    def _keep(self, name: str, stored: Stored, wanted: dict[str, torch.Tensor]) -> None:
        if tuple(wanted[name].shape) != stored.tensor.shape:
            self._refuse(f"{name} has the shape {list(stored.tensor.shape)} and needs {list(wanted[name].shape)}")
        self.kept[name] = stored

    def _check(self) -> None:
        """Every other tensor comes from what is loose, by transformers' own renaming, and nothing is lost."""
        tied = {self._built.head_name} if self._built.tied else set()
        for name in self.wanted:
            if name in self.kept or name in tied:
                continue
            sources = self.converter.sources(name)
            if not sources:
                self._refuse(f"nothing in it becomes {name}")
            operations = self.converter.operations(name)
            if not all(isinstance(operation, _CERTAIN) for operation in operations):
                self._refuse(f"{name} would have to be rearranged out of {sources[0]}")
            if not operations and (len(sources) > 1 or self._loose[sources[0]].tensor.shape != tuple(self.wanted[name].shape)):
                self._refuse(f"{sources[0]} does not fit {name}")
        ignored = [re.compile(pattern) for pattern in self._built.model._keys_to_ignore_on_load_unexpected or ()]
        for name in self.converter.unused():
            if not any(pattern.search(name) for pattern in ignored):
                self._refuse(f"its {name} has no place in the model")

    def _rewrites(self) -> Iterable[Rewrite]:
        built, manifest = self._built, self.manifest
        layers, resident = cut(built, self.wanted)
        named = {(shard.kind, shard.layer): sum(len(part.tensors) for part in shard.parts) for shard in manifest.shards}
        if manifest.embed_name != built.embed_name:
            yield Rewrite("embed", 0, [built.embed_name], "")
        for number, names in enumerate(layers):
            if not self.kept.keys() >= set(names) or named["layer", number] != len(names):
                yield Rewrite("layer", number, names, f"{built.layers_name}.{number}.")
        if manifest.head_name != built.head_name and not built.tied:
            yield Rewrite("head", 0, [built.head_name], "")
        if not self.kept.keys() >= set(resident) or named["resident", 0] != len(resident):
            yield Rewrite("resident", 0, resident, "")

    def _refuse(self, what: str) -> NoReturn:
        raise _refusal(self._out, self.manifest, what)


class _Upgrade:
    """One run: writes what is not in the journal yet, then the manifest."""

    def __init__(
        self, out: Path, manifest: Manifest, built: Skeleton, plan: _Plan, journal: Journal, progress: Callable[[Progress], None]
    ) -> None:
        self._out = out
        self._manifest = manifest
        self._built = built
        self._plan = plan
        self._journal = journal
        self._progress = progress
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
            raise _refusal(self._out, self._manifest, str(error)) from None
        for name, value in made.items():
            if any(value.dtype.itemsize > stored.tensor.dtype.itemsize for stored in self._plan.sources(name)):
                raise _refusal(self._out, self._manifest, f"{name} is needed in {str(value.dtype).removeprefix('torch.')}, more than was stored")
        tensors = {name.removeprefix(rewrite.prefix): kept[name].tensor[...] if name in kept else made[name] for name in rewrite.names}
        file = self._file(rewrite)
        parts, size = write_group(self._out, file, tensors)
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
        copied = packed(matrix.rows(first, min(first + step, rows)) for first in range(0, rows, step))
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
        page |= {"potatod": importlib.metadata.version("potato-lm"), "files": dict(sorted(files.items())), "shards": shards}
        manifest = manifests.parse(json.dumps(page))
        manifests.check_files(self._out, manifest)
        shard_file.write_text(self._out, manifests.NAME, manifests.dumps(manifest))
        return manifest

    def _named(self, shard: Shard) -> Shard:
        """A shard whose file stays: the bands of a tied head may be called otherwise."""
        if shard.kind != "head" or not self._built.tied:
            return shard
        return dataclasses.replace(shard, parts=_renamed(shard.parts, shard.parts[0].file, 0, self._built.head_name))


def _refusal(out: Path, manifest: Manifest, what: str) -> UnsupportedModel:
    now = importlib.metadata.version("transformers")
    return UnsupportedModel(
        f"{out} was prepared with transformers {manifest.transformers} and cannot be upgraded to {now} from itself ({what}); "
        "prepare the model again from its source"
    )


def _renamed(parts: Iterable[Part], file: str, moved: int, name: str) -> tuple[Part, ...]:
    """The same bands of a matrix, elsewhere and under another name."""
    return tuple(
        dataclasses.replace(part, file=file, offset=part.offset + moved, tensors=(dataclasses.replace(part.tensors[0], name=name),))
        for part in parts
    )


def _tensor(out: Path, part: Part, tensor: Tensor) -> FileTensor:
    if tensor.scheme != "raw":
        raise UnsupportedModel(f"{out}: {tensor.name} is stored as {tensor.scheme}, which is not upgraded; prepare the model again from its source")
    return FileTensor(out / part.file, tensor.name, getattr(torch, tensor.dtype), tensor.shape, part.offset + tensor.offset)


def _whole(out: Path, shard: Shard) -> FileTensor:
    """Embedding or head, whose bands lie behind each other in the file."""
    bands = [_tensor(out, part, part.tensors[0]) for part in shard.parts]
    rows, columns = sum(band.shape[0] for band in bands), bands[0].shape[1]
    at = bands[0].offset
    for band in bands:
        if band.offset != at or band.path != bands[0].path:
            raise ModelDataError(f"{out}: the bands of {band.name} have gaps between them; prepare the model again from its source")
        at += band.shape[0] * columns * band.dtype.itemsize
    return dataclasses.replace(bands[0], shape=(rows, columns))
