"""The models of POTATO_HOME: what there is, and whether one may be removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from potatod import model_folder
from potatod.errors import ModelDataError, NoSuchModel, TryAgain
from potatod.manifest import stored_as

from .journal import STAGING, is_begun


@dataclass(frozen=True, slots=True)
class Kept:
    name: str
    #: what the weights are stored as; empty where that is not known
    dtype: str
    #: on the disk
    size_bytes: int
    #: "complete", "interrupted", or "damaged" where files are missing or cut; verify looks closer
    state: str


def kept(models: Path) -> list[Kept]:
    """By name; folders that are no models are left out."""
    folders = sorted(models.iterdir()) if models.is_dir() else []
    return [found for folder in folders if folder.is_dir() and (found := _kept(folder)) is not None]


def check_unused(folder: Path) -> None:
    """Raises TryAgain where somebody has files of it open."""
    if (pid := user_of(folder)) is not None:
        raise TryAgain(f"process {pid} has files of {folder} open: stop it first (a daemon that serves it, or a pull)")


def remove(folder: Path) -> None:
    """Raises TryAgain where somebody has files of it open. The manifest goes first: what is half gone is no model."""
    check_unused(folder)
    (folder / model_folder.NAME).unlink(missing_ok=True)
    shutil.rmtree(folder)


def user_of(folder: Path) -> int | None:
    """A process that has a file in it open, as far as we may look; a daemon's reader has all shards open."""
    inside = f"{folder.resolve()}/"
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        pid = int(fd.parts[2])
        try:
            if pid != os.getpid() and f"{os.readlink(fd)}/".startswith(inside):
                return pid
        except OSError:  # it has ended, or is another user's
            continue
    return None


def _kept(folder: Path) -> Kept | None:
    size = sum(_sizes(folder))
    try:
        manifest = model_folder.load(folder)
        model_folder.check_files(folder, manifest)
        return Kept(folder.name, stored_as(manifest), size, "complete")
    except NoSuchModel:
        return Kept(folder.name, "", size, "interrupted") if is_begun(folder) or (folder / STAGING).exists() else None
    except ModelDataError:
        return Kept(folder.name, "", size, "damaged")


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                yield path.lstat().st_size
        except OSError:  # a pull has just removed it
            continue
