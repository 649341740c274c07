"""From the bytes of a request to what is understood of it. Law: what is not understood is refused by its name, never ignored.

A field is one of three: it means something here (a field of the struct), it is known and harmless at a value that asks for nothing (``neutral``), or it
is refused. ``null`` is as good as leaving it out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request

from .faults import Fault, unsupported

_S = TypeVar("_S", bound=msgspec.Struct)
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
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    fields = {}
    for name, value in page.items():
        if value is None:
            continue
        if name in known:
            fields[name] = value
        elif not any(value == harmless and type(value) is type(harmless) for harmless in neutral.get(name, ())):
            raise _refusal(name, known, neutral, elsewhere)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        where = _PATH.search(str(error))
        message = _PATH.sub("", str(error))
        field = where[1] if where else None
        raise Fault(400, f"{f'{field}: ' if field else ''}{message}", code="invalid_value", param=field) from None
    except RecursionError:
        raise Fault(400, "the request is nested too deep", code="bad_json") from None


def _refusal(name: str, known: set[str], neutral: Mapping[str, tuple[object, ...]], elsewhere: Mapping[str, str]) -> Fault:
    if name in elsewhere:
        return unsupported(name, elsewhere[name])
    if name in neutral:
        only = " or ".join(msgspec.json.encode(value).decode() for value in neutral[name])
        return unsupported(name, f"only {only} is taken" if only else "")
    near = difflib.get_close_matches(name, known, n=1)
    return Fault(
        400, f"unknown field {name[:100]!r}{f'; did you mean {near[0]!r}?' if near else ''}", code="unknown_parameter", param=name[:100],
    )  # fmt: skip
