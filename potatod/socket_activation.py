"""The socket that systemd may hand over (sd_listen_fds(3)): it listens for the gateway, and goes on doing so while gateways come and go."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from .errors import ConfigError

#: FileDescriptorName= of the unit's socket.
NAME: Final = "gateway"
_FIRST: Final = 3
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})


def take(environment: MutableMapping[str, str], pid: int, listen: str, first: int = _FIRST) -> int | None:
    """The descriptor that listens for the gateway; None where process ``pid`` was handed none.

    What says so leaves ``environment``, and no child inherits a descriptor that is not given to it: it is nobody else's. ``listen``: [gateway] listen,
    without which there is no gateway. Raises :class:`ConfigError` where something else was handed over.
    """
    whose, count, names = (environment.pop(name, "") for name in _VARIABLES[:3])
    environment.pop(_VARIABLES[3], None)
    if whose != str(pid) or not (count.isascii() and count.isdecimal()) or int(count) == 0:
        return None
    called = names.split(":") if names else [NAME]
    if called != [NAME] or int(count) != 1:
        raise ConfigError(
            f"systemd hands over {count} sockets ({', '.join(called)}), and one is wanted, the gateway's: FileDescriptorName={NAME} in its .socket unit"
        )
    _check(first)
    if not listen:
        raise ConfigError("systemd hands over a socket for the gateway, and [gateway] listen is empty: set it, or disable the .socket unit")
    return first


def _check(fd: int) -> None:
    try:
        os.set_inheritable(fd, False)
        handed = socket.socket(fileno=fd)
        try:
            listens = bool(handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            fit = listens and handed.type == socket.SOCK_STREAM and handed.family in _FAMILIES
        finally:
            handed.detach()
    except OSError:  # closed, or no socket
        fit = False
    if not fit:
        raise ConfigError("what systemd hands over for the gateway is no socket that listens for streams: ListenStream= in its .socket unit")
