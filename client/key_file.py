"""A client's key for a daemon on another machine: one JSON file that `potatod keys add` writes, which only its owner may read."""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from zmq.utils import z85

from .errors import BadKey

_MAX_BYTES: Final = 4096
#: Of a CurveZMQ key as text (Z85): 32 bytes in 40 characters.
_KEY_CHARS, _KEY_BYTES = 40, 32
ADDRESS: Final = re.compile(r"tcp://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class KeyFile:
    #: tcp://HOST:PORT
    address: str
    #: the daemon's public key, by which we know it
    server: str
    #: ours, by which it knows us
    public: str
    secret: str

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def load(path: Path) -> KeyFile:
    """Raises :class:`BadKey`."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BadKey(
            f"{path} is no address of a daemon on this machine (it is ipc:// and an absolute path), and no key file that can be read: {error.strerror}"
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise BadKey(f"others may read the key {path}: chmod 600 {path}")
    try:
        page = json.loads(text)
        key = KeyFile(**page)
        for value in (key.server, key.public, key.secret):
            if not (isinstance(value, str) and len(value) == _KEY_CHARS and len(z85.decode(value)) == _KEY_BYTES):
                raise ValueError
        if not (isinstance(key.address, str) and ADDRESS.fullmatch(key.address)):
            raise ValueError
    except (ValueError, TypeError, KeyError, struct.error):
        raise BadKey(f"{path} is no key: `potatod keys add NAME` on the daemon's machine makes one") from None
    return key
