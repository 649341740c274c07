"""From what a caller says to the message that is sent: shared by both clients and the command line. Pure."""

from __future__ import annotations

import difflib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, Literal, TypedDict

from .errors import BadRequest
from .job_report import JOB_STATES, JobState
from .protocol import MAX_FOLLOWED, MAX_LISTED, Generate, List
from .question import ChatMessage, Options, ToolCall

Prompt = str | Sequence[ChatMessage | Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class AnswerOptions(TypedDict, total=False):
    """The keyword arguments of ``generate``; what is left out or None is left to the daemon.

    Ranges and meanings: :class:`potato_client.question.Options`.
    """

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    thinking: bool | None
    choice: int | None
    priority: Literal["interactive", "batch"] | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: Mapping[int, float] | None
    top_logprobs: int | None
    json_schema: str | Mapping[str, Any] | None
    json_object: bool | None
    #: which of the daemon's models, by name; else the first
    model: str | None


_OPTIONS: Final = (*(field.name for field in fields(Options)), "model")
_MESSAGE_FIELDS: Final = tuple(field.name for field in fields(ChatMessage))


def generate_message(
    request: int,
    prompt: Prompt,
    *,
    system: str | None = None,
    raw: bool = False,
    options: Mapping[str, Any] | None = None,
    key: str | None = None,
    follow: bool = True,
    tools: Tools = (),
) -> Generate:
    """A question through the model's chat template, a conversation through it, or (``raw``) a text to go on with.

    ``tools``: what the model may call, as its template takes them. ``key``: None draws one, so that it is the same job however often it has to be
    asked. Raises :class:`BadRequest`, a ValueError.
    """
    given: dict[str, Any] = {"key": secrets.token_hex(16) if key is None else key, "follow": follow}
    given["tools"] = tuple(json.dumps(tool, ensure_ascii=False) for tool in tools)
    chosen = dict(options or {})
    given["model"] = model = chosen.pop("model", None) or ""
    try:
        if not isinstance(model, str):
            raise BadRequest(f"model must be the name of one, not {type(model).__name__}")
        if raw:
            return Generate(request, prompt=_raw_prompt(prompt, system), options=options_of(chosen), **given)
        return Generate(request, messages=_conversation(prompt, system), options=options_of(chosen), **given)
    except BadRequest:
        raise
    except ValueError as error:
        raise BadRequest(str(error)) from None


def options_of(given: Mapping[str, Any]) -> Options:
    """Raises ValueError; an unknown name is answered with the nearest known one."""
    for name in given:
        _known(name, _OPTIONS, "option")
    values = {name: value for name, value in given.items() if value is not None}
    if "stop" in values:
        stop = values["stop"]
        values["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    if "logit_bias" in values:
        values["logit_bias"] = _pairs(values["logit_bias"])
    if isinstance(values.get("json_schema"), Mapping):
        values["json_schema"] = _json(values["json_schema"])
    return Options(**values)


def _json(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"json_schema cannot be written as JSON: {error}") from None


def _pairs(biases: Any) -> tuple[tuple[int, float], ...]:
    """In the order of the ids, so that the same biases are the same request. JSON writes ids as strings."""
    if not isinstance(biases, Mapping):
        raise ValueError("logit_bias must be a mapping from token ids to numbers")
    ids = [int(id) if isinstance(id, str) and id.isascii() and id.isdecimal() and len(id) < 20 else id for id in biases]
    if not all(type(id) is int for id in ids):
        raise ValueError("logit_bias must be a mapping from token ids, which are whole numbers")
    return tuple(sorted(zip(ids, biases.values(), strict=True), key=lambda pair: pair[0]))


def several(options: AnswerOptions, count: int) -> list[AnswerOptions]:
    """Of ``count`` answers to one prompt: the same seed, drawn where none is given, and a choice each. Raises :class:`BadRequest`."""
    if not (type(count) is int and 1 <= count <= MAX_FOLLOWED):
        raise BadRequest(f"answers must be a whole number from 1 to {MAX_FOLLOWED}")
    seed = options.get("seed")
    seed = secrets.randbits(63) if seed is None else seed
    first = options.get("choice") or 0
    return [{**options, "seed": seed, "choice": first + number} for number in range(count)]


def list_message(request: int, states: Sequence[JobState], limit: int, before: int = 0) -> List:
    """Raises :class:`BadRequest`."""
    for state in states:
        _known(state, JOB_STATES, "state of a job")
    try:
        return List(request, tuple(states), before, limit)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def page_of(limit: int, found: int) -> int:
    """How many more to ask for at once."""
    return min(MAX_LISTED, limit - found)


def _raw_prompt(prompt: Prompt, system: str | None) -> str:
    if not isinstance(prompt, str):
        raise BadRequest("raw goes on with one text; a conversation needs the model's chat template")
    if system is not None:
        raise BadRequest("raw goes on with a text as it is; a system message needs the model's chat template")
    return prompt


def _conversation(prompt: Prompt, system: str | None) -> tuple[ChatMessage, ...]:
    before = () if system is None else (ChatMessage("system", system),)
    if isinstance(prompt, str):
        return (*before, ChatMessage("user", prompt))
    return (*before, *map(_chat_message, prompt))


def _chat_message(message: ChatMessage | Mapping[str, Any]) -> ChatMessage:
    if isinstance(message, ChatMessage):
        return message
    if not isinstance(message, Mapping):
        raise BadRequest(f"a message is a ChatMessage or a mapping with role and content, not {type(message).__name__}")
    for name in message:
        _known(name, _MESSAGE_FIELDS, "field of a message")
    try:
        calls = tuple(call if isinstance(call, ToolCall) else ToolCall(**call) for call in message.get("tool_calls", ()))
        return ChatMessage(**{**message, "tool_calls": calls})
    except TypeError:
        raise BadRequest("a message has a role and a content, a call of a tool an id, a name and arguments") from None


def _known(name: str, known: Sequence[str], what: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        raise BadRequest(f"unknown {what} {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"))
