"""`potatod prepare … --draft int4`: a coarser copy of a model in its own folder, to guess for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from potatod import drafts, model_folder
from potatod.errors import ModelDataError
from potatod.manifest import Manifest, Part

from .prepare import Progress, prepare


def make(
    source: Path, folder: Path, form: str, *, force: bool = False, progress: Callable[[Progress], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
) -> bool:  # fmt: skip
    """The copy of the model in ``folder``, which was made from ``source`` or is that itself; False where it is there already, of these weights.
    Raises as prepare()."""
    if not (folder / model_folder.NAME).is_file():
        raise ModelDataError(f"{folder} is no model folder; a draft copy lies in one")
    copy, of = drafts.named(folder, form), model_folder.load(folder)
    stale = (copy / model_folder.NAME).is_file() and not drafts.is_of(copy, of)
    made = prepare(source, copy, dtype=form, force=force or stale, progress=progress, notice=notice)
    drafts.says_of(copy, of)
    _share_embedding(of, folder, model_folder.load(copy), copy)
    return made


def _share_embedding(manifest: Manifest, folder: Path, of_copy: Manifest, copy: Path) -> None:
    """Embeddings that are the same need not lie there twice."""
    parts, others = _embedding(manifest), _embedding(of_copy)
    ours, theirs = folder / parts[0].file, copy / others[0].file
    if parts != others or ours.stat().st_size != theirs.stat().st_size or ours.stat().st_ino == theirs.stat().st_ino:
        return
    linked = theirs.with_name(f"{theirs.name}.link")
    linked.unlink(missing_ok=True)
    try:
        os.link(ours, linked)
    except OSError:
        return  # not every file system can
    os.replace(linked, theirs)


def _embedding(manifest: Manifest) -> tuple[Part, ...]:
    return next(shard.parts for shard in manifest.shards if shard.kind == "embed")
