"""Which socket, and whether somebody listens there: asked of the system itself, since ZeroMQ would wait in silence."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import BadSocket, NoDaemon
from .key_file import KeyFile, load
from .paths import SOCKET_VARIABLE, default_socket

#: ``sun_path`` holds 108 bytes, the last one is NUL.
MAX_PATH_BYTES: Final = 107
#: A socket file whose daemon is gone may get a new one: it is asked again for so long, this often.
STALE_S: Final = 3.0
ASK_AGAIN_S: Final = 0.1

_UCRED: Final = struct.Struct("3i")  # pid, uid, gid


@dataclass(frozen=True, slots=True)
class Endpoint:
    address: str
    #: of a daemon on another machine
    key: KeyFile | None = None


def endpoint(given: str | None) -> Endpoint:
    """What was given, else ``POTATO_SOCKET``, else the default: an address, or the path of a key file, which has the address of its daemon. Raises
    :class:`BadSocket`, :class:`BadKey`."""
    address = given or os.environ.get(SOCKET_VARIABLE) or default_socket()
    if "://" not in address:
        key = load(Path(address).expanduser())
        return Endpoint(key.address, key)
    if address.startswith("tcp://"):
        raise BadSocket(f"{address[:200]}: a daemon on the network needs a key; give the file that `potatod keys add` made there: it has the address")
    path = address.removeprefix("ipc://")
    if path == address or not path.startswith("/"):
        raise BadSocket(f"{address[:200]!r} is no address of a daemon; it is ipc:// and an absolute path, like {default_socket()}")
    if "\0" in path:
        raise BadSocket("a socket's path cannot hold a NUL character")
    if (length := len(os.fsencode(path))) > MAX_PATH_BYTES:
        raise BadSocket(f"the socket's path has {length} bytes, and the system takes at most {MAX_PATH_BYTES}: choose a shorter one")
    return Endpoint(address)


class Stale(NoDaemon):
    """The socket is there and nobody listens: a daemon that ended, or one that is just being started again."""


def look(address: str) -> None:
    """Returns where a daemon listens that we may trust.

    Else raises :class:`NoDaemon`, or its kind :class:`Stale`, with the sentence that helps. Of another machine only its silence will tell.
    """
    if address.startswith("tcp://"):
        return
    path = address.removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return  # its queue of connections is full: somebody is there, and busy
        except OSError as error:
            raise _nobody(address, path, error) from None
        _, uid, _ = _UCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if os.getuid() not in (0, uid) and uid != 0:
        raise NoDaemon(f"the daemon at {address} runs as user {uid} and answers only to that user, not to user {os.getuid()}")


def _nobody(address: str, path: str, error: OSError) -> NoDaemon:
    advice = f"start one with `potatod start`, or say with --socket or {SOCKET_VARIABLE} where it listens"
    if error.errno == errno.ECONNREFUSED:
        return Stale(f"no daemon listens at {address}, though its socket is there: it has ended; {advice}")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NoDaemon(f"no daemon: there is no socket {path}; {advice}")
    if error.errno == errno.EACCES:
        return NoDaemon(f"you may not use the socket {path}: it belongs to another user's daemon")
    return NoDaemon(f"no daemon at {address}: {os.strerror(error.errno or 0)}; {advice}")
