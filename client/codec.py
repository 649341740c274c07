"""Frozen dataclasses to msgpack and back, with every field checked by type before it is read.

A frame is ``[name, {field: value}]``. Nothing is trusted: a frame is bounded before it is parsed, and at every place
the first byte says what stands there before memory is taken for it, so a frame costs its own size and what its message
holds, whatever it claims to be (NOTE [ small frame, much memory ]). An unknown message, an unknown, doubled or missing
field and a wrong type are :class:`BadFrame`, never a surprise further in.

Fields may be ``int, float, str, bool, bytes``, ``Literal`` strings, tuples of one type (``tuple[int, ...]``) or of a type for each place
(``tuple[int, float]``), other dataclasses, and any of these ``| None``.

NOTE [ small frame, much memory ]
A general parser builds what a frame says: ten megabytes of empty maps become 700 MB, and five bytes that announce an
array of a million items take eight megabytes, times a thousand where they are nested. Here containers are opened only
where a message has one, and grow as their items come.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable
from typing import Any, Final

import msgpack

#: Larger frames are refused before they are parsed. The longest honest one carries a prompt.
MAX_FRAME_BYTES: Final = 16 << 20
#: Of a name that nobody knows, so much is repeated in the answer.
_SHOWN_CHARS: Final = 40


class BadFrame(ValueError):
    """A frame that is not a message of this codec; the text says why."""


class Codec:
    """Packs and unpacks a closed set of messages.

    ``messages`` may stand alone in a frame; dataclasses that only occur inside fields need not be listed. A list in a
    frame has at most ``max_items`` items, where that is given.
    """

    def __init__(self, *messages: type, max_frame_bytes: int = MAX_FRAME_BYTES, max_items: int | None = None) -> None:
        self._readers = {cls.__name__: (cls, _record(cls, cls.__name__)) for cls in messages}
        self._max = max_frame_bytes
        self._max_items = max_items

    def encode(self, message: object) -> bytes:
        """The frame. Raises ValueError for text that is not Unicode, OverflowError for numbers beyond 64 bits."""
        cls = type(message)
        if self._readers.get(cls.__name__, (None,))[0] is not cls:
            raise TypeError(f"{cls.__name__} is not a message of this wire")
        packed: bytes = msgpack.packb([cls.__name__, _plain(message)], use_bin_type=True)
        return packed

    def decode(self, frame: bytes | memoryview) -> Any:
        """The message in ``frame``; raises :class:`BadFrame`."""
        size = len(frame)
        if size > self._max:
            raise BadFrame(f"a frame of {size} bytes; at most {self._max} are read")
        try:
            return self._message(_Source(frame, self._max_items or size))
        except BadFrame:
            raise
        except msgpack.exceptions.OutOfData:
            raise BadFrame("not msgpack: cut short") from None
        except (ValueError, msgpack.exceptions.UnpackException) as error:
            raise BadFrame(f"not msgpack: {error}") from None

    def _message(self, source: _Source) -> Any:
        if source.kind() is not list or source.open_list("a frame") != 2 or source.kind() is not str:
            raise BadFrame("a frame is [name, fields]")
        name = source.value()
        if name not in self._readers:
            raise BadFrame(f"unknown message {name[:_SHOWN_CHARS]!r}{_nearest(name, self._readers)}")
        message = self._readers[name][1](source)
        if not source.at_end:
            raise BadFrame(f"{name}: more bytes behind it")
        return message


class _Source:
    """A frame with a cursor, and a look at what comes next."""

    def __init__(self, frame: bytes | memoryview, max_items: int) -> None:
        self._frame = frame
        self._max_items = max_items
        self._unpacker = msgpack.Unpacker(raw=False, max_buffer_size=len(frame) + 1, max_ext_len=0)
        self._unpacker.feed(frame)
        #: the next value, which must not be a container: ask for its kind first
        self.value: Callable[[], Any] = self._unpacker.unpack

    @property
    def at_end(self) -> bool:
        return bool(self._unpacker.tell() == len(self._frame))

    def kind(self) -> type:
        """Of the next value, by its first byte."""
        at: int = self._unpacker.tell()
        if at >= len(self._frame):
            raise BadFrame("cut short")
        first: int = self._frame[at]
        return _KINDS[first]

    def open_list(self, where: str) -> int:
        """How many items follow. Ask for the kind first."""
        count: int = self._unpacker.read_array_header()
        if count > self._max_items:
            raise BadFrame(f"{where}: {count} items; at most {self._max_items} are read")
        return count

    def open_map(self) -> int:
        """How many pairs follow. Ask for the kind first."""
        count: int = self._unpacker.read_map_header()
        return count


class _Nothing:
    """Bytes that we do not read: extension types, and the one that msgpack never uses."""


def _kinds() -> list[type]:
    """By first byte, as msgpack's specification has them."""
    kinds: list[type] = [int] * 256
    kinds[0x80:0x90] = [dict] * 16
    kinds[0x90:0xA0] = [list] * 16
    kinds[0xA0:0xC0] = [str] * 32
    kinds[0xC0:0xC4] = [types.NoneType, _Nothing, bool, bool]
    kinds[0xC4:0xCA] = [bytes] * 3 + [_Nothing] * 3
    kinds[0xCA:0xCC] = [float] * 2
    kinds[0xD4:0xE0] = [_Nothing] * 5 + [str] * 3 + [list] * 2 + [dict] * 2
    return kinds


