"""Checks, before anything starts, that the daemon's directory and socket can lie where the configuration puts them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .config import Settings
from .errors import ConfigError


def check(settings: Settings) -> None:
    """Raises :class:`ConfigError` with the key, what is wrong with the place, and what to do."""
    _check_folder("[run] directory", Path(settings.run.directory), others_may=0)
    socket = Path(settings.front.socket.removeprefix("ipc://"))
    _check_folder("the folder of [front] socket,", socket.parent, others_may=0o055)
    if socket.exists() and not socket.is_socket():
        raise ConfigError(f"[front] socket {socket} is a file and not a socket: remove it, or choose another path")


def _check_folder(what: str, folder: Path, others_may: int) -> None:
    try:
        found = folder.stat()
    except FileNotFoundError:
        _check_can_be_made(what, folder)
        return
    except OSError as error:
        raise ConfigError(f"{what} {folder} cannot be used: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{what} {folder} is not a folder")
    if found.st_uid != os.getuid():
        raise ConfigError(f"{what} {folder} belongs to another user (uid {found.st_uid}): choose one of your own")
    if found.st_mode & 0o077 & ~others_may:
        may = "be entered" if not others_may else "be written"
        raise ConfigError(f"{what} {folder} can {may} by other users: chmod 700 it, or choose another one")


def _check_can_be_made(what: str, folder: Path) -> None:
    above = next((parent for parent in folder.parents if parent.exists()), Path("/"))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{what} {folder} cannot be made: {above} is not yours to write in; choose another one")
