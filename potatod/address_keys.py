"""Kinds of configuration keys that say where something listens, and who may come there. See keys.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .keys import MAX_SOCKET_PATH_BYTES, NotAllowed, Plain, Text, absolute

_REMOTE: Final = re.compile(r"tcp://([0-9.]+|\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9.-]+|\*):[0-9]{1,5}")
_LISTEN: Final = re.compile(r"([0-9.]+|\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9.-]+):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Socket(Text):
    """``ipc://PATH``; absolute in the tree."""

    @property
    def allowed(self) -> str:
        return '"ipc://" and the path of a socket, such as "ipc:///run/potato/front.sock"'

    def parse(self, value: object, base: Path) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise NotAllowed
        if value.startswith("tcp://"):
            raise ValueError('is refused: a "tcp://" socket would be open to anyone; use "ipc://" and a path, and [front] remote for other machines')
        path = value.removeprefix("ipc://")
        if path == value or not path or path.startswith("@") or path.endswith("/"):
            raise NotAllowed
        path = absolute(path, base)
        if (length := len(path.encode())) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(
                f"is a path of {length} bytes; the system takes {MAX_SOCKET_PATH_BYTES}: choose a shorter one"
            )
        return f"ipc://{path}"


@dataclass(frozen=True, slots=True)
class Remote(Text):
    """Empty, or ``tcp://ADDRESS:PORT`` of this machine."""

    @property
    def allowed(self) -> str:
        return '"", or "tcp://", an address of this machine and a port, such as "tcp://0.0.0.0:7575"'

    def parse(self, value: object, base: Path) -> str:
        if value == "":
            return ""
        if not isinstance(value, str) or not _REMOTE.fullmatch(value) or not 0 < int(value.rpartition(":")[2]) < 1 << 16:
            raise NotAllowed
        return value


@dataclass(frozen=True, slots=True)
class Listen(Text):
    """Empty, or ``ADDRESS:PORT`` of this machine; port 0 takes a free one."""

    @property
    def allowed(self) -> str:
        return '"", or an address of this machine and a port, such as "127.0.0.1:8089"'

    def parse(self, value: object, base: Path) -> str:
        if value == "":
            return ""
        if not isinstance(value, str) or not _LISTEN.fullmatch(value) or int(value.rpartition(":")[2]) >= 1 << 16:
            raise NotAllowed
        return value


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of texts of one sort. In a flag or variable they stand one after the other with commas between."""

    one: re.Pattern[str]
    allowed: str

    def literal(self, text: str) -> object:
        return [each.strip() for each in text.split(",") if each.strip()]

    def parse(self, value: object, base: Path) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) and self.one.fullmatch(each) for each in value):
            raise NotAllowed
        return tuple(value)

    def plain(self, value: object) -> Plain:
        assert isinstance(value, tuple)
        return list(value)


HOST_NAMES: Final = Listed(re.compile(r"[A-Za-z0-9._-]{1,253}"), "a list of host names")
ORIGINS: Final = Listed(
    re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"), 'a list of origins, such as ["http://localhost:3000"]',
)  # fmt: skip
