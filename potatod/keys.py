"""What a configuration key may hold: one small kind per sort of value, each both ways.

    text of a flag or variable ──literal()──▶ TOML value ──parse()──▶ value in the tree ──plain()──▶ TOML value

A kind raises ValueError with what is wrong; the caller adds which key and where it was written.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, cast

from .sizes import (
    Auto,
    Percent,
    format_amount,
    format_duration,
    format_size,
    parse_amount,
    parse_duration,
    parse_size,
)

#: What TOML, JSON and the command line can write.
Plain = str | int | float | bool | list[str] | None

#: ``sun_path`` holds 108 bytes, the last one is NUL.
MAX_SOCKET_PATH_BYTES: Final = 107
#: The daemon's own sockets lie in the run directory; their names are no longer than this.
_SOCKET_NAME_BYTES: Final = 20

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")
_DEVICE: Final = re.compile(r"auto|cpu|(cuda|xpu)(:[0-9]{1,2})?|simulated(:[a-z_0-9=.,+-]+)?")


#: Copies of a model that may guess for it, by how they are stored; they lie in its own folder.
SELF: Final = "self:"
COPIES: Final = ("self:int4", "self:int8")


class Kind(Protocol):
    @property
    def allowed(self) -> str:
        """What may stand there, to follow "must be"."""

    def literal(self, text: str) -> object:
        """The TOML value that ``text`` of a flag or variable stands for."""

    def parse(self, value: object, base: Path) -> object:
        """The tree's value; relative paths are meant from ``base``. Raises ValueError."""

    def plain(self, value: object) -> Plain:
        """The TOML value that parses to ``value``."""


class NotAllowed(ValueError):
    """The value is not among those allowed; the caller says which are."""


class Text:
    def literal(self, text: str) -> object:
        return text

    def plain(self, value: object) -> Plain:
        assert isinstance(value, str)
        return value


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from ``low`` to ``high``."""

    low: int
    high: int
    unit: str = ""

    @property
    def allowed(self) -> str:
        return f"a whole number{f' of {self.unit}' if self.unit else ''} from {self.low} to {self.high}"

    def literal(self, text: str) -> object:
        return int(text) if _WHOLE.fullmatch(text.strip()) else text

    def parse(self, value: object, base: Path) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise NotAllowed
        return value

    def plain(self, value: object) -> Plain:
        assert isinstance(value, int)
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """A real number from ``low`` (or above it) to ``high``."""

    low: float
    high: float
    above_low: bool = False

    @property
    def allowed(self) -> str:
        if self.above_low:
            return f"a number above {self.low:g} and at most {self.high:g}"
        return f"a number from {self.low:g} to {self.high:g}"

    def literal(self, text: str) -> object:
        try:
            return float(text)
        except ValueError:
            return text

    def parse(self, value: object, base: Path) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise NotAllowed  # a NaN too: it lies between nothing
        if self.above_low and value == self.low:
            raise NotAllowed
        return float(value)

    def plain(self, value: object) -> Plain:
        assert isinstance(value, float)
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words, or true and false where they are among them."""

    values: tuple[str | bool, ...]

    @property
    def allowed(self) -> str:
        shown = [str(v).lower() if isinstance(v, bool) else f'"{v}"' for v in self.values]
        return f"{', '.join(shown[:-1])} or {shown[-1]}"

    def literal(self, text: str) -> object:
        return {"true": True, "false": False}.get(text, text) if any(isinstance(v, bool) for v in self.values) else text

    def parse(self, value: object, base: Path) -> str | bool:
        for choice in self.values:
            if type(choice) is type(value) and choice == value:
                return choice
        raise NotAllowed

    def plain(self, value: object) -> Plain:
        assert isinstance(value, str | bool)
        return value


@dataclass(frozen=True, slots=True)
class Size(Text):
    """Bytes, written with a unit."""

    low: int
    high: int
    multiple: int = 1

    @property
    def allowed(self) -> str:
        steps = f", a multiple of {format_size(self.multiple)}" if self.multiple > 1 else ""
        return f'a size such as "{format_size(self.low)}", up to {format_size(self.high)}{steps}'

    def parse(self, value: object, base: Path) -> int:
        if not isinstance(value, str | int):
            raise NotAllowed
        size = parse_size(value)
        if not self.low <= size <= self.high or size % self.multiple:
            raise NotAllowed
        return size

    def plain(self, value: object) -> Plain:
        assert isinstance(value, int)
        return format_size(value)


