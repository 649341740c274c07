"""What a model's chat template knows of tools: found out by showing it one, and a call of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from potato_client.question import ChatMessage, ToolCall
from potato_client.status import ToolUse
from potatod.tool_calls import Call, read

from .refusal import Refusal
from .template import ChatTemplate

_NAME, _ARGUMENTS = "get_weather", '{"city": "Paris"}'
_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": _NAME, "description": "The weather somewhere.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}  # fmt: skip
_ASKED: Final = ChatMessage("user", "Hello")
#: Nine characters: some templates want just so many.
_CALLED: Final = ChatMessage("assistant", "", tool_calls=(ToolCall("abcdefghi", _NAME, _ARGUMENTS),))


def of(template: ChatTemplate | None, answer: Callable[[str, str], str]) -> ToolUse:
    """``answer(prompt, text)``: what of a rendered text a client would see, as an answer to that prompt.

    A call in an earlier turn is written as the model is to write its own. So it is known whether we find it there.
    """
    if template is None:
        return "none"
    try:
        prompt = template.render([_ASKED], tools=[_TOOL])
    except Refusal:
        return "none"
    try:
        if prompt == template.render([_ASKED]):
            return "none"
    except Refusal:  # one that is for tools alone
        pass
    try:
        whole = template.render([_ASKED, _CALLED], tools=[_TOOL], add_generation_prompt=False)
    except Refusal:
        return "text"
    said = whole[_common(prompt, whole) :]
    calls = [read(answer(before, said), {_NAME: {}}).calls for before in (prompt, "")]  # earlier turns may be without the thoughts
    return "calls" if (Call(_NAME, _ARGUMENTS),) in calls else "text"


def _common(prompt: str, whole: str) -> int:
    """Where they part; at a mark that both begin, before it."""
    at = next((at for at, (one, other) in enumerate(zip(prompt, whole, strict=False)) if one != other), min(len(prompt), len(whole)))
    begun = max(whole.rfind("<", 0, at), whole.rfind("[", 0, at))
    return begun if begun > max(whole.rfind(">", 0, at), whole.rfind("]", 0, at)) else at
