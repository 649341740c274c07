"""The model folder's files as things to read from: direct where the file system can, through the page cache where not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Literal

from potatod.errors import ModelDataError, NoSuchModel
from potatod.reading import fill

Io = Literal["direct", "buffered", "auto"]


class Source:
    """One file. Thread-safe: several reads may be under way at once.

    Direct reads need ``offset``, length and memory aligned to 4096 bytes, which parts and extents are.
    """

    def __init__(self, path: Path, io: Io) -> None:
        self.path = path
        self.direct = False
        try:
            self.fd = self._open(io)
        except FileNotFoundError as error:
            raise NoSuchModel(f"{path} is not there any more; run `potatod verify {path.parent}`") from error
        except OSError as error:
            raise ModelDataError(f"cannot open {path}: {error.strerror}") from error
        self._identity = self._identify(os.fstat(self.fd))

    def _open(self, io: Io) -> int:
        if io != "buffered":
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
                self.direct = True
                return fd
            except OSError as error:  # tmpfs and some network file systems know no O_DIRECT
                if error.errno != errno.EINVAL:
                    raise
                if io == "direct":
                    raise ModelDataError(
                        f'{self.path}: this file system takes no O_DIRECT; set [reader] io = "auto" or "buffered"'
                    ) from None
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return fd

    @staticmethod
    def _identify(stat: os.stat_result) -> tuple[int, int, int, int]:
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns

    def close(self) -> None:
        """Nothing may be under way."""
        os.close(self.fd)

    def check_unchanged(self) -> None:
        """Raises :class:`ModelDataError` where the file at this path is not the one that was opened, as it was."""
        try:
            now = self._identify(os.stat(self.path))
        except OSError as error:
            raise ModelDataError(f"{self.path} is gone while it is being served: {error.strerror}") from error
        if now != self._identity:
            raise ModelDataError(f"{self.path} was changed while it is being served; run `potatod verify`, then start again")

    def read_into(self, offset: int, memory: memoryview) -> None:
        """Fills ``memory`` from ``offset`` on; raises :class:`ModelDataError` naming file and offset."""
        fill(self.fd, self.path, offset, memory, direct=self.direct)
        if not self.direct:
            os.posix_fadvise(self.fd, offset, len(memory), os.POSIX_FADV_DONTNEED)  # the pool is the cache
