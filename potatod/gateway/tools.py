"""What a client lets the model call: which tools, and whether it must. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from potato_client.status import ToolUse

from .faults import Fault, unsupported

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Function(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    #: a JSON Schema
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    function: Function
    type: Literal["function"] = "function"

    def page(self) -> dict[str, Any]:
        """As templates read it."""
        given = {"name": self.function.name, "description": self.function.description, "parameters": self.function.parameters}
        return {"type": "function", "function": {name: value for name, value in given.items() if value is not None}}


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class Chosen(msgspec.Struct, forbid_unknown_fields=True):
    """The one that must be called."""

    function: _Named
    type: Literal["function"] = "function"


def offered(tools: Sequence[Tool], choice: str | Chosen | None, *, parallel: bool) -> tuple[dict[str, Any], ...]:
    """What the template is told of. Raises :class:`Fault`."""
    names = [tool.function.name for tool in tools]
    for name in names:
        if not _NAME.fullmatch(name) or names.count(name) > 1:
            why = "letters, digits, _ . and -, 64 at most" if not _NAME.fullmatch(name) else "once"
            raise Fault(400, f"a tool cannot be called {name[:70]!r}: {why}", code="invalid_value", param="tools")
    if choice not in (None, "none", "auto"):
        raise unsupported("tool_choice", "the model decides by itself whether it calls a tool: auto or none")
    if tools and not parallel:
        raise unsupported("parallel_tool_calls", "a model calls as many tools as it likes")
    if any(tool.function.strict for tool in tools):
        raise unsupported("tools.function.strict", "what a model calls with is not held to a schema")
    return () if choice == "none" else tuple(tool.page() for tool in tools)


def check(use: ToolUse) -> None:
    """Raises :class:`Fault` where calls would come to nothing."""
    if use == "none":
        raise unsupported("tools", "this model's chat template knows none")
    if use == "text":
        raise unsupported("tools", "how this model writes a call is not known here, and it would be text to you")


def names_of(pages: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(page["function"]["name"] for page in pages)
