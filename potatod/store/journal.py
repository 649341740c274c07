"""The model folder while it is made: who may write to it, which shards are finished, what is left to do.

NOTE [ killed at any byte ]
A file appears under its name whole and fsynced (shard_file.py). Then the journal gains a line: that shard's entry of
the manifest. A line cut short by a crash is no line. The manifest is written last, so a folder with a manifest is
complete and the daemon accepts no other. A prepare that starts again with the same source and options skips what the
journal has; with others it begins anew.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

from potatod import companions, model_folder
from potatod.errors import ModelDataError, TryAgain, UsageError
from potatod.manifest import Manifest, Shard

from .shard_file import explained, no_link, remove, sync_folder

_NAME: Final = ".prepare.journal"
_PARTIAL: Final = f"{_NAME}.partial"
#: Where the files of a source come and go that is not kept: staging.py.
STAGING: Final = ".source"
#: There where files of a source have been removed that is consumed: consume.py.
_CONSUMED: Final = "consumed"
#: A shard's file, with the second name that an upgrade gives it.
_SHARD_FILE: Final = re.compile(r"(layer\.\d{4,}|embed|head|resident)(\.1)?\.safetensors")


def finished(out: Path, key: str, force: bool) -> Manifest | None:
    """The manifest of a folder that is complete and was made with this key. Raises UsageError where ``out`` must not be
    written to."""
    check_place(out)
    if force or not (out / model_folder.NAME).exists():
        return None
    try:
        found = model_folder.load(out)
        model_folder.check_files(out, found)
        model_folder.check_companions(out, found)
    except ModelDataError as error:
        raise UsageError(f"{out} is a damaged model folder ({error}); --force makes it anew") from None
    if found.provenance.get("key") != key:
        raise UsageError(
            f"{out} is a model folder made from another source, with other options or by other versions; --force makes it anew, and "
            f"`potatod prepare --upgrade {out}` makes it one of the installed transformers without its source"
        )
    _end(out, key)
    return found


def check_place(out: Path) -> None:
    """Raises UsageError where a model folder cannot be made there: a file, or somebody else's folder."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file; give the name of a folder to make")
    if (out / model_folder.NAME).exists() or (out / _NAME).exists():
        return
    if any(path.name != STAGING for path in out.iterdir()):
        raise UsageError(f"{out} has other things in it and is no model folder; choose an empty or a new one")


def note_consumed(out: Path) -> None:
    """From now on what is made in this folder is in no other."""
    if not (path := out / STAGING / _CONSUMED).exists():
        try:
            path.touch()
        except OSError as error:
            raise explained(error, path) from None
        sync_folder(path.parent)


def check_consumed(out: Path) -> None:
    """Raises UsageError where what has been made of a source that is gone would be lost."""
    if (out / STAGING / _CONSUMED).exists():
        raise UsageError(
            f"{out} is made of a source whose files are gone already (`potatod prepare --consume`): go on with the same options, SOURCE and "
            f"versions, or remove {out} and with it what it has of the model"
        )


