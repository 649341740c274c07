"""What is kept of a source in the hidden folder `.source` of a model folder, while its files come and go: whose it is, and the heads of its files.

So a run that was killed goes on without the files that are gone. One process at a time has it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from potatod.errors import ModelDataError, NoSuchModel, TryAgain
from potatod.json_file import read_json

from . import shard_file
from .journal import STAGING, give_up, is_begun

#: No name that a source's own file could have here: hub_source.py takes only such that end as configs, tokenizers and weights do.
_NAME: Final = "state"
_MAX_BYTES: Final = 1 << 30


@contextmanager
def held(out: Path) -> Iterator[Path]:
    """The folder, ours alone; raises TryAgain where another process has it. What ends before it is ``agreed`` to leaves nothing."""
    folder, begun = out / STAGING, is_begun(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise shard_file.explained(error, folder) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryAgain(f"another `potatod` is at work in {out}; wait for it or stop it") from None
        try:
            yield folder
        except BaseException:
            if not begun and not remembered(folder).get("agreed"):
                remove(folder)
                give_up(out)
            raise
    finally:
        os.close(lock)


def remembered(folder: Path) -> dict[str, Any]:
    """What the last :func:`remember` was told; empty where nothing was."""
    try:
        return read_json(folder / _NAME, _MAX_BYTES)
    except (NoSuchModel, ModelDataError):
        return {}


def remember(folder: Path, page: Mapping[str, Any]) -> None:
    shard_file.write_text(folder, _NAME, json.dumps(page))


def empty(folder: Path) -> None:
    """Another source is to come."""
    for path in folder.iterdir():
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            raise shard_file.explained(error, path) from None


def remove(folder: Path) -> None:
    """Nothing is left to go on with."""
    shutil.rmtree(folder, ignore_errors=True)
