"""The disk under some folders, whose calls are counted and fail when the test wants it: what our Python opens, writes, syncs, renames, removes.

A call is known by where it is made, so that it is the same one in the next run, whatever other threads do meanwhile. What fails is as bad as it may be:
half of what was to be written is there, and of what was not synced before the second half is zeros. A disk may also be full for as long as a test
wants.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
#: Of these a full disk has no trouble to do more, where it lasts.
_MAKE_ROOM = ("unlink", "rmdir")


@dataclass(frozen=True, order=True)
class Site:
    """Where in our code what is asked of the disk."""

    #: "shard_file.py:40 write"
    where: str
    #: "open", "write", "flush", "close", "truncate", "fsync", "replace", "mkdir", "unlink", "rmdir"
    what: str

    @property
    def file(self) -> str:
        return self.where.partition(":")[0]


@dataclass(frozen=True)
class Fault:
    """The ``nth`` call of a site fails, counted from 0; ``lasts``: all that follow fail too."""

    site: Site
    nth: int
    number: int
    lasts: bool


class FailingDisk:
    """``with FailingDisk(folder).under(fault) as disk``: the disk below ``folder`` has this fault, or none."""

    def __init__(self, *folders: Path, package: str = "store", full: Path | None = None) -> None:
        """``package``: of potatod, whose calls are meant; ``full``: while this file is there, nothing is taken that needs room."""
        self._ours, self._full = f"{os.sep}potatod{os.sep}{package}{os.sep}", full
        self._folders = tuple(f"{folder.resolve()}" for folder in folders)
        #: calls of each site so far
        self.calls: Counter[Site] = Counter()
        #: whether the fault was met
        self.met = False
        self._fault: Fault | None = None
        #: by inode, bytes at the last sync
        self._synced: dict[int, int] = {}

    @contextmanager
    def under(self, fault: Fault | None = None) -> Iterator[FailingDisk]:
        self._fault = fault
        real = {(module, name): getattr(module, name) for module, name in _PATCHED}
        patched = {
            "open": self._open, "fsync": self._fsync(os.fsync), "replace": self._of_path("replace", os.replace),
            "rename": self._of_path("replace", os.rename), "mkdir": self._of_path("mkdir", os.mkdir), "unlink": self._of_path("unlink", os.unlink),
            "remove": self._of_path("unlink", os.remove), "rmdir": self._of_path("rmdir", os.rmdir),
        }  # fmt: skip
        for module, name in real:
            setattr(module, name, self._os_open(os.open) if (module, name) == (os, "open") else patched[name])
        try:
            yield self
        finally:
            for (module, name), function in real.items():
                setattr(module, name, function)

    def _asked(self, what: str, path: str) -> OSError | None:
        """What is wrong with this call, if it is one of ours."""
        if not path.startswith(self._folders) or (where := self._where()) is None:
            return None
        if self._full is not None and self._full.exists() and what not in _MAKE_ROOM:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        site = Site(where, what)
        nth, fault = self.calls[site], self._fault
        self.calls[site] += 1
        if fault is None:
            return None
        if self.met:
            fails = fault.lasts and (fault.number == errno.EIO or what not in _MAKE_ROOM)
        else:
            self.met = fails = (site, nth) == (fault.site, fault.nth)
        return OSError(fault.number, os.strerror(fault.number), path) if fails else None

    def _where(self) -> str | None:
        """The innermost place of our code that is being run here."""
        frame = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if self._ours in code.co_filename:
                return f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}"
            frame = frame.f_back  # type: ignore[assignment]
        return None

    def do(self, what: str, path: str) -> None:
        if (error := self._asked(what, path)) is not None:
            raise error

    def _open(self, path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if isinstance(path, int) or not set(mode) & set("wax+"):
            return _REAL_OPEN(path, mode, *arguments, **options)
        full = _absolute(path)
        self.do("open", full)
        opened = _REAL_OPEN(path, mode, *arguments, **options)
        if "w" in mode:
            self._synced.pop(os.fstat(opened.fileno()).st_ino, None)
        return _File(self, full, opened) if full.startswith(self._folders) else opened

    def _os_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_DIRECTORY):
                self.do("open", _absolute(path, options.get("dir_fd")))
            return real(path, flags, *arguments, **options)

        return call

    def _of_path(self, what: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            self.do(what, _absolute(path, options.get("dir_fd")))
            return real(path, *arguments, **options)

        return call

    def _fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            path, state = os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor)
            if (error := self._asked("fsync", path)) is not None:
                _lose_half(path, self._synced.get(state.st_ino, 0))
                raise error
            self._synced[state.st_ino] = state.st_size
            real(descriptor)

        return call


class _File:
    """One that is written to."""

    def __init__(self, disk: FailingDisk, path: str, real: Any) -> None:
        self._disk = disk
        self._path = path
        self._real = real

    def write(self, data: Any) -> Any:
        try:
            self._disk.do("write", self._path)
        except OSError:
            self._real.write(data[: len(data) // 2])
            self._real.flush()
            raise
        return self._real.write(data)

    def flush(self) -> None:
        self._disk.do("flush", self._path)
        self._real.flush()

    def truncate(self, *size: int) -> Any:
        self._disk.do("truncate", self._path)
        return self._real.truncate(*size)

    def close(self) -> None:
        closed = self._real.closed
        self._real.close()
        if not closed:
            self._disk.do("close", self._path)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


_REAL_OPEN = builtins.open
_PATCHED = (
    (builtins, "open"), (io, "open"), (os, "open"), (os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (os, "unlink"), (os, "remove"),
    (os, "rmdir"),
)  # fmt: skip


def _absolute(path: Any, folder: int | None = None) -> str:
    name = os.fsdecode(path)
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name) if folder is not None else os.path.abspath(name)


def _lose_half(path: str, synced: int) -> None:
    with suppress(OSError), _REAL_OPEN(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        stays = synced + (size - synced) // 2
        file.seek(stays)
        file.write(bytes(max(0, size - stays)))
