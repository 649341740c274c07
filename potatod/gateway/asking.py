"""From a request's body to the question that the front is asked: of /v1/chat/completions and /v1/completions. Pure.

Values are checked where they mean something: ranges by the protocol's Options, lengths by the front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal

import msgspec

from potato_client.protocol import MAX_FOLLOWED
from potato_client.question import ChatMessage, ToolCall

from . import body, formats
from .faults import Fault, unsupported
from .tools import Chosen, Tool, offered

#: What OpenAI's clients may send that asks for nothing.
_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "metadata": ({},),
    "reasoning_effort": (),
    "verbosity": (),
    "suffix": ("",),
    "best_of": (1,),
}
_ELSEWHERE: Final[Mapping[str, str]] = {
    "store": "every answer is a job and kept as [jobs] keep says; ask /v1/responses to find it by its id",
    "reasoning_effort": 'say {"thinking": false} or true',
    "best_of": "ask for n answers",
}


_Nothing = Annotated[list[Any], msgspec.Meta(max_length=0)]


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: str = ""


class CallMade(msgspec.Struct, forbid_unknown_fields=True):
    """Of an earlier turn."""

    id: str
    function: _Function
    type: Literal["function"] = "function"
    #: its place in a stream
    index: int | None = None


class Part(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    text: str = ""
    #: what an earlier answer of ours came with
    annotations: _Nothing = []
    logprobs: _Nothing = []


class Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    #: the assistant's thoughts of an earlier turn, by the name that others gave it
    reasoning_content: str | None = None
    tool_calls: list[CallMade] | None = None
    tool_call_id: str | None = None
    #: what an earlier answer of ours came with
    refusal: None = None
    annotations: _Nothing | None = None
    audio: None = None
    function_call: None = None

    def chat_message(self, at: str) -> ChatMessage:
        """Raises :class:`Fault`."""
        if self.content is None and not self.tool_calls:
            raise Fault(400, f"{at}.content is missing", code="invalid_value", param=f"{at}.content")
        role = "system" if self.role == "developer" else self.role
        calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments or "{}") for call in self.tool_calls or ())
        content = text_of(self.content or "", f"{at}.content")
        return ChatMessage(role, content, self.reasoning_content, calls, self.tool_call_id or "", self.name or "")


def text_of(content: str | list[Part], at: str) -> str:
    """Raises :class:`Fault` where a part is no text."""
    if isinstance(content, str):
        return content
    for number, part in enumerate(content):
        if part.type not in ("text", "input_text", "output_text", "reasoning_text"):
            raise unsupported(f"{at}[{number}].type", f"a part is text here, not {part.type[:50]!r}")
    return "".join(part.text for part in content)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Body(msgspec.Struct, kw_only=True):
    """What both kinds have in common. The names are OpenAI's, and those that vLLM and llama.cpp gave to the rest."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int = 1
    stream: bool = False
    stream_options: StreamOptions = msgspec.field(default_factory=StreamOptions)
    priority: Literal["interactive", "batch"] | None = None
    #: a label of the caller's own; nothing depends on it
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _OPTIONS}


_OPTIONS: Final = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "seed", "stop",
    "priority",
)  # fmt: skip


class ChatBody(_Body, kw_only=True):
    messages: list[Message]
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: list[Tool] = []
    tool_choice: Literal["none", "auto", "required"] | Chosen | None = None
    parallel_tool_calls: bool = True
    response_format: formats.ResponseFormat | None = None
    max_completion_tokens: int | None = None
    thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)


class CompletionBody(_Body, kw_only=True):
    prompt: str | list[str | int | list[int]] = ""
    echo: bool = False
    #: of so many likely tokens
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """So many answers to each prompt, one job an answer."""

    model: str
    #: conversations, or with ``raw`` texts to go on with
    prompts: tuple[tuple[ChatMessage, ...] | str, ...]
    raw: bool
    #: AnswerOptions
    options: dict[str, Any]
    count: int
    stream: bool
    include_usage: bool
    #: as the model's template is told of them
    tools: tuple[dict[str, Any], ...] = ()
    #: whether the answer is the call of one
    forced: bool = False
    #: the prompt comes first in the text
    echo: bool = False

    @property
    def before(self) -> list[str]:
        """What the text of each answer begins with."""
        return [prompt if self.echo and isinstance(prompt, str) else "" for prompt in self.prompts for _ in range(self.count)]


