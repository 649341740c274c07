"""/v1/responses: responses are jobs, whether or not somebody waits for them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from potato_client import AsyncAnswer, ClientError
from potato_client.job_report import OVER
from potato_client.protocol import Finished, Piece, Progress
from potato_client.question import ChatMessage, ToolCall
from potatod import tool_calls

from . import asking, body, response_pages, responses, streams, tools
from .faults import Fault, Json, not_found, unsupported
from .query import LIST, listed, one_of, route, whole
from .questions import Questions, digest_of
from .requests import asked_before, idempotency_key, over_within, patience, until_gone
from .response_events import Events
from .served import Served
from .store import Store
from .upstream import Upstream, unknown

#: Of what was asked, in one page: as many as OpenAI's.
_LISTED: Final = 20
_MOST_LISTED: Final = 100


class Responding:
    def __init__(self, served: Served, upstream: Upstream, questions: Questions, store: Store) -> None:
        self._served = served
        self._upstream = upstream
        self._questions = questions
        self._store = store

    def routes(self) -> list[Route]:
        return [
            route("/v1/responses", self.create, "POST"),
            route("/v1/responses/{id}", self.retrieve, query=("stream", "starting_after", "include_obfuscation")),
            route("/v1/responses/{id}", self.delete, "DELETE"),
            route("/v1/responses/{id}/cancel", self.cancel, "POST"),
            route("/v1/responses/{id}/input_items", self.input_items, query=LIST),
        ]

    async def create(self, request: Request) -> Response:
        asked_for = responses.understood(await body.read_json(request))
        self._served.model(asked_for.model)
        before = await self._before(asked_for.previous_response_id)
        messages = responses.messages(asked_for, before)
        offer, options = asked_for.offer(), asked_for.options()
        if offer.pages:
            if options.get("json_schema") or options.get("json_object"):
                raise unsupported("text.format", "beside tools it is not: an answer that keeps to a form can call none")
            tools.check(await self._upstream.tool_use(asked_for.model), forced=offer.forced)
        question = asking.Question(
            asked_for.model, (messages,), False, options | offer.options(), 1, asked_for.stream, False, offer.pages, offer.forced
        )
        digest = digest_of(request.url.path, await request.body())
        key = idempotency_key(request)
        if key is not None and not asked_for.store:
            why = "what has an Idempotency-Key is kept for whoever asks again: leave store out, or the key"
            raise Fault(400, why, code="invalid_value", param="store")
        limit = patience(request) if asked_for.store and not (asked_for.stream or asked_for.background) else None
        asking_for = self._questions.ask(
            question, digest=digest, again=asked_before(request), idempotency=key, stays=asked_for.background or limit is not None,
            forgotten=not asked_for.store,
        )  # fmt: skip
        asked = await until_gone(request, asking_for, lambda: None)
        id, record = responses.PREFIX + asked.jobs[0], asked_for.record(int(time.time()))
        if asked_for.store:
            try:
                await self._store.put("responses", asked.jobs[0], record)
            except Fault:
                self._questions.undo(asked)
                raise
        answer, headers = asked.answers[0], {"Potato-Job": asked.jobs[0]}
        if asked_for.stream:
            events = _events(Events(id, record), answer, lambda: self._questions.leave(asked))
            return streams.response(events, [answer], headers)
        if asked_for.background:
            self._questions.leave(asked)
            return Json(response_pages.page(id, record, "queued", []), headers=headers)
        over = await until_gone(request, over_within(asked.answers, limit), lambda: self._questions.leave(asked))
        if limit is not None:
            headers |= limit.applied(later=not over)
        if not over:
            return Json(_page_so_far(id, record, answer), 202, headers | {"Location": f"/v1/responses/{id}"})
        return Json(_page_of(id, record, answer), headers=headers)

    async def retrieve(self, request: Request) -> Response:
        id = request.path_params["id"]
        job = responses.job_of(id)
        record = self._record(job)
        one_of(request, "include_obfuscation", "false")
        after = whole(request, "starting_after", -1, -1, 10**15)
        if one_of(request, "stream", "false", "true") == "true":
            answer = await self._attach(job)
            events = _events(Events(id, record, after), answer, lambda: self._upstream.done([answer]))
            return streams.response(events, [answer], {"Potato-Job": job})
        if after >= 0:
            raise Fault(400, "starting_after needs stream", code="invalid_value", param="starting_after")
        return Json(await self._page(id, job, record))

    async def cancel(self, request: Request) -> Response:
        id = request.path_params["id"]
        job = responses.job_of(id)
        record = self._record(job)
        try:
            await self._upstream.manage(job, "cancel")
        except ClientError as error:
            report = (await self._show(job)).report
            if report.state not in OVER:
                raise error
        return Json(await self._page(id, job, record))

    async def delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        job = responses.job_of(id)
        self._record(job)
        await self._questions.delete(job)
        self._store.delete("responses", job)
        return Json({"id": id, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        """What was asked, the newest first, as OpenAI's list it."""
        job = responses.job_of(request.path_params["id"])
        self._record(job)
        described = await self._show(job)
        items = [item for number, message in enumerate(described.messages) for item in response_pages.input_items(job, number, message)]
        return Json(listed(items[::-1], request, limit=_LISTED, most=_MOST_LISTED))

    # means

    def _record(self, job: str) -> responses.Page:
        record = self._store.get("responses", job)
        if record is None:
            raise not_found(f"there is no response {responses.PREFIX}{job}")
        return record

    async def _show(self, job: str) -> Any:
        try:
            return await self._upstream.show(job)
        except ClientError as error:
            raise self._gone(job, error) from None

    async def _attach(self, job: str) -> AsyncAnswer:
        try:
            return await self._upstream.attach(job)
        except ClientError as error:
            raise self._gone(job, error) from None

    def _gone(self, job: str, error: ClientError) -> Exception:
        """The job may have been deleted since."""
        if not unknown(error):
            return error
        self._store.delete("responses", job)
        return not_found(f"there is no response {responses.PREFIX}{job} any more: its job was deleted")

    async def _page(self, id: str, job: str, record: responses.Page) -> responses.Page:
        try:
            now = await self._upstream.so_far(job)
        except ClientError as error:
            raise self._gone(job, error) from None
        report, status = now.report, response_pages.status_of(now.report)
        why = {"code": report.code or "server_error", "message": report.why} if status == "failed" else None
        usage = response_pages.usage_of(report.prompt_tokens, report.completion_tokens) if report.state in OVER else None
        said = response_pages.output(id, now.text, now.reasoning, status if report.state in OVER else "in_progress", response_pages.tools_of(record))
        return response_pages.page(id, record, status, said, usage, why)

    async def _before(self, id: str | None) -> tuple[ChatMessage, ...]:
        """What an earlier response was asked, without its instructions, and what it said."""
        if id is None:
            return ()
        job = responses.job_of(id)
        record = self._record(job)
        described = await self._show(job)
        if described.report.state != "finished":
            raise Fault(400, f"{id} is {described.report.state}: go on from a response that is complete", param="previous_response_id")
        now = await self._upstream.so_far(job)
        asked = described.messages[1:] if record["instructions"] else described.messages
        offered = tools.known([json.loads(tool) for tool in described.tools])
        found = tool_calls.read(now.text, offered) if offered else tool_calls.Found((now.text,))
        calls = tuple(ToolCall(tool_calls.call_id(job, number), call.name, call.arguments) for number, call in enumerate(found.calls))
        return (*asked, ChatMessage("assistant", found.text, now.reasoning or None, calls))


