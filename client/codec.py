"""Frozen dataclasses to msgpack and back, with every field checked by type.

A frame is ``[name, {field: value}]``. Nothing is trusted: a frame is bounded before it is parsed, an unknown message,
an unknown or missing field and a wrong type are :class:`BadFrame`, never a surprise further in. Fields may be
``int, float, str, bool, bytes, None``, tuples of one type (``tuple[int, ...]``), unions of these, other dataclasses of the same
codec, and ``dict[str, ...]`` of those.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Final

import msgpack

#: Larger frames are refused before they are parsed. The longest honest one carries a prompt.
MAX_FRAME_BYTES: Final = 16 << 20


class BadFrame(ValueError):
    """A frame that is not a message of this codec; the text says why."""


class Codec:
    """Packs and unpacks a closed set of messages.

    ``messages`` may stand alone in a frame; dataclasses that only occur inside fields need not be listed.
    """

    def __init__(self, *messages: type, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._by_name = {cls.__name__: cls for cls in messages}
        self._max = max_frame_bytes

    def encode(self, message: object) -> bytes:
        cls = type(message)
        if self._by_name.get(cls.__name__) is not cls:
            raise TypeError(f"{cls.__name__} is not a message of this wire")
        packed: bytes = msgpack.packb([cls.__name__, _plain(message)], use_bin_type=True)
        return packed

    def decode(self, frame: bytes | memoryview) -> Any:
        """The message in ``frame``; raises :class:`BadFrame`."""
        size = len(frame)
        if size > self._max:
            raise BadFrame(f"a frame of {size} bytes; at most {self._max} are read")
        try:
            # Limits follow from the frame's own size: no element is smaller than a byte, so nothing honest is refused,
            # and maps (the costly ones) hold only our fields.
            parsed = msgpack.unpackb(
                frame, raw=False, strict_map_key=True, max_str_len=size, max_bin_len=size,
                max_array_len=size, max_map_len=4096, max_ext_len=0,
            )  # fmt: skip
        except (ValueError, msgpack.exceptions.UnpackException, msgpack.exceptions.ExtraData, RecursionError) as error:
            raise BadFrame(f"not msgpack: {error}") from None
        if not (isinstance(parsed, list) and len(parsed) == 2 and isinstance(parsed[0], str)):
            raise BadFrame("a frame is [name, fields]")
        name, fields = parsed
        cls = self._by_name.get(name)
        if cls is None:
            raise BadFrame(f"unknown message {name[:40]!r}")
        return _build(cls, fields, name)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


_hints_of: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _hints_of:
        _hints_of[cls] = typing.get_type_hints(cls)
    return _hints_of[cls]


def _build(cls: type, fields: Any, where: str) -> Any:
    if not isinstance(fields, dict):
        raise BadFrame(f"{where}: fields must be a map")
    hints = _hints(cls)
    for name in fields:
        if name not in hints:
            raise BadFrame(f"{where}: unknown field {str(name)[:40]!r}")
    values = {}
    for field in dataclasses.fields(cls):
        if field.name in fields:
            values[field.name] = _check(hints[field.name], fields[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise BadFrame(f"{where}: field {field.name!r} is missing")
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:  # a message's own __post_init__ checks ranges
        raise BadFrame(f"{where}: {error}") from None


def _check(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        return _check_union(args, value, where)
    if origin is typing.Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        raise BadFrame(f"{where}: must be one of {', '.join(map(str, args))}")
    if origin is tuple:
        if not isinstance(value, list):
            raise BadFrame(f"{where}: must be a list")
        if args[0] is int and len(args) == 2:  # token ids: long lists, checked without a call per item
            if not all(type(item) is int for item in value):
                raise BadFrame(f"{where}: must be a list of integers")
            return tuple(value)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_check(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(args):
            raise BadFrame(f"{where}: must have {len(args)} items")
        return tuple(_check(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise BadFrame(f"{where}: must be a map")
        return {_check(args[0], key, where): _check(args[1], item, f"{where}[{key}]") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if hint is float and type(value) is int:
        return float(value)
    if hint is type(None):
        hint = types.NoneType
    if type(value) is not hint:
        raise BadFrame(f"{where}: must be {getattr(hint, '__name__', hint)}, not {type(value).__name__}")
    return value


def _check_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    errors = []
    for arg in args:
        try:
            return _check(arg, value, where)
        except BadFrame as error:
            errors.append(error)
    if len(args) == 2 and type(None) in args:  # `X | None`: the other branch's reason is the useful one
        raise errors[0 if args[1] is type(None) else 1]
    raise BadFrame(f"{where}: must be one of {', '.join(getattr(a, '__name__', str(a)) for a in args)}")
