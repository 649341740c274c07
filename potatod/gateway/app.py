"""The addresses, and what each does with a request. Everything that decides lies in the modules around it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from potato_client import AsyncAnswer, ClientError

from . import asking, body, pages, streams
from .faults import Fault, Json, not_found
from .guard import Guard
from .upstream import Asked, Upstream, digest_of

_T = TypeVar("_T")
#: A program that asks anew says so: what it asked before is the same.
_RETRY_HEADER = "x-stainless-retry-count"
_MAX_KEY_CHARS = 255


@dataclass(frozen=True, slots=True)
class Served:
    """What does not change while the gateway lives."""

    model: str
    #: the model's checksum
    checksum: str
    #: seconds since 1970
    since: int

    @property
    def fingerprint(self) -> str:
        return f"potato-{self.checksum[:12]}"


class Gateway:
    def __init__(self, served: Served, upstream: Upstream, logger: logging.Logger) -> None:
        self._served = served
        self._upstream = upstream
        self._logger = logger

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.live),
            Route("/health/live", self.live),
            Route("/health/ready", self.ready),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
        ]

    # what the daemon is

    async def live(self, request: Request) -> Response:
        return Json({"status": "live"})

    async def ready(self, request: Request) -> Response:
        """503 while nothing can be computed."""
        try:
            state = (await self._upstream.status()).engine.state
        except ClientError:
            state = "starting"
        return Json({"status": "ready" if state == "up" else state}, 200 if state == "up" else 503)

    async def models(self, request: Request) -> Response:
        return Json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self._known(request.path_params["model"])
        return Json(self._model())

    def _model(self) -> pages.Page:
        return {"id": self._served.model, "object": "model", "created": self._served.since, "owned_by": "potato"}

    async def embeddings(self, request: Request) -> Response:
        raise Fault(501, "embeddings are not supported: the models that are served here write text", code="unsupported")

    # answers

    async def chat(self, request: Request) -> Response:
        question = asking.chat(await body.read_json(request))
        return await self._answer(request, question, pages.Chat())

    async def completions(self, request: Request) -> Response:
        question = asking.completion(await body.read_json(request))
        before = [str(prompt) if question.echo else "" for prompt in question.prompts for _ in range(question.count)]
        return await self._answer(request, question, pages.Completion(before))

    async def _answer(self, request: Request, question: asking.Question, shape: pages.Format) -> Response:
        self._known(question.model)
        digest = digest_of(request.url.path, await request.body())
        again = request.headers.get(_RETRY_HEADER, "0") not in ("", "0")
        asking_for = self._upstream.ask(question, digest=digest, again=again, idempotency=idempotency_key(request))
        asked = await until_gone(request, asking_for, lambda: None)
        job = asked.answers[0].accepted.job if asked.answers[0].accepted is not None else ""
        head = pages.Head(job, int(time.time()), self._served.model, self._served.fingerprint)
        headers = {"Potato-Job": ", ".join(answer.accepted.job for answer in asked.answers if answer.accepted is not None)}
        if question.stream:
            events = streams.chunks(
                shape, head, asked.answers, len(question.prompts), include_usage=question.include_usage, left=lambda: self._upstream.leave(asked),
            )  # fmt: skip
            return streams.response(events, asked.answers, headers)
        await until_gone(request, _all_of(asked.answers), lambda: self._upstream.leave(asked))
        page = shape.whole(head, asked.answers, len(question.prompts))
        return Json(page, headers=headers)

    def _known(self, model: str) -> None:
        if model != self._served.model:
            raise Fault(
                404, f"there is no model {model[:200]!r}: {self._served.model!r} is served", code="model_not_found", param="model",
            )  # fmt: skip


async def _all_of(answers: Sequence[AsyncAnswer]) -> None:
    async for _ in streams.merged(answers):
        pass


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


def idempotency_key(request: Request) -> str | None:
    """Raises :class:`Fault`."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= _MAX_KEY_CHARS:
        raise Fault(400, f"Idempotency-Key has 1 to {_MAX_KEY_CHARS} characters", code="invalid_value")
    return key


def make_app(gateway: Gateway, *, token: str, hosts: Sequence[str], origins: Sequence[str], logger: logging.Logger) -> Starlette:
    async def fault(request: Request, error: Exception) -> Response:
        assert isinstance(error, Fault)
        return error.response()

    async def client_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ClientError)
        return Fault.of(error).response()

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return not_found(f"there is nothing at {request.url.path[:200]}").response()
        return Fault(error.status_code, str(error.detail), headers=error.headers).response()

    async def internal(request: Request, error: Exception) -> Response:  # the request's top: it ends, and the gateway does not
        logger.error("a request failed", exc_info=error)
        return Fault(500, f"this request failed: {type(error).__name__}", code="internal").response()

    middleware = [Middleware(Guard, token=token, hosts=hosts)]
    if origins:
        cors = Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"])
        middleware.insert(0, cors)
    handlers: dict[Any, Any] = {Fault: fault, ClientError: client_error, HTTPException: http_error, Exception: internal}
    return Starlette(routes=gateway.routes(), middleware=middleware, exception_handlers=handlers)


__all__ = ["Asked", "Gateway", "Served", "make_app"]