async def _events(events: Events, answer: AsyncAnswer, left: Callable[[], None]) -> AsyncIterator[ServerSentEvent]:
    try:
        for page in events.begun():
            yield streams.event(page, page["type"])
        try:
            async for message in answer.messages():
                for page in _said(events, message):
                    yield streams.event(page, page["type"])
        except ClientError as error:
            for page in events.failed(Fault.of(error)):
                yield streams.event(page, page["type"])
    finally:
        left()


def _said(events: Events, message: object) -> Iterator[responses.Page]:
    if isinstance(message, Progress):
        yield from events.progress(message)
    elif isinstance(message, Piece):
        yield from events.said(message.reasoning, message.text)
    elif isinstance(message, Finished):
        yield from events.ended(message)


def _page_of(id: str, record: responses.Page, answer: AsyncAnswer) -> responses.Page:
    finished = answer.finished
    assert finished is not None, "it is over"
    status = response_pages.ended_as(finished.reason)
    usage = response_pages.usage_of(finished.prompt_tokens, finished.completion_tokens)
    said = response_pages.output(id, answer.text, answer.reasoning, status, response_pages.tools_of(record))
    return response_pages.page(id, record, status, said, usage)


def _page_so_far(id: str, record: responses.Page, answer: AsyncAnswer) -> responses.Page:
    said = response_pages.output(id, answer.text, answer.reasoning, "in_progress", response_pages.tools_of(record))
    status = "in_progress" if answer.token_ids or response_pages.began(answer.progress) else "queued"
    return response_pages.page(id, record, status, said)