_KINDS: Final[list[type]] = _kinds()
_NAMES: Final = {list: "a list", dict: "a map", types.NoneType: "None", _Nothing: "something of no type we know"}

_Reader = Callable[[_Source], Any]


def _reader(hint: Any, where: str) -> _Reader:
    """What reads a field of that type; ``where`` names the field in errors."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union) and len(args) == 2 and types.NoneType in args:
        return _optional(_reader(args[0] if args[1] is types.NoneType else args[1], where))
    if origin is typing.Literal:
        return _literal(args, where)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return _list(_reader(args[0], where), where)
    if origin is tuple and args:
        return _places([_reader(arg, where) for arg in args], where)
    if dataclasses.is_dataclass(hint):
        return _record(typing.cast(type, hint), where)
    if hint is float:
        return _float(where)
    if hint in (int, str, bool, bytes):
        return _scalar(hint, where)
    raise TypeError(f"{where}: a message cannot carry {hint}")


def _wrong(where: str, wanted: str, found: type) -> BadFrame:
    return BadFrame(f"{where}: must be {wanted}, not {_NAMES.get(found, found.__name__)}")


def _optional(inner: _Reader) -> _Reader:
    def read(source: _Source) -> Any:
        return source.value() if source.kind() is types.NoneType else inner(source)

    return read


def _scalar(kind: type, where: str) -> _Reader:
    def read(source: _Source) -> Any:
        if (found := source.kind()) is not kind:
            raise _wrong(where, kind.__name__, found)
        return source.value()

    return read


def _float(where: str) -> _Reader:
    def read(source: _Source) -> float:
        if (found := source.kind()) not in (float, int):
            raise _wrong(where, "float", found)
        return float(source.value())

    return read


def _literal(allowed: tuple[Any, ...], where: str) -> _Reader:
    text = _scalar(str, where)

    def read(source: _Source) -> Any:
        value = text(source)
        if value not in allowed:
            raise BadFrame(f"{where}: must be one of {', '.join(allowed)}")
        return value

    return read


def _list(item: _Reader, where: str) -> _Reader:
    def read(source: _Source) -> tuple[Any, ...]:
        if (found := source.kind()) is not list:
            raise _wrong(where, "a list", found)
        return tuple(item(source) for _ in range(source.open_list(where)))

    return read


def _places(readers: list[_Reader], where: str) -> _Reader:
    def read(source: _Source) -> tuple[Any, ...]:
        if (found := source.kind()) is not list:
            raise _wrong(where, "a list", found)
        if (count := source.open_list(where)) != len(readers):
            raise BadFrame(f"{where}: must be a list of {len(readers)}, not of {count}")
        return tuple(each(source) for each in readers)

    return read


def _record(cls: type, where: str) -> _Reader:
    hints = typing.get_type_hints(cls)
    fields = {field.name: _reader(hints[field.name], f"{where}.{field.name}") for field in dataclasses.fields(cls)}
    needed = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]

    def read(source: _Source) -> Any:
        if (found := source.kind()) is not dict:
            raise _wrong(where, "a map", found)
        values: dict[str, Any] = {}
        for _ in range(source.open_map()):
            name = _field_name(source, where)
            if name not in fields:
                raise BadFrame(f"{where}: unknown field {name[:_SHOWN_CHARS]!r}{_nearest(name, fields)}")
            if name in values:
                raise BadFrame(f"{where}: field {name!r} is there twice")
            values[name] = fields[name](source)
        for name in needed:
            if name not in values:
                raise BadFrame(f"{where}: field {name!r} is missing")
        try:
            return cls(**values)
        except ValueError as error:  # a message's own __post_init__ checks ranges
            raise BadFrame(f"{where}: {error}") from None

    return read


def _field_name(source: _Source, where: str) -> str:
    if (found := source.kind()) is not str:
        raise _wrong(where, "a map of names", found)
    name: str = source.value()
    return name


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    """ ", did you mean …?" where a known name is near."""
    near = difflib.get_close_matches(name[:_SHOWN_CHARS], list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
