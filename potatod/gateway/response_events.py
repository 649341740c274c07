"""/v1/responses: the events of a response. Pure.

NOTE [ sequence numbers ]
A client that has lost its stream asks for what came after a sequence number, of a gateway that may be another by then. So numbers are no counter of
what was sent, but say where in the response something stands: an event of structure takes one, a delta as many as it has characters, and carries that
of its last. However the text is cut into deltas, the same number is the same place. For the same reason each response is said
to be queued and then to be in progress, once, however short either was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from potato_client.protocol import Finished, Progress
from potatod.tool_calls import Call, Found, Parser

from . import response_pages as pages
from .faults import Fault
from .responses import PREFIX, Page


class Events:
    """The events of one response, in order: NOTE [ sequence numbers ]. ``after``: what has come already; -1 where nothing has."""

    def __init__(self, id: str, record: Page, after: int = -1) -> None:
        self._id = id
        self._job = id.removeprefix(PREFIX)
        self._record = record
        self._tools = pages.tools_of(record)
        self._parser = Parser(self._tools)
        self._after = after
        self._next = 0
        #: items that are complete, and of these the messages and the calls
        self._index = self._messages = self._calls = 0
        self._in_progress = False
        #: all that has been said
        self._reasoning = self._text = ""
        #: the item that is being said
        self._item: Literal["", "reasoning", "message"] = ""
        self._item_text = ""

    def begun(self) -> Iterator[Page]:
        for name in ("response.created", "response.queued"):
            yield from self._say(name, response=self._page("queued", []))

    def progress(self, progress: Progress) -> Iterator[Page]:
        if pages.began(progress):
            yield from self._go()

    def said(self, reasoning: str, text: str) -> Iterator[Page]:
        yield from self._go()
        self._reasoning += reasoning
        self._text += text
        if reasoning:
            yield from self._add("reasoning", reasoning)
        yield from self._found(self._parser.feed(text) if self._tools else Found((text,) if text else ()))

    def ended(self, finished: Finished) -> Iterator[Page]:
        yield from self._go()
        status = pages.ended_as(finished.reason)
        if self._tools:
            yield from self._found(self._parser.finish())
        if not self._messages and not self._calls and self._item != "message":
            yield from self._enter("message")
        yield from self._close(status)
        usage = pages.usage_of(finished.prompt_tokens, finished.completion_tokens)
        name = "response.completed" if status == "completed" else "response.incomplete"  # there is none for what is cancelled
        yield from self._say(name, response=self._page(status, self._output(status), usage))

    def failed(self, fault: Fault) -> Iterator[Page]:
        yield from self._go()
        error = {"code": fault.code or "server_error", "message": fault.message}
        yield from self._say("response.failed", response=self._page("failed", self._output("in_progress"), error=error))

    def _go(self) -> Iterator[Page]:
        if not self._in_progress:
            self._in_progress = True
            yield from self._say("response.in_progress", response=self._page("in_progress", []))

    def _page(self, status: str, output: list[Page], usage: Page | None = None, error: Page | None = None) -> Page:
        return pages.page(self._id, self._record, status, output, usage, error)

    def _output(self, status: str) -> list[Page]:
        return pages.output(self._id, self._text, self._reasoning, status, self._tools)

    def _found(self, found: Found) -> Iterator[Page]:
        for item in found.items:
            if isinstance(item, str):
                yield from self._add("message", item)
            else:
                yield from self._call(item)

    def _call(self, call: Call) -> Iterator[Page]:
        yield from self._close("completed")
        item = pages.call_item(self._job, self._calls, call)
        place = {"item_id": item["id"], "output_index": self._index}
        yield from self._say("response.output_item.added", output_index=self._index, item=item | {"arguments": "", "status": "in_progress"})
        yield from self._delta("response.function_call_arguments.delta", call.arguments, place)
        yield from self._say("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        yield from self._say("response.output_item.done", output_index=self._index, item=item)
        self._calls += 1
        self._index += 1

    def _add(self, kind: Literal["reasoning", "message"], text: str) -> Iterator[Page]:
        yield from self._enter(kind)
        self._item_text += text
        more: Page = {} if kind == "reasoning" else {"logprobs": []}
        name = "response.reasoning_text.delta" if kind == "reasoning" else "response.output_text.delta"
        yield from self._delta(name, text, self._place() | more)

    def _enter(self, kind: Literal["reasoning", "message"]) -> Iterator[Page]:
        if self._item == kind:
            return
        yield from self._close("completed")
        self._item = kind
        yield from self._say("response.output_item.added", output_index=self._index, item=self._made("in_progress") | {"content": []})
        yield from self._say("response.content_part.added", **self._place(), part=self._part(""))

    def _close(self, status: str) -> Iterator[Page]:
        if not self._item:
            return
        more: Page = {} if self._item == "reasoning" else {"logprobs": []}
        name = "response.reasoning_text.done" if self._item == "reasoning" else "response.output_text.done"
        yield from self._say(name, **self._place(), text=self._item_text, **more)
        yield from self._say("response.content_part.done", **self._place(), part=self._part(self._item_text))
        yield from self._say("response.output_item.done", output_index=self._index, item=self._made(status))
        self._messages += self._item == "message"
        self._index += 1
        self._item, self._item_text = "", ""

    def _made(self, status: str) -> Page:
        if self._item == "reasoning":
            return pages.reasoning_item(self._job, self._item_text)
        return pages.message_item(self._job, self._messages, self._item_text, status)

    def _part(self, text: str) -> Page:
        return {"type": "reasoning_text", "text": text} if self._item == "reasoning" else pages.text_part(text)

    def _place(self) -> Page:
        id = f"rs_{self._job}" if self._item == "reasoning" else pages.message_id(self._job, self._messages)
        return {"item_id": id, "output_index": self._index, "content_index": 0}

    def _say(self, kind: str, /, **fields: Any) -> Iterator[Page]:
        number, self._next = self._next, self._next + 1
        if number > self._after:
            yield {"type": kind, "sequence_number": number} | fields

    def _delta(self, name: str, text: str, fields: Page) -> Iterator[Page]:
        first, self._next = self._next, self._next + len(text)
        new = text[max(0, self._after + 1 - first) :]
        if new:
            yield {"type": name, "sequence_number": self._next - 1} | fields | {"delta": new}
