"""/v1/responses: what is asked, the page of a response, and its events. Pure.

A response is a job: ``resp_`` and the job's id. What the job does not know of it – instructions apart, metadata, what it goes on from – is a small
record beside it.

NOTE [ sequence numbers ]
A client that has lost its stream asks for what came after a sequence number, of a gateway that may be another by then. So numbers are no counter of
what was sent, but say where in the response something stands: an event of structure takes one, a delta as many as it has characters, and carries that
of its last. However the text is cut into deltas, the same number is the same place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from potato_client.job_report import JobReport
from potato_client.protocol import ChatMessage, Finished

from . import body, formats
from .asking import Part, text_of
from .faults import Fault

Page = dict[str, Any]
Event = tuple[int, Page]

PREFIX: Final = "resp_"
_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "tools": ([],),
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True, False),
    "truncation": ("disabled",),
    "include": ([],),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
    "reasoning": ({},),
    "stream_options": ({}, {"include_obfuscation": False}),
    "conversation": (),
    "prompt": (),
    "max_tool_calls": (),
    "context_management": (),
    "moderation": (),
}
_ELSEWHERE: Final = {"reasoning": 'say {"thinking": false} or true', "conversation": "go on from previous_response_id"}
_MOST_METADATA: Final = 16
#: Of what was asked, what its page repeats.
_RECORDED: Final = (
    "model", "instructions", "max_output_tokens", "temperature", "top_p", "background", "store", "previous_response_id", "metadata", "user",
)  # fmt: skip


class Item(msgspec.Struct, forbid_unknown_fields=True):
    """Of the input: a message, or what an earlier response put out."""

    type: Literal["message", "reasoning"] = "message"
    role: str = ""
    content: str | list[Part] = ""
    id: str | None = None
    status: str | None = None
    summary: list[Part] = []
    phase: str | None = None


class _Text(msgspec.Struct, forbid_unknown_fields=True):
    format: formats.TextFormat | None = None


class Body(msgspec.Struct, kw_only=True):
    model: str
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    thinking: bool | None = None
    priority: Literal["interactive", "batch"] | None = None
    stream: bool = False
    background: bool = False
    store: bool = True
    previous_response_id: str | None = None
    text: _Text = msgspec.field(default_factory=_Text)
    metadata: dict[str, str] = {}
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def options(self) -> dict[str, Any]:
        named = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "thinking", "priority")
        return {"max_tokens": self.max_output_tokens} | {name: getattr(self, name) for name in named} | formats.options_of(self.text.format)

    def record(self, created: int) -> Page:
        """What the page of the response says besides its job."""
        format = {"type": "text"} if self.text.format is None else msgspec.to_builtins(self.text.format)
        return {"created_at": created, "text": {"format": format}} | {name: getattr(self, name) for name in _RECORDED}


def understood(page: Mapping[str, Any]) -> Body:
    """Raises :class:`Fault`."""
    asked = body.understood(page, Body, _NEUTRAL, _ELSEWHERE)
    if asked.background and not asked.store:
        raise Fault(400, "what runs in the background is kept: leave store out, or background", code="invalid_value", param="store")
    if len(asked.metadata) > _MOST_METADATA:
        raise Fault(400, f"metadata has at most {_MOST_METADATA} entries", code="invalid_value", param="metadata")
    return asked


def messages(asked: Body, before: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The conversation: instructions, what the earlier response asked and said (``before``), what is new. Raises :class:`Fault`."""
    first = (ChatMessage("system", asked.instructions),) if asked.instructions else ()
    new = (ChatMessage("user", asked.input),) if isinstance(asked.input, str) else tuple(_messages_of(asked.input))
    if not new:
        raise Fault(400, "input is empty", code="invalid_value", param="input")
    return (*first, *before, *new)


def _messages_of(items: Sequence[Item]) -> Iterator[ChatMessage]:
    thoughts: str | None = None
    for number, item in enumerate(items):
        at = f"input[{number}]"
        if item.type == "reasoning":
            thoughts = text_of(item.content, f"{at}.content")
            continue
        if not item.role:
            raise Fault(400, f"{at} has no role", code="invalid_value", param=f"{at}.role")
        role = "system" if item.role == "developer" else item.role
        yield ChatMessage(role, text_of(item.content, f"{at}.content"), thoughts if role == "assistant" else None)
        thoughts = None


def job_of(id: str) -> str:
    """Raises :class:`Fault` where it is no response's id."""
    job = id.removeprefix(PREFIX)
    if job == id or not job.isalnum():
        raise Fault(404, f"there is no response {id[:100]!r}", code="not_found")
    return job


# the page


def page(id: str, record: Page, status: str, output: list[Page], usage: Page | None = None, error: Page | None = None) -> Page:
    return {
        "id": id,
        "object": "response",
        "created_at": record["created_at"],
        "status": status,
        "background": record["background"],
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": record["instructions"],
        "max_output_tokens": record["max_output_tokens"],
        "metadata": record["metadata"],
        "model": record["model"],
        "output": output,
        "parallel_tool_calls": False,
        "previous_response_id": record["previous_response_id"],
        "reasoning": {"effort": None, "summary": None},
        "store": record["store"],
        "temperature": record["temperature"],
        "text": record["text"],
        "tool_choice": "auto",
        "tools": [],
        "top_p": record["top_p"],
        "truncation": "disabled",
        "usage": usage,
        "user": record["user"],
    }


