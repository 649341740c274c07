"""The token that HTTP clients show: one line in a file that only its owner may read. `potatod token` prints it.

A service may have it as a credential of systemd's (`LoadCredential=gateway.token:FILE`): then root alone owns the file, and the daemon reads a copy.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from potato_client.paths import state_directory

from .errors import ConfigError

#: Of the file, and of the credential.
NAME: Final = "gateway.token"
_TOKEN: Final = re.compile(r"[!-~]{16,512}")
_MAX_BYTES: Final = 1024


def default_place() -> Path:
    """Among the credentials of the service that this process is of, where it is there; else in the user's state directory."""
    credential = credentials() / NAME
    return credential if credential.is_file() else state_directory() / NAME


def credentials() -> Path:
    """Where systemd puts them; /nowhere outside of a service that has some."""
    return Path(os.environ.get("CREDENTIALS_DIRECTORY") or "/nowhere")


def read_or_make(path: Path) -> str:
    """Makes one at first. Raises :class:`ConfigError`."""
    try:
        return read(path)
    except FileNotFoundError:
        pass
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(f"potato-{secrets.token_urlsafe(32)}\n")
                file.flush()
                os.fsync(fd)
            os.link(made, path)  # whoever came first has made it
        finally:
            made.unlink(missing_ok=True)
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"cannot write [gateway] token {path}: {error.strerror}") from None
    return read(path)


def read(path: Path) -> str:
    """Raises FileNotFoundError, and :class:`ConfigError` where the file is none or others may read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MAX_BYTES + 1).decode("ascii", "replace").strip()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read [gateway] token {path}: {error.strerror}") from None
    if not stat.S_ISREG(mode) or not _TOKEN.fullmatch(text):
        raise ConfigError(f"[gateway] token {path} is no token: one line of 16 to 512 printable characters; move it away and a new one is made")
    # a credential's access control list, which lets the service's user read it, shows where the group's rights do
    if stat.S_IMODE(mode) & (0o037 if path.parent == credentials() else 0o077):
        raise ConfigError(f"others may read the token {path}: chmod 600 {path}")
    return text
