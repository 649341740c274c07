"""A chat becomes one text: the model's own chat template, rendered as transformers' ``apply_chat_template`` does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

from potato_client.protocol import ChatMessage
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
    def load(cls, folder: Path) -> ChatTemplate | None:
        """chat_template.jinja, else the one in tokenizer_config.json; None where the model has none."""
        config = tokenizer_config(folder)
        try:
            source: str | None = read_text(folder / "chat_template.jinja", _MAX_BYTES)
        except NoSuchModel:
            source = _chosen(config.get("chat_template"))
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
        self._environment.budget = Budget(sum(len(text) for message in page for text in message.values()))
        try:
            pieces = self._template.generate(
                **{**self._special_tokens, **switches}, messages=page, tools=tools, documents=None,
                add_generation_prompt=add_generation_prompt,
            )  # fmt: skip
            return "".join(self._environment.budget.passed(pieces))
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise Refusal("bad_request", f"the model's chat template refuses this chat: {_sentence(error)}") from None
        except (RecursionError, MemoryError) as error:
            raise Refusal("bad_request", f"the model's chat template fails: {type(error).__name__}") from None


def _message(message: ChatMessage) -> dict[str, str]:
    """As templates expect it. Earlier thoughts have two names: gpt-oss reads the first, everyone else the last."""
    page = {"role": message.role, "content": message.content}
    if message.reasoning is None:
        return page
    return {"thinking": message.reasoning, **page, "reasoning_content": message.reasoning}


def _chosen(template: Any) -> str | None:
    """A template, or the one called "default" in a list of named ones."""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _sentence(error: BaseException) -> str:
    where = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return f"{str(error).strip() or type(error).__name__}{where}"[:500]
