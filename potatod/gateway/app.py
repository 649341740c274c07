"""The application: every address, who may ask there, and what becomes of what goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import h11
from sse_starlette.sse import SendTimeoutError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from potato_client import ClientError

from .faults import Fault, not_found
from .guard import Guard
from .listener import ABORT
from .metrics import Metrics


def make_app(
    routes: Sequence[Route], *, token: str, hosts: Sequence[str], origins: Sequence[str], metrics: Metrics, logger: logging.Logger
) -> Starlette:  # fmt: skip
    middleware = [Middleware(Top, metrics=metrics, logger=logger), Middleware(Guard, token=token, hosts=hosts)]
    if origins:
        cors = Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"])
        middleware.insert(1, cors)
    handlers: dict[Any, Any] = {Fault: _fault, ClientError: _client_error, HTTPException: _http_error, ClientDisconnect: _left}
    return Starlette(routes=list(routes), middleware=middleware, exception_handlers=handlers)


class Door:
    """The application as it is now, also for connections that are open; ``make`` makes it with what holds now."""

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._make = make
        self._app = make()

    def anew(self) -> None:
        """For the next requests; those under way go on as they began."""
        self._app = self._make()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Top:
    """A request's top: it is counted by its route and status, and whatever is wrong with it ends it and not the gateway."""

    def __init__(self, app: ASGIApp, metrics: Metrics, logger: logging.Logger) -> None:
        self._app = app
        self._metrics = metrics
        self._logger = logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = streaming = False

        async def counted(message: Message) -> None:
            nonlocal begun, streaming
            if message["type"] == "http.response.start":
                begun = True
                self._metrics.answered(_route(scope), message["status"])
                streaming = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
                self._metrics.streaming.inc(streaming)
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except (SendTimeoutError, h11.LocalProtocolError):  # nobody reads, and what lies there would wait for ever; or the connection is closing
            scope.get(ABORT, lambda: None)()
        except Exception as error:  # a request's top: it ends, and the gateway lives
            self._logger.exception("a request failed")
            if not begun:
                fault = Fault(500, f"this request failed: {type(error).__name__}", code="internal")
                await fault.response()(scope, receive, counted)
        finally:
            self._metrics.streaming.dec(streaming)


def _route(scope: Scope) -> str:
    """As it was declared; "" for what is at no route, or was not let in."""
    route = scope.get("route")
    return route.path if isinstance(route, Route) else ""


async def _fault(request: Request, error: Fault) -> Response:
    return error.response()


async def _client_error(request: Request, error: ClientError) -> Response:
    return Fault.of(error).response()


async def _left(request: Request, error: ClientDisconnect) -> Response:
    return Fault(499, "the client has left").response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        return not_found(f"there is nothing at {request.url.path[:200]}").response()
    return Fault(error.status_code, str(error.detail), headers=error.headers).response()
