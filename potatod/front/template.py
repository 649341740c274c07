"""A chat becomes one text: the model's own chat template, rendered as transformers' ``apply_chat_template`` does it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

from potato_client.question import ChatMessage, ToolCall
from potatod.errors import ModelDataError, NoSuchModel
from potatod.json_file import read_text

from .budget import Budget
from .refusal import Refusal
from .sandbox import Environment
from .tokenizer import special_tokens, tokenizer_config

#: Real ones have up to 20 kB.
_MAX_BYTES: Final = 1 << 20


class ChatTemplate:
    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises :class:`ModelDataError` where the source is no template."""
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._environment = Environment()
        try:
            self._template = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, ValueError, OverflowError) as error:
            raise ModelDataError(f"the model's chat template cannot be read: {_sentence(error)}") from None

    @classmethod
    def load(cls, folder: Path, name: str = "default") -> ChatTemplate | None:
        """chat_template.jinja, else the one in tokenizer_config.json, where that has several the one of that name; None where the model has none."""
        config = tokenizer_config(folder)
        try:
            source: str | None = read_text(folder / "chat_template.jinja", _MAX_BYTES)
        except NoSuchModel:
            source = _chosen(config.get("chat_template"), name)
        return None if source is None else cls(source, special_tokens(config))

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        thinking: bool | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        """The chat's text, special tokens included: encode it without adding any.

        ``thinking`` reaches the template as ``enable_thinking`` and ``thinking``, the two names in use; None leaves it to
        the template. Raises :class:`Refusal` where the template refuses the chat, fails, or does more than it may.
        """
        page = [_message(message) for message in messages]
        switches = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
        self._environment.budget = Budget(sum(map(_chars, (*page, *(tools or ())))))
        try:
            pieces = self._template.generate(
                **{**self._special_tokens, **switches}, messages=page, tools=tools, documents=None,
                add_generation_prompt=add_generation_prompt,
            )  # fmt: skip
            text = "".join(self._environment.budget.passed(pieces))
            text.encode()  # JSON may spell half a character, in a tool or its arguments, and so may a template: no tokenizer takes it
            return text
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise Refusal("bad_request", f"the model's chat template refuses this chat: {_sentence(error)}") from None
        except (RecursionError, MemoryError) as error:
            raise Refusal("bad_request", f"the model's chat template fails: {type(error).__name__}") from None


def _message(message: ChatMessage) -> dict[str, Any]:
    """As templates expect it. Earlier thoughts have two names: gpt-oss reads the first, everyone else the last."""
    page: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        page["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id:
        page["tool_call_id"] = message.tool_call_id
    if message.name:
        page["name"] = message.name
    if message.reasoning is None:
        return page
    return {"thinking": message.reasoning, **page, "reasoning_content": message.reasoning}


def _call(call: ToolCall) -> dict[str, Any]:
    """Templates write arguments as they like, so they get what the JSON says. Raises :class:`Refusal`."""
    arguments = json_object(call.arguments, f"the arguments of {call.name}")
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def json_object(text: str, what: str) -> dict[str, Any]:
    """Raises :class:`Refusal`."""
    try:
        page = json.loads(text)
        if not isinstance(page, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise Refusal("bad_request", f"{what[:200]} must be a JSON object") from None
    return page


def _chars(value: Any) -> int:
    """Of all texts in it."""
    if isinstance(value, dict):
        return sum(_chars(key) + _chars(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(map(_chars, value))
    return len(value) if isinstance(value, str) else 1


def _chosen(template: Any, name: str) -> str | None:
    """A template, or the one of that name in a list of named ones."""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get(name)
    return template if isinstance(template, str) else None


def _sentence(error: BaseException) -> str:
    where = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return f"{str(error).strip() or type(error).__name__}{where}"[:500]
