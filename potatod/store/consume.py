"""`potatod prepare --consume`: a Hugging Face folder whose files of weights go while a model folder is made of them.

A file goes when everything that is made of it is on the disk and in the journal. So the disk holds the weights about once; and what has been made is
the only place where they are, until the rest is made too.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potatod import model_folder
from potatod.dtypes import KEEP
from potatod.errors import ModelDataError, UsageError
from potatod.sizes import human_size

from . import shard_file, staging
from .checkpoint import Lazy, head_of, joined, tensors_in, weight_files
from .identity import key_of
from .journal import check_consumed, check_place, finished, note_consumed
from .prepare import Progress, make
from .shards import make_room
from .source import HuggingFaceSource, open_source
from .storing import wish
from .supply import Passing, Work, peak, wanted


def consume(
    source: Path,
    out: Path,
    *,
    dtype: str = "auto",
    agree: Callable[[str], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
    band_bytes: int | None = None,
) -> bool:
    """Makes the model folder ``out`` and removes the weights of ``source``; False where that is done already.

    ``agree`` is told what goes before anything does, once, and raises where it must not. May be killed at any point and run again, with the same
    options. Raises as :func:`prepare.prepare`.
    """
    if wish(dtype).scheme == KEEP:
        raise UsageError('dtype "keep" looks at all weights first, and --consume has not all of them when it goes on: prepare without --consume')
    check_place(out)
    source = source.resolve()
    if _is_done(source, out):
        return False
    with staging.held(out) as folder:
        page = _page(folder, source, out, dtype, band_bytes)
        if finished(out, page["key"], False) is None:
            opened = HuggingFaceSource(source, _tensors(source, page))
            if opened.is_packed:
                raise UsageError(f"{source} is quantised in a form that is read all over the folder at once: prepare it without --consume")

            def agreed(files: Mapping[Path, int]) -> None:
                if not page.get("agreed"):
                    agree(f"{len(files)} files of weights in {source} ({human_size(sum(files.values()))}) are REMOVED one by one as they are converted")
                    staging.remember(folder, staging.remembered(folder) | {"agreed": True})

            supply = Consumed(folder, opened, {source / name: size for name, size in page["sizes"].items()}, agreed)
            make(opened, out, page["key"], dtype, progress=progress, notice=notice, band_bytes=band_bytes, supply=supply, origin={"consumed": "yes"})
        for name in page["sizes"]:
            shard_file.remove(source / name)
        staging.remove(folder)
    return True


class Consumed(Passing):
    """See :class:`supply.Supply`. ``sizes``: of all files of weights; ``agree`` is told of those that are there."""

    def __init__(self, folder: Path, source: HuggingFaceSource, sizes: Mapping[Path, int], agree: Callable[[Mapping[Path, int]], None]) -> None:
        super().__init__(folder, source.files())
        self._sizes = sizes
        self._agree = agree

    def begin(self, works: Sequence[Work], out: Path) -> None:
        self._works = list(works)
        self._there = {path for path in self._sizes if path.exists()}
        if missing := wanted(works) - self._there:
            raise ModelDataError(f"{min(missing)} is gone, and {out} has not everything that is made of it: its weights are lost here, get them anew")
        goes = next(iter(self._sizes)).parent.stat().st_dev == out.stat().st_dev
        make_room(out, peak(works, self._sizes, self._there, {}, goes))
        self._agree({path: self._sizes[path] for path in self._there})

    def need(self, work: Work) -> None:
        assert work.files <= self._there

    def _remove(self, path: Path) -> None:
        note_consumed(self._folder.parent)
        super()._remove(path)


def _page(folder: Path, source: Path, out: Path, dtype: str, band_bytes: int | None) -> dict[str, Any]:
    """What this was begun with; the heads of files that may be gone are in it."""
    page = staging.remembered(folder)
    versions = [importlib.metadata.version(name) for name in ("potato-lm", "transformers")]
    begun_with = {"consumes": str(source), "asked": [dtype, band_bytes], "versions": versions}
    if page.items() >= begun_with.items():
        return page
    check_consumed(out)
    staging.empty(folder)
    opened = open_source(source)
    if not isinstance(opened, HuggingFaceSource):
        raise UsageError(f"--consume takes a Hugging Face folder, whose files go one by one, and {source} is none: prepare it without, then remove it")
    files, _ = weight_files(source, [path.name for path in source.iterdir()])
    if links := [name for name in files if (source / name).is_symlink()]:
        raise UsageError(f"{source / links[0]} is a link, as the hub's cache has them, and --consume removes files: `potatod pull` needs no cache")
    page = begun_with | {
        "key": key_of(source, dtype, band_bytes), "sizes": {name: (source / name).stat().st_size for name in files},
        "heads": {name: head_of(source / name) for name in files},
    }  # fmt: skip
    staging.remember(folder, page)
    return page


def _tensors(source: Path, page: Mapping[str, Any]) -> dict[str, Lazy]:
    return joined({name: tensors_in(header, begin, source / name) for name, (header, begin) in page["heads"].items()}, {}, source)


def _is_done(source: Path, out: Path) -> bool:
    """Whether ``out`` is whole and this source has no weights any more."""
    if not (out / model_folder.NAME).exists() or any(source.glob("*.safetensors")):
        return False
    provenance = model_folder.load(out).provenance
    return provenance.get("source") == source.name and "consumed" in provenance