def output(id: str, text: str, reasoning: str, status: str) -> list[Page]:
    """Items of what has been said so far."""
    items = [_reasoning(id, reasoning)] if reasoning else []
    return [*items, _message(id, text, status)] if text or status != "in_progress" else items


def usage_of(prompt_tokens: int, completion_tokens: int) -> Page:
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt_tokens + completion_tokens,
    }


def status_of(report: JobReport) -> str:
    if report.state == "finished":
        return ended_as(report.reason)
    return {"failed": "failed", "cancelled": "cancelled", "queued": "queued", "paused": "queued"}.get(report.state, "in_progress")


def ended_as(reason: str) -> str:
    return {"stop": "completed", "length": "incomplete", "cancelled": "cancelled"}[reason]


def _message(id: str, text: str, status: str) -> Page:
    content = [_text_part(text)]
    return {"id": f"msg_{id.removeprefix(PREFIX)}", "type": "message", "role": "assistant", "status": _item_status(status), "content": content}


def _reasoning(id: str, text: str) -> Page:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": f"rs_{id.removeprefix(PREFIX)}", "type": "reasoning", "summary": [], "content": content}


def _text_part(text: str) -> Page:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item_status(status: str) -> str:
    return status if status in ("completed", "in_progress") else "incomplete"


# events


class Events:
    """The events of one response, in order: NOTE [ sequence numbers ]. ``after``: what has come already; -1 where nothing has."""

    def __init__(self, id: str, record: Page, after: int = -1) -> None:
        self._id = id
        self._record = record
        self._after = after
        self._next = 0
        self._index = 0
        self._reasoning = self._text = ""
        self._item: Literal["", "reasoning", "message"] = ""

    def begun(self) -> Iterator[Page]:
        for name in ("response.created", "response.in_progress"):
            yield from self._say(name, response=page(self._id, self._record, "in_progress", []))

    def said(self, reasoning: str, text: str) -> Iterator[Page]:
        if reasoning:
            yield from self._enter("reasoning")
            self._reasoning += reasoning
            yield from self._delta("response.reasoning_text.delta", reasoning)
        if text:
            yield from self._enter("message")
            self._text += text
            yield from self._delta("response.output_text.delta", text)

    def ended(self, finished: Finished) -> Iterator[Page]:
        status = ended_as(finished.reason)
        yield from self._enter("message")
        yield from self._close(status)
        usage = usage_of(finished.prompt_tokens, finished.completion_tokens)
        said = output(self._id, self._text, self._reasoning, status)
        yield from self._say(f"response.{status}", response=page(self._id, self._record, status, said, usage))

    def failed(self, fault: Fault) -> Iterator[Page]:
        error = {"code": fault.code or "server_error", "message": fault.message}
        said = output(self._id, self._text, self._reasoning, "in_progress")
        yield from self._say("response.failed", response=page(self._id, self._record, "failed", said, error=error))

    def _enter(self, kind: Literal["reasoning", "message"]) -> Iterator[Page]:
        if self._item == kind:
            return
        yield from self._close("completed")
        self._item = kind
        item = _reasoning(self._id, "") if kind == "reasoning" else _message(self._id, "", "in_progress")
        yield from self._say("response.output_item.added", output_index=self._index, item=item | {"content": []})
        yield from self._say("response.content_part.added", **self._place(), part=self._part(""))

    def _close(self, status: str) -> Iterator[Page]:
        if not self._item:
            return
        text = self._reasoning if self._item == "reasoning" else self._text
        done = "response.reasoning_text.done" if self._item == "reasoning" else "response.output_text.done"
        more: Page = {} if self._item == "reasoning" else {"logprobs": []}
        yield from self._say(done, **self._place(), text=text, **more)
        yield from self._say("response.content_part.done", **self._place(), part=self._part(text))
        item = _reasoning(self._id, text) if self._item == "reasoning" else _message(self._id, text, status)
        yield from self._say("response.output_item.done", output_index=self._index, item=item)
        self._index += 1
        self._item = ""

    def _part(self, text: str) -> Page:
        return {"type": "reasoning_text", "text": text} if self._item == "reasoning" else _text_part(text)

    def _place(self) -> Page:
        prefix = "rs_" if self._item == "reasoning" else "msg_"
        return {"item_id": prefix + self._id.removeprefix(PREFIX), "output_index": self._index, "content_index": 0}

    def _say(self, name: str, **fields: Any) -> Iterator[Page]:
        number, self._next = self._next, self._next + 1
        if number > self._after:
            yield {"type": name, "sequence_number": number} | fields

    def _delta(self, name: str, text: str) -> Iterator[Page]:
        first, self._next = self._next, self._next + len(text)
        new = text[max(0, self._after + 1 - first) :]
        if new:
            more: Page = {"logprobs": []} if self._item == "message" else {}
            yield {"type": name, "sequence_number": self._next - 1} | self._place() | {"delta": new} | more

