"""`potatod prepare`: a checkpoint becomes a model folder, shard by shard. What may happen on the way: journal.py."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import torch
import transformers
from transformers import PreTrainedConfig

from potatod import manifest as manifests
from potatod import model_folder, schemes
from potatod.companions import Companion
from potatod.dtypes import AUTO, KEEP, RAW
from potatod.errors import UsageError
from potatod.manifest import FORMAT, Kind, Shard

from . import blueprint, companions, shard_file, skeleton
from .blueprint import EMBED, HEAD, Blueprint, Group
from .convert import Converter
from .fitting import fitted
from .identity import key_of
from .journal import Journal, finished
from .layout import Layout, matrix_layout
from .shards import Error, Stored, encoded, group_values, in_scheme, value_of, write_group
from .skeleton import Skeleton
from .source import Source, open_source
from .storing import Storing, settled, wish
from .supply import Staying, Supply, Work, ordered

_STAYING: Final = Staying()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it has come; said at the start and after each shard."""

    layers_done: int
    layers: int
    bytes_done: int
    bytes_total: int
    #: bytes that an earlier, interrupted run had written
    bytes_before: int


def prepare(
    source: Path | str,
    out: Path,
    *,
    dtype: str = "auto",
    force: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
    band_bytes: int | None = None,
) -> bool:
    """Makes the model folder ``out``; False where it is there already, from the same source and options.

    ``notice`` gets sentences that a person should read; ``band_bytes`` is as :func:`blueprint.draw` takes it. May be killed at any point and run
    again. Raises UsageError, NoSuchModel, ModelDataError, UnsupportedModel, DoesNotFit or TryAgain.
    """
    wish(dtype)
    source, out = Path(source), Path(out)
    if out.resolve() == source.resolve():
        raise UsageError(f"{out} is the source itself, which is never written to; choose another folder to make")
    if dtype == AUTO and (source / model_folder.NAME).exists():
        raise UsageError(f"{source} is a model folder already: start it with `potatod start {source}`, or say with --dtype what to make of it")
    opened = open_source(source)
    key = key_of(source, dtype, band_bytes)
    return make(opened, out, key, dtype, force=force, progress=progress, notice=notice, band_bytes=band_bytes)


