"""Addresses, and what may stand behind their question mark. Law: as with bodies, what is not understood is refused by its name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .faults import Fault

#: Those of a list's pages.
LIST: Final = ("limit", "after", "order")
_MOST_LISTED: Final = 10_000


def route(path: str, answer: Callable[[Request], Awaitable[Response]], method: str = "GET", query: Sequence[str] = ()) -> Route:
    """``query``: the parameters that are known there."""

    async def checked(request: Request) -> Response:
        for name in request.query_params:
            if name not in query:
                raise _unknown(name, query)
        return await answer(request)

    return Route(path, checked, methods=[method])


def whole(request: Request, name: str, default: int, least: int, most: int) -> int:
    """Raises :class:`Fault` where it is no whole number within these."""
    text = request.query_params.get(name, str(default))
    if not re.fullmatch("-?[0-9]{1,19}", text) or not least <= int(text) <= most:
        raise Fault(400, f"{name} is a whole number from {least} to {most}", code="invalid_value", param=name)
    return int(text)


def one_of(request: Request, name: str, *values: str) -> str:
    """The first where none is given. Raises :class:`Fault` where it is none of them."""
    given = request.query_params.get(name, values[0])
    if given not in values:
        raise Fault(400, f"{name} is {' or '.join(values)}", code="invalid_value", param=name)
    return given


def listed(found: list[dict[str, Any]], request: Request, *, limit: int = 100, most: int = _MOST_LISTED) -> dict[str, Any]:
    """A page of a list that is ordered ``desc``: ``limit`` of them, ``after`` one of its members, as OpenAI's cut it. Raises :class:`Fault`."""
    limit = whole(request, "limit", limit, 1, most)
    if one_of(request, "order", "desc", "asc") == "asc":
        found = found[::-1]
    ids = [page["id"] for page in found]
    after = request.query_params.get("after")
    if after is not None and after not in ids:
        raise Fault(400, f"after: there is no {after[:100]!r} in this list", code="invalid_value", param="after")
    first = ids.index(after) + 1 if after is not None else 0
    data = found[first : first + limit]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": first + len(data) < len(found)} | ends


def _unknown(name: str, query: Sequence[str]) -> Fault:
    near = difflib.get_close_matches(name, query, n=1)
    more = f"; did you mean {near[0]!r}?" if near else ""
    return Fault(400, f"unknown query parameter {name[:100]!r}{more}", code="unknown_parameter", param=name[:100])
