"""/jobs: the daemon's own, for plain programs and for `curl`.

    POST   /jobs                 as /v1/chat/completions, or with a prompt as /v1/completions: 201, and goes on until it is over
    GET    /jobs?state=&limit=   the last ones; with before=NUMBER the last before the one of that number
    GET    /jobs/ID              what was asked, how far it is, what has been said
    GET    /jobs/ID/events       what is said, as it comes; Last-Event-ID goes on after what has come
    POST   /jobs/ID/ACTION       cancel, pause, resume, retry
    DELETE /jobs/ID              one that is over
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any, Final, cast, get_args

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from potato_client import AsyncAnswer, ClientError
from potato_client.job_report import JOB_STATES, JobState
from potato_client.protocol import MAX_LISTED, Finished, JobAction, Piece

from . import asking, body, streams, tools
from .faults import Fault, Json, not_found, unsupported
from .query import route, whole
from .questions import Questions
from .requests import idempotency_key
from .served import Served
from .upstream import Upstream

_ACTIONS: Final = tuple(action for action in get_args(JobAction) if action != "delete")
_EVENT_ID: Final = re.compile(r"([0-9]{1,12})\.([0-9]{1,12})")


class JobPages:
    def __init__(self, served: Served, upstream: Upstream, questions: Questions) -> None:
        self._served = served
        self._questions = questions
        self._upstream = upstream

    def routes(self) -> list[Route]:
        return [
            route("/jobs", self.submit, "POST"),
            route("/jobs", self.list, query=("state", "limit", "before")),
            route("/jobs/{job}", self.show),
            route("/jobs/{job}", self.delete, "DELETE"),
            route("/jobs/{job}/events", self.events),
            route("/jobs/{job}/{action}", self.manage, "POST"),
        ]

    async def submit(self, request: Request) -> Response:
        page = await body.read_json(request)
        question = asking.completion(page) if "prompt" in page else asking.chat(page)
        self._served.model(question.model)
        if question.stream or question.echo:
            name = "stream" if question.stream else "echo"
            raise unsupported(name, "a job is not read when it is asked for: /jobs/ID has its text, /jobs/ID/events what comes")
        if question.tools:
            tools.check(await self._upstream.tool_use(question.model), forced=question.forced)
        asked = await self._questions.ask(question, digest=b"", again=False, idempotency=idempotency_key(request), stays=True)
        self._questions.leave(asked)
        return Json({"jobs": asked.jobs}, 201, {"Location": f"/jobs/{asked.jobs[0]}"})

    async def list(self, request: Request) -> Response:
        states = request.query_params.getlist("state")
        if not set(states) <= set(JOB_STATES):
            raise Fault(400, f"a job's state is one of {', '.join(JOB_STATES)}", code="invalid_value", param="state")
        limit = whole(request, "limit", 100, 1, MAX_LISTED)
        reports = await self._upstream.jobs(cast(list[JobState], states), limit + 1, whole(request, "before", 0, 0, 1 << 62))
        return Json({"jobs": [asdict(report) for report in reports[:limit]], "more": len(reports) > limit})

    async def show(self, request: Request) -> Response:
        described = await self._upstream.show(request.path_params["job"])
        now = await self._upstream.so_far(described.report.job)
        asked: dict[str, Any] = {"prompt": described.prompt, "messages": [asdict(message) for message in described.messages]}
        asked["tools"] = [json.loads(tool) for tool in described.tools]
        more = {"seed": described.seed, "options": asdict(described.options), "text": now.text, "reasoning": now.reasoning}
        return Json(asdict(now.report) | asked | more)

    async def events(self, request: Request) -> Response:
        has = _EVENT_ID.fullmatch(request.headers.get("last-event-id", "0.0"))
        if has is None:
            raise Fault(400, "Last-Event-ID is none that was sent from here", code="invalid_value")
        answer = await self._upstream.attach(request.path_params["job"])
        return streams.response(self._events(answer, int(has[1]), int(has[2])), [answer], {})

    async def manage(self, request: Request) -> Response:
        action = request.path_params["action"]
        if action not in _ACTIONS:
            raise not_found(f"nothing is called {action[:50]!r} that can be done with a job: {', '.join(_ACTIONS)}")
        return Json(asdict(await self._upstream.manage(request.path_params["job"], action)))

    async def delete(self, request: Request) -> Response:
        return Json(asdict(await self._upstream.manage(request.path_params["job"], "delete")))

    async def _events(self, answer: AsyncAnswer, text_chars: int, reasoning_chars: int) -> AsyncIterator[ServerSentEvent]:
        """Without so many characters, which the client has."""
        try:
            text = reasoning = 0
            async for message in answer.messages():
                if isinstance(message, Piece):
                    new = {
                        "text": message.text[max(0, text_chars - text) :],
                        "reasoning": message.reasoning[max(0, reasoning_chars - reasoning) :],
                    }
                    text, reasoning = text + len(message.text), reasoning + len(message.reasoning)
                    if any(new.values()):
                        event = streams.event(new, "piece")
                        event.id = f"{text}.{reasoning}"
                        yield event
                elif isinstance(message, Finished):
                    yield streams.event(asdict(message), "finished")
        except ClientError as error:
            yield streams.event(Fault.of(error).page(), "error")
        finally:
            self._upstream.done([answer])
