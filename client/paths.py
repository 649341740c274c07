"""Where the daemon's public socket lies when nobody says: one rule for both sides. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

#: An option of the command line goes before it, the rule below comes after it.
SOCKET_VARIABLE: Final = "POTATO_SOCKET"
_SOCKET_NAME: Final = "front.sock"
_SYSTEM_DIRECTORY: Final = Path("/run/potato")


def default_socket() -> str:
    """In the user's runtime directory, else in the system service's, else under /tmp in a directory of this user."""
    return f"ipc://{_directory() / _SOCKET_NAME}"


def _directory() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):  # the XDG specification: a relative one is to be ignored
        return Path(runtime) / "potato"
    if _SYSTEM_DIRECTORY.is_dir():
        return _SYSTEM_DIRECTORY
    return Path(f"/tmp/potato-{os.getuid()}")


def state_directory() -> Path:
    """Where what a person typed is kept: ``$XDG_STATE_HOME/potato``, else ``~/.local/state/potato``."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "potato"
