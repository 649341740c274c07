"""The daemon's runtime directory: ours alone (0700), locked while we live, and free of what an earlier daemon left.

Nothing in it is worth keeping: sockets between the processes and the pages that tell each what to do. Only names that the daemon itself gives are
ever removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from .errors import ConfigError, DoesNotFit, Unavailable

#: The control wire, an epoch's wires, the stages' boot pages and the probe's.
_OURS: Final = re.compile(r"control|(bytes|sweeps)\.\d+|boot\.\d+(\.front)?\.json|boot\.probe\.json")


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Raises :class:`ConfigError` where the directory cannot be used, :class:`Unavailable` where another daemon has it, :class:`DoesNotFit`
    where its disk is full now or while it is held."""
    lock = _lock(directory)
    try:
        _sweep(directory)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DoesNotFit(f"no space is left in [run] directory {directory}: free some there, or name a directory on another disk") from error
    finally:
        with suppress(OSError):  # somebody has removed it while we lived
            _sweep(directory)
        os.close(lock)


def _lock(directory: Path) -> int:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        stat = directory.stat()
        if stat.st_uid != os.getuid() or stat.st_mode & 0o077:
            raise ConfigError(f"[run] directory {directory} must belong to you alone: chown it, or chmod 700 {directory}")
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot use [run] directory {directory}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.pread(lock, 20, 0).decode(errors="replace").strip()
        os.close(lock)
        raise Unavailable(
            f"another daemon (pid {pid or 'unknown'}) runs in {directory}; stop it, or give this one its own [run] directory and "
            "[front] socket"
        ) from None
    return lock


def _sweep(directory: Path) -> None:
    for path in directory.iterdir():
        if _OURS.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)