class Journal:
    """``with Journal(out, key) as journal`` – alone in the folder, knowing what an earlier run with the same key
    finished.

    ``upgrading``: the folder has a manifest and stays a model; otherwise a manifest is the sign to begin anew.
    """

    def __init__(self, out: Path, key: str, *, upgrading: bool = False) -> None:
        self._out = out
        self._path = out / _NAME
        self._key = key
        self._upgrading = upgrading
        #: what an earlier run settled `auto` to; empty where there was none
        self.scheme = ""
        #: of the manifest, as JSON has them
        self.shards: list[dict[str, Any]] = []
        self.files: dict[str, int] = {}

    def __enter__(self) -> Journal:
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a+b", opener=no_link)
        except OSError as error:
            raise explained(error, self._path) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path)):
                raise BlockingIOError  # whoever had it has put another one in its place
        except (BlockingIOError, FileNotFoundError):
            self._file.close()
            raise TryAgain(f"another `potatod prepare` is at work in {self._out}; wait for it or stop it") from None
        try:
            self._resume()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._let_go()

    def _let_go(self) -> None:
        with suppress(OSError):  # what could not be written is tried once more, and whoever called has been told
            self._file.close()

    def has(self, kind: str, layer: int = 0) -> bool:
        return any(shard["kind"] == kind and shard["layer"] == layer for shard in self.shards)

    def add(self, shards: Sequence[Shard], files: dict[str, int]) -> None:
        """These shards lie in these finished files."""
        entry = {"files": files, "shards": [dataclasses.asdict(shard) for shard in shards]}
        self._append(entry)
        self.shards += entry["shards"]  # type: ignore[arg-type]
        self.files |= files

    def settle(self, scheme: str) -> None:
        """What `auto` comes to, also where this is gone on with on another day: it depends on the RAM."""
        if scheme != self.scheme:
            self.scheme = scheme
            self._rewrite()

    def close(self) -> None:
        """The manifest is written: nothing is left to resume."""
        remove(self._path)
        sync_folder(self._out)

    def _resume(self) -> None:
        """Takes what an earlier run left, if it was of this key; else clears the folder of our own files and begins."""
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        whole = [page for line in lines[:-1] if (page := _parsed(line)) is not None]
        if whole and whole[0].get("key") == self._key and (self._out / model_folder.NAME).exists() is self._upgrading:
            self.scheme = str(whole[0].get("scheme", ""))
            for entry in whole[1:]:
                if all(_has_size(self._out / name, size) for name, size in entry["files"].items()):
                    self.shards += entry["shards"]
                    self.files |= entry["files"]
        elif not self._upgrading:
            check_consumed(self._out)
            _clear(self._out)
        self._rewrite()

    def _rewrite(self) -> None:
        """The file holds exactly what we go on with: no torn line before the next one. Another one takes its place, so that no kill finds it empty."""
        pages: list[dict[str, Any]] = [{"key": self._key} | ({"scheme": self.scheme} if self.scheme else {})]
        if self.shards:
            pages.append({"files": self.files, "shards": self.shards})
        partial = self._out / _PARTIAL
        try:
            with open(partial, "wb", opener=no_link) as file:
                _write(file, pages)
            mine = open(partial, "a+b", opener=no_link)  # noqa: SIM115 - it stays open, and locked from before it has the name
            self._file, old = mine, self._file
            with old:
                fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.replace(partial, self._path)
                sync_folder(self._out)
        except OSError as error:
            raise explained(error, self._path) from None

    def _append(self, page: dict[str, Any]) -> None:
        try:
            _write(self._file, [page])
        except OSError as error:
            raise explained(error, self._path) from None


def _write(file: BinaryIO, pages: Iterable[dict[str, Any]]) -> None:
    """A line each, on the disk."""
    for page in pages:
        file.write(json.dumps(page).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        page = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return page if isinstance(page, dict) and page.keys() in ({"key"}, {"key", "scheme"}, {"files", "shards"}) else None


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def shard_files(out: Path) -> list[Path]:
    """Whatever bears the name of a shard's file."""
    return [path for path in out.iterdir() if _SHARD_FILE.fullmatch(path.name)]


def other_name(file: str) -> str:
    """The name under which an upgrade writes a shard anew while the old one stays: each has two, taken by turns."""
    stem = file.removesuffix(".safetensors")
    return (stem.removesuffix(".1") if stem.endswith(".1") else f"{stem}.1") + ".safetensors"


def is_begun(out: Path) -> bool:
    """Whether a run left its journal."""
    return (out / _NAME).exists()


def give_up(out: Path) -> None:
    """Nothing has been made: no trace stays of what was begun."""
    with suppress(OSError):  # it has other things in it, or cannot be removed: why it was given up says more
        (out / _PARTIAL).unlink(missing_ok=True)
        (out / _NAME).unlink(missing_ok=True)  # the last: what else is there is ours for as long as there is this
        out.rmdir()


def _end(out: Path, key: str) -> None:
    """The journal of a run that was ended behind its manifest, as it was about to remove it, is in nobody's way, and says for ever that something is
    not finished."""
    try:
        with open(out / _NAME, "rb") as file:
            begun = _parsed(file.readline())
    except FileNotFoundError:
        return
    if begun is not None and begun.get("key") == key:
        remove(out / _NAME)


def _clear(out: Path) -> None:
    """Removes a model folder's own files, the manifest first, and nothing else."""
    remove(out / model_folder.NAME)
    sync_folder(out)
    for path in [*shard_files(out), *out.glob(".*.partial"), *(out / name for name in companions.NAMES)]:
        remove(path)
