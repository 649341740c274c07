"""What a client lets the model call: which tools, and whether it must. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from potato_client.status import ToolUse

from . import formats
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


class Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class Chosen(msgspec.Struct, forbid_unknown_fields=True):
    """The one that must be called."""

    function: Named
    type: Literal["function"] = "function"


@dataclass(frozen=True, slots=True)
class Offer:
    #: what the template is told of
    pages: tuple[dict[str, Any], ...] = ()
    #: whether one of them must be called, and which, where that is said
    forced: bool = False
    name: str | None = None

    def options(self) -> dict[str, Any]:
        """What the answer is kept to."""
        return formats.call_of(self.pages, self.name) if self.forced else {}


def offered(tools: Sequence[Tool], choice: str | Chosen | None, *, parallel: bool, within: str = "") -> Offer:
    """``within``: where in a tool its fields stand, for those who are refused one. Raises :class:`Fault`."""
    names = [tool.function.name for tool in tools]
    for number, name in enumerate(names):
        if not _NAME.fullmatch(name) or names.count(name) > 1:
            why = "letters, digits, _ . and -, 64 at most" if not _NAME.fullmatch(name) else "once"
            raise Fault(400, f"a tool cannot be called {name[:70]!r}: {why}", code="invalid_value", param=f"tools[{number}]{within}.name")
    chosen = choice.function.name if isinstance(choice, Chosen) else None
    forced = chosen is not None or choice == "required"
    if forced and (not tools or chosen not in (None, *names)):
        what = f"{chosen!r} to call" if chosen is not None else "tool to call"
        path = f"tool_choice{within}.name" if chosen is not None else "tool_choice"
        raise Fault(400, f"there is no {what} among the tools", code="invalid_value", param=path)
    if tools and choice != "none" and not parallel and not forced:
        raise unsupported("parallel_tool_calls", "a model that may call tools calls as many as it likes; one that must calls one")
    strict = next((number for number, tool in enumerate(tools) if tool.function.strict), None)
    if strict is not None and not forced and choice != "none":
        raise unsupported(f"tools[{strict}]{within}.strict", 'only what must be called is held to its schema: "tool_choice": "required", or a function')
    return Offer() if choice == "none" else Offer(tuple(tool.page() for tool in tools), forced, chosen)


def check(use: ToolUse, *, forced: bool) -> None:
    """Raises :class:`Fault` where calls would come to nothing. ``forced``: they are written as we say."""
    if use == "none":
        raise unsupported("tools", "this model's chat template knows none")
    if use == "text" and not forced:
        raise unsupported("tools", "how this model writes a call is not known here, and it would be text to you")


def known(pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As calls of them are looked for."""
    return {page["function"]["name"]: _properties(page["function"].get("parameters")) for page in pages}


def _properties(schema: Any) -> Mapping[str, Any]:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}
