"""What the headers of a request say, and waiting for an answer only as long as somebody waits for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from starlette.requests import Request

from potato_client import AsyncAnswer

from . import streams
from .faults import Fault

_T = TypeVar("_T")
_MAX_KEY_CHARS: Final = 255
_WAIT: Final = re.compile(r"wait\s*=\s*\"?([0-9]{1,6})\"?")


async def until_gone(request: Request, work: Awaitable[_T], left: Callable[[], None]) -> _T:
    """What ``work`` returns, unless the client leaves before: then it is cancelled, and nobody reads what is answered. ``left`` is called at the end of
    either."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Fault(499, "the client has left")
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
        left()


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def asked_before(request: Request) -> bool:
    """Whether the client says that it tries again: the libraries of OpenAI do."""
    return request.headers.get("x-stainless-retry-count", "0") not in ("", "0")


def idempotency_key(request: Request) -> str | None:
    """Raises :class:`Fault`."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= _MAX_KEY_CHARS:
        raise Fault(400, f"Idempotency-Key has 1 to {_MAX_KEY_CHARS} characters", code="invalid_value")
    return key


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client waits before it would rather have a 202 and the address of its job."""

    seconds: float
    #: in its words
    wait: str
    respond_async: bool

    def applied(self, *, later: bool) -> dict[str, str]:
        """The header that says what was heeded; ``later``: by an answer that is not there yet."""
        preferences = (self.wait, "respond-async" if self.respond_async and later else "")
        said = ", ".join(filter(None, preferences))
        return {"Preference-Applied": said} if said else {}


def patience(request: Request) -> Patience | None:
    """``Prefer`` (RFC 7240), which leaves out what it does not know; None: until it is over."""
    preferred = [each.strip().lower() for each in ",".join(request.headers.getlist("prefer")).split(",")]
    waits = [found[1] for each in preferred if (found := _WAIT.fullmatch(each)) is not None]
    if not waits and "respond-async" not in preferred:
        return None
    return Patience(float(waits[0]) if waits else 0.0, f"wait={waits[0]}" if waits else "", "respond-async" in preferred)


async def over_within(answers: Sequence[AsyncAnswer], limit: Patience | None) -> bool:
    """Whether all of them are. Raises :class:`potato_client.ClientError`."""
    try:
        async with asyncio.timeout(None if limit is None else limit.seconds):
            async for _ in streams.merged(answers):
                pass
    except TimeoutError:
        return False
    return True