def make(
    opened: Source, out: Path, key: str, dtype: str, *, force: bool = False, progress: Callable[[Progress], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None, band_bytes: int | None = None, supply: Supply = _STAYING,
    origin: Mapping[str, str] | None = None,
) -> bool:  # fmt: skip
    """Like :func:`prepare`, of a source that is open, whose ``key`` is as :mod:`identity` makes it, and whose files ``supply`` has where they are
    needed. ``origin``: what the manifest says of where the model is from."""
    asked = wish(dtype)
    transformers.logging.disable_progress_bar()
    if finished(out, key, force) is not None:
        return False
    chosen = asked.dtype or opened.default_dtype()
    built, converter = fitted(opened, chosen, supply)
    with Journal(out, key) as journal:
        asked = replace(asked, scheme=journal.scheme) if journal.scheme else settled(asked, chosen, converter.wanted.values(), None, notice)
        journal.settle(asked.scheme)
        storing = Storing(asked, built, converter.kept() if asked.scheme == KEEP else {})
        provenance = {"source": opened.path.name, **(origin or {}), "key": key}
        Preparation(opened, built, converter, storing, journal, supply, out, chosen, provenance, band_bytes, progress, notice).run()
        journal.close()
    return True


class Shards(Protocol):
    """Which shards there are already, and what becomes of new ones."""

    #: of the manifest, as JSON has them
    shards: list[dict[str, Any]]
    files: dict[str, int]

    def has(self, kind: str, layer: int = 0) -> bool: ...

    def add(self, shards: Sequence[Shard], files: dict[str, int]) -> None: ...


#: Writes the files beside the weights, as :func:`companions.write` does: source, config, architecture, dtype, folder; returns what the manifest says of
#: them.
Beside = Callable[[Path, PreTrainedConfig, str, str, Path], dict[str, Companion]]


class Preparation:
    """One run: what is not in the journal yet is converted and written. The journal is :class:`Journal`, or whatever else takes shards."""

    def __init__(
        self, source: Source, built: Skeleton, converter: Converter, storing: Storing, journal: Shards, supply: Supply,
        out: Path, dtype: torch.dtype, provenance: dict[str, str], band_bytes: int | None, progress: Callable[[Progress], None],
        notice: Callable[[str], None], beside: Beside = companions.write,
    ) -> None:  # fmt: skip
        self._source = source
        self._skeleton = built
        self._converter = converter
        self._storing = storing
        self._journal = journal
        self._supply = supply
        self._out = out
        self._dtype = str(dtype).removeprefix("torch.")
        self._provenance = provenance
        self._band_bytes = band_bytes
        self._progress = progress
        self._notice = notice
        self._beside = beside
        self._before = sum(journal.files.values())

    def run(self) -> None:
        drawn = blueprint.draw(self._skeleton, self._converter.wanted, self._storing, self._band_bytes)
        self._total = sum(drawn.files.values())
        works = ordered([work for shard, work in self._works(drawn) if not self._journal.has(*shard)])
        self._supply.begin(works, self._out)
        architecture = type(self._skeleton.model).__name__
        self._companions = self._beside(self._source.path, self._source.config, architecture, self._dtype, self._out)
        if companions.TOKENIZER not in self._companions:
            self._notice(f"{self._source.path} has no tokenizer: the folder will hold weights only, and cannot be asked in words")
        self._tell()
        for work in works:
            self._supply.need(work)
            work.make()
            self._supply.done(work)
        self._write_manifest()
        for sentence in self._storing.sentences():
            self._notice(sentence)

    def _works(self, drawn: Blueprint) -> Iterator[tuple[tuple[Kind, int], Work]]:
        """Each shard's file, by the shard that stands for it in the journal."""
        built, has = self._skeleton, self._converter.has
        yield ("embed", 0), self._work(drawn.embed.size, [built.embed_name if has(built.embed_name) else built.head_name], partial(self._embed, drawn))
        for group in drawn.layers:
            yield ("layer", group.layer), self._grouped(group)
        if drawn.head is not None:
            yield ("head", 0), self._work(drawn.head.size, [built.head_name if has(built.head_name) else built.embed_name], partial(self._head, drawn))
        yield ("resident", 0), self._grouped(drawn.resident)

    def _grouped(self, group: Group) -> Work:
        return self._work(group.layout.size if group.layout else 0, group.names, partial(self._group, group))

    def _work(self, size_bytes: int, names: Sequence[str], make: Callable[[], None]) -> Work:
        return Work(size_bytes, self._supply.files_of(key for name in names for key in self._converter.sources(name)), make)

    def _embed(self, drawn: Blueprint) -> None:
        """The embedding; where the head is tied to it the same bytes get the head's bands and checksums too."""
        built = self._skeleton
        source = built.embed_name if self._converter.has(built.embed_name) else built.head_name
        tilings = [drawn.embed_bands] if drawn.head else [drawn.embed_bands, drawn.head_bands]
        parts = shard_file.write(self._out, EMBED, drawn.embed, [in_scheme(source, RAW, self._converter.matrix(source))], *tilings)
        shards = [Shard("embed", 0, parts[0]), *(Shard("head", 0, tiling) for tiling in parts[1:])]
        self._done(shards, {EMBED: drawn.embed.size})

    def _head(self, drawn: Blueprint) -> None:
        assert drawn.head is not None
        built = self._skeleton
        source = built.head_name if self._converter.has(built.head_name) else built.embed_name
        layout, bands = drawn.head, drawn.head_bands
        band_bytes = max(band.length for band in bands)
        value, error = layout.places[0].value, Error()
        if value.first_row is None:
            contents: Iterable[Iterable[memoryview]] = [self._in_scheme(source, value.scheme, error)]
        else:
            try:  # twice through, since a file begins with where things lie: what is packed may be as large as the RAM
                sizes = [len(data) for data in self._packed_bands(source, layout)]
                layout = matrix_layout(HEAD, *(replace(p.value, nbytes=size) for p, size in zip(layout.places, sizes, strict=True)))
                bands, contents = layout.parts, ([data] for data in self._packed_bands(source, layout))
            except schemes.Unpackable:
                self._storing.unpackable(built.head_name)
                meta = self._converter.wanted[built.embed_name if built.tied else built.head_name]
                layout, bands = blueprint.matrix(HEAD, built.head_name, value_of(built.head_name, meta), band_bytes)
                contents = [in_scheme(source, RAW, self._converter.matrix(source))]
        (parts,) = shard_file.write(self._out, HEAD, layout, contents, bands)
        self._done([Shard("head", 0, parts)], {HEAD: layout.size})
        self._tell_of(error, "head")

    def _in_scheme(self, name: str, scheme: str, error: Error) -> Iterable[memoryview]:
        if scheme in schemes.GGML:
            return [self._converter.planes(name).numpy().data]
        return in_scheme(name, scheme, self._converter.matrix(name), error)

    def _packed_bands(self, source: str, layout: Layout) -> Iterator[memoryview]:
        """The matrix in the bands of the layout, however its rows come."""
        rows = self._converter.matrix(source)
        waiting = next(rows)
        for place in layout.places:
            while len(waiting) < place.value.shape[0]:
                waiting = torch.cat([waiting, next(rows)])
            band, waiting = waiting[: place.value.shape[0]], waiting[place.value.shape[0] :]
            yield schemes.get(place.value.scheme).pack(band).numpy().data

    def _group(self, group: Group) -> None:
        """A layer, or what lies outside the layers."""
        if group.layout is None:
            self._done([Shard(group.kind, group.layer, ())], {})
            return
        band_bytes = self._band_bytes if group.kind == "layer" else None
        error = Error()
        parts, size = write_group(self._out, group.file, self._encoded(group, band_bytes, error), band_bytes)
        self._done([Shard(group.kind, group.layer, parts)], {group.file: size})
        self._tell_of(error, f"layer {group.layer}")

    def _tell_of(self, error: Error, what: str) -> None:
        if error.relative:
            self._notice(f"{what}: what is stored is off by {error.relative:.2%} of the weights' size")

    def _encoded(self, group: Group, band_bytes: int | None, error: Error) -> Iterator[Stored]:
        """What lies in the group's file."""
        wanted, storing = self._converter.wanted, self._storing
        schemes_of = {name: storing.of(name, wanted[name]) for name in group.names}
        kept = {name for name, scheme in schemes_of.items() if scheme in schemes.GGML}
        tensors = self._converter.group([name for name in group.names if name not in kept])
        values = {name: value_of(name.removeprefix(group.prefix), wanted[name], scheme) for name, scheme in schemes_of.items()}
        laid = group_values(list(values.values()), band_bytes)
        for name, value in values.items():
            if name in kept:
                yield Stored(value, [self._converter.planes(name).numpy().data])
                continue
            try:
                stored = encoded([each for each in laid if each.name == value.name], tensors[name], error)
            except schemes.Unpackable:
                storing.unpackable(name)
                stored = encoded([value_of(value.name, tensors[name])], tensors[name])
            yield from stored

    def _done(self, shards: list[Shard], files: dict[str, int]) -> None:
        self._journal.add(shards, files)
        self._tell()

    def _tell(self) -> None:
        layers = sum(shard["kind"] == "layer" for shard in self._journal.shards)
        done = sum(self._journal.files.values())
        self._progress(Progress(layers, len(self._skeleton.layers), done, max(done, self._total), self._before))

    def _write_manifest(self) -> None:
        built = self._skeleton
        order = ("embed", "layer", "head", "resident")
        page = {
            "format": FORMAT,
            "potatod": importlib.metadata.version("potato-lm"),
            "transformers": importlib.metadata.version("transformers"),
            "architecture": type(built.model).__name__,
            "model_type": built.model.config.model_type,
            "dtype": self._dtype,
            "layers": len(built.layers),
            "layers_name": built.layers_name,
            "embed_name": built.embed_name,
            "head_name": built.head_name,
            "tied": built.tied,
            "fingerprint": skeleton.fingerprint(built),
            "files": dict(sorted(self._journal.files.items())),
            "shards": sorted(self._journal.shards, key=lambda shard: (order.index(shard["kind"]), shard["layer"])),
            "provenance": self._provenance,
            "companions": {name: asdict(companion) for name, companion in sorted(self._companions.items())},
        }
        manifest = manifests.parse(json.dumps(page))
        model_folder.check_files(self._out, manifest)
        model_folder.check_companions(self._out, manifest)
        shard_file.write_text(self._out, model_folder.NAME, manifests.dumps(manifest))
