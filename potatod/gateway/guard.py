"""Who may ask, and how much: decided before a body is read.

    head      of a size
    Host      an address, "localhost", or a name of [gateway] hosts: another is a page that had its name point here (DNS rebinding)
    token     Authorization: Bearer …, for everything but /health
    body      of a size and within a time
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from potato_client.codec import MAX_FRAME_BYTES

from .faults import Fault

#: In a request's scope: whether its client may ask.
LET_IN: Final = "potato.let_in"
#: A question is no larger than a frame of the front.
MAX_BODY_BYTES: Final = MAX_FRAME_BYTES
#: Of /v1/files.
MAX_FILE_BYTES: Final = 64 << 20
#: Of address and headers.
MAX_HEAD_BYTES: Final = 32 << 10
#: From piece to piece of a body.
PIECE_S: Final = 20.0
_OPEN: Final = frozenset({"/health", "/health/live", "/health/ready"})
_PORT: Final = re.compile(r":[0-9]*\Z")


class Guard:
    def __init__(self, app: ASGIApp, *, token: str, hosts: Collection[str]) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        most_bytes = MAX_FILE_BYTES if scope["path"].startswith("/v1/files") else MAX_BODY_BYTES
        request_id = secrets.token_hex(8)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            if _head_bytes(scope) > MAX_HEAD_BYTES:
                raise head_too_large()
            self._let_in(scope["path"], headers)
            scope[LET_IN] = True
            if scope["method"] == "HEAD" and scope["path"] not in _OPEN:
                raise Fault(405, "ask with GET: most of what is here is made for each request", headers={"Allow": "GET"})
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > most_bytes:
                raise _too_large(most_bytes)
        except Fault as fault:
            if fault.status == 413 and not _asks_first(scope, headers):
                await _drain(receive)
            await fault.response()(scope, receive, named)
            return
        await self._app(scope, _bounded(receive, most_bytes), named)

    def _let_in(self, path: str, headers: Headers) -> None:
        """Raises :class:`Fault`. Whoever is not let in has no connection to ask again through."""
        host = headers.get("host", "")
        if not self._known(host):
            why = f"this is not {host[:200]!r}: add the name to [gateway] hosts if it is"
            raise Fault(421, why, code="unknown_host", headers={"Connection": "close"})
        if path in _OPEN:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token):
            why = "the token is not the daemon's" if token else "a token is needed"
            how = "send Authorization: Bearer and what `potatod token` prints"
            raise Fault(401, f"{why}: {how}", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer", "Connection": "close"})

    def _known(self, host: str) -> bool:
        name = _PORT.sub("", host.strip()).lower()
        if name == "localhost" or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True


def _bounded(receive: Receive, most_bytes: int) -> Receive:
    """The same body, if it is no larger and goes on coming. Raises :class:`Fault`."""
    read, complete = 0, False
    began = time.monotonic()

    async def within() -> Message:
        nonlocal read, complete
        if complete:
            return await receive()  # waits for the client to leave
        try:
            message = await asyncio.wait_for(receive(), PIECE_S)
        except TimeoutError:
            raise Fault(408, f"nothing more of the request came for {PIECE_S:.0f} s", headers={"Connection": "close"}) from None
        read += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if read > most_bytes:
            raise _too_large(most_bytes)
        if not complete and time.monotonic() - began > PIECE_S + read / _SLOWEST_BYTES_PER_S:
            raise Fault(408, "the request comes too slowly", headers={"Connection": "close"})
        return message

    return within


_SLOWEST_BYTES_PER_S: Final = 10_000
#: Nothing more of a body that is not wanted: its client has said all that it has, or is too slow to be told why.
_PAUSE_S: Final = 3.0


def _head_bytes(scope: Scope) -> int:
    """h11 bounds a head only while it is not complete, and one that comes at once is."""
    return len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def head_too_large() -> Fault:
    return Fault(431, f"address and headers have at most {MAX_HEAD_BYTES >> 10} KiB", code="too_large", headers={"Connection": "close"})


def _asks_first(scope: Scope, headers: Headers) -> bool:
    """Whether the client waits to be told that it may send the body; for a while, as curl does for a second."""
    return headers.get("expect", "").lower() == "100-continue" and scope["http_version"] != "1.0"


async def _drain(receive: Receive) -> None:
    """What is sent and not wanted, for a while: a client that is cut off while it sends never reads why."""
    try:
        async with asyncio.timeout(PIECE_S):
            more = True
            while more:
                async with asyncio.timeout(_PAUSE_S):  # not wait_for, which in Python 3.11 may swallow the end of the one around it
                    more = (await receive()).get("more_body", False)
    except TimeoutError:
        pass


def _too_large(most_bytes: int) -> Fault:
    return Fault(413, f"a request has at most {most_bytes >> 20} MiB", code="too_large", headers={"Connection": "close"})
