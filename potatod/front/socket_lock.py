"""The right to a socket's path, held by one daemon at a time.

ZeroMQ binds over a live path without a word and steals it. So beside the socket lies ``<socket>.lock``, and who holds
its flock owns the path. The kernel gives the lock back however a process ends; the file's text, the pid of the holder's daemon
(our parent), is for people: that is the process to stop.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from potatod.errors import ConfigError, Unavailable


class SocketLock:
    """Takes the path, then removes a stale socket.

    Raises :class:`Unavailable` where another daemon has it, as the lock of the run directory does, and :class:`ConfigError` where it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = path.with_name(path.name + ".lock")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = self._take()
        except OSError as error:
            raise ConfigError(f"cannot use [front] socket {path}: {error.strerror}") from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getppid()}\n".encode(), 0)
        self._unlink_socket()

    def _take(self) -> int:
        while True:
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
                os.close(fd)
                raise Unavailable(
                    f"another daemon (pid {pid}) serves at {self._path}; stop it, or give this one its own [run] directory and [front] socket"
                ) from None
            if self._still_there(fd):
                return fd
            os.close(fd)  # its holder removed the file between our open and our flock

    def _still_there(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._lock))
        except FileNotFoundError:
            return False

    def _unlink_socket(self) -> None:
        if self._path.is_socket():
            self._path.unlink(missing_ok=True)
        elif self._path.exists():
            raise ConfigError(f"[front] socket {self._path} exists and is not a socket; remove it or choose another")

    def release(self) -> None:
        """Removes socket and lock file. The lock goes last, so nobody's new socket is removed."""
        self._path.unlink(missing_ok=True)
        self._lock.unlink(missing_ok=True)
        os.close(self._fd)