@dataclass(frozen=True, slots=True)
class Share(Text):
    """``"auto"``, a size, or a share of what there is."""

    of: str

    @property
    def allowed(self) -> str:
        return f'"auto", a size such as "4GiB", or a share of {self.of} such as "50%"'

    def parse(self, value: object, base: Path) -> int | Percent | Auto:
        if not isinstance(value, str | int):
            raise NotAllowed
        amount = parse_amount(value)
        if amount == 0 or (isinstance(amount, int) and amount >= 1 << 60):
            raise NotAllowed
        return amount

    def plain(self, value: object) -> Plain:
        assert isinstance(value, int | Percent | Auto)
        return format_amount(value)


@dataclass(frozen=True, slots=True)
class ShareOfTime(Text):
    """``"off"``, or a share of the time."""

    @property
    def allowed(self) -> str:
        return '"off", or a share of the time such as "20%"'

    def parse(self, value: object, base: Path) -> Percent | Literal["off"]:
        if value == "off":
            return "off"
        if not isinstance(value, str) or not isinstance(amount := parse_amount(value), Percent):
            raise NotAllowed
        return amount

    def plain(self, value: object) -> Plain:
        return "off" if value == "off" else format_amount(cast(Percent, value))


@dataclass(frozen=True, slots=True)
class Duration(Text):
    """Seconds, written with a unit."""

    low_s: float
    high_s: float

    @property
    def allowed(self) -> str:
        return f'a duration such as "10min", from {format_duration(self.low_s)} to {format_duration(self.high_s)}'

    def parse(self, value: object, base: Path) -> float:
        if not isinstance(value, str | int | float):
            raise NotAllowed
        seconds = parse_duration(value)
        if not self.low_s <= seconds <= self.high_s:
            raise NotAllowed
        return seconds

    def plain(self, value: object) -> Plain:
        assert isinstance(value, float)
        return format_duration(value)


@dataclass(frozen=True, slots=True)
class Device(Text):
    """Where a model computes."""

    @property
    def allowed(self) -> str:
        return '"auto", "cpu", "cuda" or "xpu", one card of several such as "cuda:1", or "simulated"'

    def parse(self, value: object, base: Path) -> str:
        if not isinstance(value, str) or not _DEVICE.fullmatch(value):
            raise NotAllowed
        return value


@dataclass(frozen=True, slots=True)
class Folder(Text):
    """A folder's path; absolute in the tree, ``~`` expanded."""

    #: a socket will lie in it, so its path must be short
    holds_sockets: bool = False

    @property
    def allowed(self) -> str:
        return "the path of a folder"

    def parse(self, value: object, base: Path) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise NotAllowed
        if not value:
            if self.holds_sockets:
                raise NotAllowed
            return ""  # not chosen yet
        path = absolute(value, base)
        room = MAX_SOCKET_PATH_BYTES - _SOCKET_NAME_BYTES
        if self.holds_sockets and (length := len(path.encode())) > room:
            raise ValueError(
                f"is a path of {length} bytes; at most {room} leave room for the sockets in it: choose a shorter one"
            )
        return path


@dataclass(frozen=True, slots=True)
class File(Text):
    """A file's path; absolute in the tree, ``~`` expanded."""

    @property
    def allowed(self) -> str:
        return "the path of a file"

    def parse(self, value: object, base: Path) -> str:
        if not isinstance(value, str) or "\0" in value or not value or value.endswith("/"):
            raise NotAllowed
        return absolute(value, base)


@dataclass(frozen=True, slots=True)
class DraftModel(Folder):
    """A folder's path, or a copy that lies in the model's own folder."""

    @property
    def allowed(self) -> str:
        copies = ", ".join(f'"{copy}"' for copy in COPIES)
        return f'"", {copies}, or the path of a model folder'

    def parse(self, value: object, base: Path) -> str:
        if isinstance(value, str) and value.startswith(SELF):
            if value not in COPIES:
                raise NotAllowed
            return value
        return Folder.parse(self, value, base)


@dataclass(frozen=True, slots=True)
class Folders:
    """Paths of folders, as :class:`Folder`. In a flag or variable they stand one after the other with colons between."""

    @property
    def allowed(self) -> str:
        return "a list of folders' paths"

    def literal(self, text: str) -> object:
        return [path for path in text.split(os.pathsep) if path]

    def parse(self, value: object, base: Path) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(path, str) and path and "\0" not in path for path in value):
            raise NotAllowed
        return tuple(absolute(path, base) for path in value)

    def plain(self, value: object) -> Plain:
        assert isinstance(value, tuple)
        return list(value)


def absolute(text: str, base: Path) -> str:
    try:
        text.encode()  # it is shown, logged and sent: no bytes that are not text
        path = Path(text).expanduser()
    except UnicodeEncodeError:
        raise ValueError("is not valid UTF-8") from None
    except RuntimeError:  # a "~somebody" who does not exist
        raise ValueError(f'names a user who does not exist: "{text}"') from None
    return str(base / path)