def chat(page: Mapping[str, Any]) -> Question:
    """Raises :class:`Fault`."""
    asked = body.understood(page, ChatBody, _NEUTRAL, _ELSEWHERE)
    if not asked.messages:
        raise Fault(400, "messages is empty", code="invalid_value", param="messages")
    messages = tuple(message.chat_message(f"messages[{number}]") for number, message in enumerate(asked.messages))
    options = asked.options() | {"thinking": _thinking(asked)}
    if asked.logprobs:
        options["top_logprobs"] = asked.top_logprobs or 0
    elif asked.top_logprobs:
        raise Fault(400, "top_logprobs needs logprobs", code="invalid_value", param="top_logprobs")
    if asked.max_completion_tokens is not None:
        if asked.max_tokens not in (None, asked.max_completion_tokens):
            raise _differs("max_tokens", "max_completion_tokens")
        options["max_tokens"] = asked.max_completion_tokens
    offer = offered(asked.tools, asked.tool_choice, parallel=asked.parallel_tool_calls, within=".function")
    format = formats.options_of(asked.response_format)
    if offer.pages and format:
        raise unsupported("response_format", "beside tools it is not: an answer that keeps to a form can call none")
    options |= format | offer.options()
    return replace(_question(asked, (messages,), options, raw=False), tools=offer.pages, forced=offer.forced)


def completion(page: Mapping[str, Any]) -> Question:
    """Raises :class:`Fault`."""
    asked = body.understood(page, CompletionBody, _NEUTRAL, _ELSEWHERE)
    prompts = (asked.prompt,) if isinstance(asked.prompt, str) else tuple(asked.prompt)
    texts = tuple(prompt for prompt in prompts if isinstance(prompt, str))
    if len(texts) != len(prompts):
        raise unsupported("prompt", "a prompt is a text here, not token ids")
    if not texts:
        raise Fault(400, "prompt is empty", code="invalid_value", param="prompt")
    if asked.echo and asked.logprobs is not None:
        raise unsupported("echo", "the tokens of a prompt have no logprobs here")
    return _question(asked, texts, asked.options() | {"top_logprobs": asked.logprobs}, raw=True, echo=asked.echo)


def _question(asked: _Body, prompts: tuple[Any, ...], options: dict[str, Any], *, raw: bool, echo: bool = False) -> Question:
    if not 1 <= asked.n * len(prompts) <= _MOST_ANSWERS or asked.n < 1:
        raise Fault(400, f"n must be a whole number from 1 to {_MOST_ANSWERS}, prompts times n", code="invalid_value", param="n")
    if asked.stream_options.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation", "chunks come as they are")
    if not asked.stream and asked.stream_options.include_usage:
        raise Fault(400, "stream_options needs stream", code="invalid_value", param="stream_options")
    return Question(asked.model, prompts, raw, options, asked.n, asked.stream, asked.stream_options.include_usage, echo=echo)


def _thinking(asked: ChatBody) -> bool | None:
    """``chat_template_kwargs`` as vLLM has it: of what a template may be told, we know one thing."""
    said = {} if asked.thinking is None else {"thinking": asked.thinking}
    for name, value in asked.chat_template_kwargs.items():
        path = f"chat_template_kwargs.{name[:100]}"
        if value is None:
            continue
        if name not in ("enable_thinking", "thinking"):
            raise unsupported(path, "enable_thinking is")
        if not isinstance(value, bool):
            raise Fault(400, f"{name} must be true or false", code="invalid_value", param=path)
        other = next((other for other, before in said.items() if before != value), None)
        if other is not None:
            raise _differs(path, other)
        said[path] = value
    return next(iter(said.values()), None)


def _differs(name: str, other: str) -> Fault:
    return Fault(400, f"{name} and {other} say different things", code="invalid_value", param=name)


#: Answers of one request.
_MOST_ANSWERS: Final = min(128, MAX_FOLLOWED)
