"""/v1/chat/completions and /v1/completions."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import asking, body, pages, streams, tools
from .faults import Json
from .query import route
from .questions import Asked, Questions, digest_of
from .requests import asked_before, idempotency_key, over_within, patience, until_gone
from .served import Served
from .upstream import Upstream


class Answering:
    def __init__(self, served: Served, upstream: Upstream, questions: Questions) -> None:
        self._served = served
        self._questions = questions
        self._upstream = upstream

    def routes(self) -> list[Route]:
        return [
            route("/v1/chat/completions", self.chat, "POST"),
            route("/v1/completions", self.completions, "POST"),
        ]

    async def chat(self, request: Request) -> Response:
        question = asking.chat(await body.read_json(request))
        return await self._answer(request, question, pages.Chat(tools.known(question.tools)))

    async def completions(self, request: Request) -> Response:
        question = asking.completion(await body.read_json(request))
        return await self._answer(request, question, pages.Completion(question.before))

    async def _answer(self, request: Request, question: asking.Question, shape: pages.Format) -> Response:
        model = self._served.model(question.model)
        if question.tools:
            tools.check(await self._upstream.tool_use(question.model), forced=question.forced)
        limit = None if question.stream else patience(request)
        asked = await self._ask(request, question, stays=limit is not None)
        head = pages.Head(asked.jobs[0], int(time.time()), model.name, model.fingerprint)
        headers = {"Potato-Job": ", ".join(asked.jobs)}
        prompts = len(question.prompts)
        if question.stream:
            events = streams.chunks(
                shape, head, asked.answers, prompts, include_usage=question.include_usage, left=lambda: self._questions.leave(asked)
            )
            return streams.response(events, asked.answers, headers)
        over = await until_gone(request, over_within(asked.answers, limit), lambda: self._questions.leave(asked))
        if limit is not None:
            headers |= limit.applied(later=not over)
        if not over:
            return _later(asked, headers)
        return Json(shape.whole(head, asked.answers, prompts), headers=headers)

    async def _ask(self, request: Request, question: asking.Question, *, stays: bool) -> Asked:
        digest = digest_of(request.url.path, await request.body())
        asking_for = self._questions.ask(
            question, digest=digest, again=asked_before(request), idempotency=idempotency_key(request), stays=stays
        )
        return await until_gone(request, asking_for, lambda: None)


def _later(asked: Asked, headers: dict[str, str]) -> Response:
    where = [f"/jobs/{job}" for job in asked.jobs]
    return Json({"jobs": asked.jobs, "locations": where}, 202, headers | {"Location": where[0]})
