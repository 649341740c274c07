"""The sockets that HTTP comes through, and how long a peer may take to say what it wants.

Requests are parsed by h11 within uvicorn. What uvicorn leaves open: a peer that connects and says nothing, or one character a minute, holds its place
for ever. Here the head of a request comes within ``HEAD_S`` or the connection ends.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from potatod.errors import ConfigError

from .faults import Fault
from .guard import LET_IN, MAX_HEAD_BYTES, head_too_large

#: From the connection, or the first character after an answer, to the end of the headers.
HEAD_S: Final = 10.0
#: A connection between two requests.
_KEEP_ALIVE_S: Final = 75
#: Connections at the same time; the next one is told 503.
MAX_CONNECTIONS: Final = 900
#: So many, and strangers make room.
_CROWDED: Final = MAX_CONNECTIONS * 3 // 4
#: In a request's scope: ends its connection at once, whatever lies in it.
ABORT: Final = "potato.abort"
#: After Stop, for what is under way.
_GRACE_S: Final = 2


def bind(listen: str, handed: int | None = None) -> socket.socket:
    """``HOST:PORT`` of this machine, listening; or ``handed``, a descriptor that listens already, and for the next gateway too. Raises
    :class:`ConfigError`."""
    if handed is not None:
        return socket.socket(fileno=handed)
    host, _, port = listen.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen at [gateway] listen {listen}: {error.strerror}") from None
    return made


def url(listening: socket.socket) -> str:
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Protocol(H11Protocol):
    """One connection."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > _CROWDED:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()
        if self.scope is not None:
            self.scope.setdefault(ABORT, self.transport.abort)  # type: ignore[typeddict-item]  # ours

    def _make_room(self) -> None:
        """Somebody who has not shown the token goes: strangers keep nobody out who has."""
        for other in self.connections:
            if isinstance(other, Protocol) and other is not self and not (other.let_in or other.transport.is_closing()):
                other.transport.abort()
                return

    @property
    def let_in(self) -> bool:
        return self.scope is not None and bool(self.scope.get(LET_IN))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unwatch()  # uvicorn's keep-alive has begun

    def send_400_response(self, msg: str) -> None:
        """Of what is no request, in the shape of all other refusals."""
        bad = Fault(400, "this is no HTTP request", code="bad_http", headers={"Connection": "close"})
        response = (head_too_large() if len(self.conn.trailing_data[0]) > MAX_HEAD_BYTES else bad).response()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = h11.Response(status_code=response.status_code, headers=response.raw_headers)
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            self._unwatch()
        elif self._due is None:
            self._due = self.loop.call_later(HEAD_S, self.transport.abort)

    def _unwatch(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None


class Server(uvicorn.Server):
    """Signals are the stage's."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # as above
        return nullcontext()


def server(app: Any) -> Server:
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # strangers' noise; what fails within is logged by the app
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * MAX_CONNECTIONS)), hard))
    return Server(
        uvicorn.Config(
            app, http=Protocol, ws="none", loop="asyncio", lifespan="off", log_config=None, access_log=False, server_header=False,
            limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=_GRACE_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES, proxy_headers=False,
        )
    )  # fmt: skip
