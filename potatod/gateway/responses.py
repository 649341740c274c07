"""/v1/responses: what is asked. Pure. What is answered: response_pages.py, response_events.py.

A response is a job: ``resp_`` and the job's id. What the job does not know of it – instructions apart, metadata, what it goes on from – is a small
record beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import msgspec

from potato_client.question import ChatMessage, ToolCall

from . import body, formats
from .asking import Part, text_of
from .faults import Fault
from .tools import Chosen, Function, Named, Offer, Tool, offered

Page = dict[str, Any]

PREFIX: Final = "resp_"
_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
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
    """Of the input: a message, or what an earlier response put out, or what a tool answered."""

    type: Literal["message", "reasoning", "function_call", "function_call_output"] = "message"
    role: str = ""
    content: str | list[Part] | None = None
    #: of calls and their answers
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[Part] = ""
    #: what an earlier response of ours came with
    id: str | None = None
    status: str | None = None
    summary: list[Part] = []
    phase: str | None = None


class FlatTool(Function, forbid_unknown_fields=True):
    """As chats have it, without the level between."""

    type: Literal["function"] = "function"


class FlatChosen(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    type: Literal["function"] = "function"


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
    tools: list[FlatTool] = []
    tool_choice: Literal["none", "auto", "required"] | FlatChosen | None = None
    parallel_tool_calls: bool = True
    metadata: dict[str, str] = {}
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def options(self) -> dict[str, Any]:
        named = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "thinking", "priority")
        return {"max_tokens": self.max_output_tokens} | {name: getattr(self, name) for name in named} | formats.options_of(self.text.format)

    def offer(self) -> Offer:
        """Raises :class:`Fault`."""
        choice = Chosen(Named(self.tool_choice.name)) if isinstance(self.tool_choice, FlatChosen) else self.tool_choice
        plain = [Tool(Function(tool.name, tool.description, tool.parameters, tool.strict)) for tool in self.tools]
        return offered(plain, choice, parallel=self.parallel_tool_calls)

    def record(self, created: int) -> Page:
        """What the page of the response says besides its job."""
        format = {"type": "text"} if self.text.format is None else msgspec.to_builtins(self.text.format)
        tools = {"tools": msgspec.to_builtins(self.tools), "tool_choice": msgspec.to_builtins(self.tool_choice or "auto")}
        parallel = {"parallel_tool_calls": self.parallel_tool_calls and not self.offer().forced}
        return {"created_at": created, "text": {"format": format}} | tools | parallel | {name: getattr(self, name) for name in _RECORDED}


def understood(page: Mapping[str, Any]) -> Body:
    """Raises :class:`Fault`."""
    asked = body.understood(page, Body, _NEUTRAL, _ELSEWHERE)
    if asked.background and not asked.store:
        raise Fault(400, "what runs in the background is kept: leave store out, or background", code="invalid_value", param="store")
    check_metadata(asked.metadata)
    return asked


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raises :class:`Fault`."""
    if len(metadata) > _MOST_METADATA or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
        why = f"metadata has at most {_MOST_METADATA} entries, of 64 and 512 characters"
        raise Fault(400, why, code="invalid_value", param="metadata")


def messages(asked: Body, before: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The conversation: instructions, what the earlier response asked and said (``before``), what is new. Raises :class:`Fault`."""
    first = (ChatMessage("system", asked.instructions),) if asked.instructions else ()
    new = (ChatMessage("user", asked.input),) if isinstance(asked.input, str) else tuple(_messages_of(asked.input))
    if not new:
        raise Fault(400, "input is empty", code="invalid_value", param="input")
    return (*first, *before, *new)


def _messages_of(items: Sequence[Item]) -> Iterator[ChatMessage]:
    """Thoughts and calls belong to the assistant's message that they stand beside; where there is none they are one."""
    thoughts: str | None = None
    said: ChatMessage | None = None
    for number, item in enumerate(items):
        at = f"input[{number}]"
        if item.type == "function_call":
            said = said or ChatMessage("assistant", "", thoughts)
            said = replace(said, tool_calls=(*said.tool_calls, ToolCall(item.call_id, item.name, item.arguments or "{}")))
            thoughts = None
            continue
        if said is not None:
            yield said
            said = None
        if item.type == "reasoning":
            thoughts = text_of(item.content or "", f"{at}.content")
        elif item.type == "function_call_output":
            yield ChatMessage("tool", text_of(item.output, f"{at}.output"), tool_call_id=item.call_id)
        elif not item.role or item.content is None:
            raise Fault(400, f"{at} has no role or no content", code="invalid_value", param=at)
        elif item.role == "assistant":
            said, thoughts = ChatMessage("assistant", text_of(item.content, f"{at}.content"), thoughts), None
        else:
            yield ChatMessage("system" if item.role == "developer" else item.role, text_of(item.content, f"{at}.content"))
    if said is not None:
        yield said


def job_of(id: str) -> str:
    """Raises :class:`Fault` where it is no response's id."""
    job = id.removeprefix(PREFIX)
    if job == id or not job.isalnum():
        raise Fault(404, f"there is no response {id[:100]!r}", code="not_found")
    return job
