"""From the bytes of a request to what is understood of it. Law: what is not understood is refused by its name, never ignored.

A field is one of three: it means something here (a field of the struct), it is known and harmless at a value that asks for nothing (``neutral``), or it
is refused. ``null`` is as good as leaving it out, at every level of what we know.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect
from starlette.requests import Request

from .faults import Fault, unsupported

_S = TypeVar("_S", bound=msgspec.Struct)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`")
_STEP: Final = re.compile(r"[^.\[\]]+")
_PATH: Final = re.compile(r" - at `\$\.?([^`]*)`\Z")


async def read_json(request: Request) -> dict[str, Any]:
    """Raises :class:`Fault`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Fault(415, f"a request is JSON (Content-Type: application/json), not {kind[:100] or 'of no type'}")
    return parse(await request.body())


def parse(text: bytes) -> dict[str, Any]:
    """Raises :class:`Fault`."""
    try:
        page = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Fault(400, f"the request is not JSON: {error}", code="bad_json") from None
    except RecursionError:
        raise Fault(400, "the request is nested too deep", code="bad_json") from None
    if not isinstance(page, dict):
        raise Fault(400, "the request is no JSON object", code="bad_json")
    return page


def understood(page: Mapping[str, Any], kind: type[_S], neutral: Mapping[str, tuple[object, ...]], elsewhere: Mapping[str, str]) -> _S:
    """``neutral``: values that ask for nothing, by field; ``elsewhere``: why a known field is refused, where there is more to say. Raises
    :class:`Fault`."""
    try:
        known = {field.encode_name for field in msgspec.structs.fields(kind)}
        for name, value in page.items():
            if name not in known and not any(_same(_bare(value), harmless) for harmless in (None, *neutral.get(name, ()))):
                raise _refusal(name, value, known, neutral, elsewhere)
        return msgspec.convert(_given({name: value for name, value in page.items() if name in known}, _shape(kind)), kind)
    except msgspec.ValidationError as error:
        raise _invalid(error, _shape(kind)) from None
    except RecursionError:
        raise Fault(400, "the request is nested too deep", code="bad_json") from None


def _same(value: object, harmless: object) -> bool:
    """0 is not false."""
    return value == harmless and type(value) is type(harmless)


def _bare(value: Any) -> Any:
    """Without nulls."""
    return {name: _bare(inner) for name, inner in value.items() if inner is not None} if isinstance(value, dict) else value


@cache
def _shape(kind: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(kind)


def _given(value: Any, shape: inspect.Type) -> Any:
    """Without the nulls of objects whose fields we know. What is the client's own, such as a schema, stays as it is."""
    if isinstance(shape, inspect.UnionType):
        for each in shape.types:
            value = _given(value, each)
    elif isinstance(shape, inspect.ListType) and isinstance(value, list):
        return [_given(each, shape.item_type) for each in value]
    elif isinstance(shape, inspect.StructType) and isinstance(value, dict) and (not shape.tag_field or value.get(shape.tag_field) == shape.tag):
        fields = {field.encode_name: field.type for field in shape.fields}
        return {name: _given(inner, fields[name]) if name in fields else inner for name, inner in value.items() if inner is not None}
    return value


def _invalid(error: msgspec.ValidationError, shape: inspect.Type) -> Fault:
    """Names the whole way to the field."""
    where = _PATH.search(str(error))
    at, message = where[1] if where else "", _PATH.sub("", str(error))
    if (unknown := _UNKNOWN.fullmatch(message)) is not None:
        return _unknown(unknown[1], at, _names_at(shape, at))
    if (missing := _MISSING.fullmatch(message)) is not None:
        at = _joined(at, missing[1])
    return Fault(400, f"{f'{at}: ' if at else ''}{message}", code="invalid_value", param=at or None)


def _names_at(shape: inspect.Type, path: str) -> set[str]:
    """Of the fields that are known there."""
    shapes = [shape]
    for step in ("", *_STEP.findall(path)):
        if step.isdecimal():
            shapes = [each.item_type for each in shapes if isinstance(each, inspect.ListType)]
        elif step:
            shapes = [field.type for each in shapes if isinstance(each, inspect.StructType) for field in each.fields if field.encode_name == step]
        shapes = [one for each in shapes for one in (each.types if isinstance(each, inspect.UnionType) else (each,))]
    return {field.encode_name for each in shapes if isinstance(each, inspect.StructType) for field in each.fields}


def _refusal(name: str, value: object, known: set[str], neutral: Mapping[str, tuple[object, ...]], elsewhere: Mapping[str, str]) -> Fault:
    if name not in neutral:
        return unsupported(name, elsewhere[name]) if name in elsewhere else _unknown(name, "", known)
    harmless = neutral[name]
    objects = [each for each in harmless if isinstance(each, dict)]
    inner = next((key for key, of in value.items() if not any(_same(of, each.get(key)) for each in objects)), "") if isinstance(value, dict) else ""
    only = " or ".join(msgspec.json.encode(each).decode() for each in harmless)
    return unsupported(_joined(name, inner) if objects and inner else name, elsewhere.get(name, f"only {only} is taken" if only else ""))


def _unknown(name: str, at: str, known: set[str]) -> Fault:
    near = difflib.get_close_matches(name, known, n=1)
    path = _joined(at, name[:100])
    return Fault(400, f"unknown field {path!r}{f'; did you mean {near[0]!r}?' if near else ''}", code="unknown_parameter", param=path)


def _joined(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name
