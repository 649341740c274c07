"""What an answer must keep to: ``response_format`` of chats, ``text.format`` of responses, and the call of a tool that must be called. Pure.

The front keeps answers to a JSON Schema; here it is made from what clients say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .faults import Fault

Options = dict[str, Any]


class Plain(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    pass


class AnyObject(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    pass


class Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    schema: dict[str, Any] | None = None
    #: for whoever reads the request: the model is not told of it
    description: str | None = None
    #: it is kept to in any case
    strict: bool | None = None


class Schema(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    json_schema: Named


class FlatSchema(Named, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """As /v1/responses has it."""


ResponseFormat = Plain | AnyObject | Schema
TextFormat = Plain | AnyObject | FlatSchema


def options_of(format: ResponseFormat | TextFormat | None) -> Options:
    """Raises :class:`Fault`."""
    if isinstance(format, AnyObject):
        return {"json_object": True}
    named = format.json_schema if isinstance(format, Schema) else format
    if not isinstance(named, Named):
        return {}
    if named.schema is None:
        path = "response_format.json_schema.schema" if isinstance(format, Schema) else "text.format.schema"
        raise Fault(400, "a json_schema without a schema: say which", code="invalid_value", param=path)
    return {"json_schema": _text(named.schema)}


def call_of(tools: Sequence[dict[str, Any]], name: str | None) -> Options:
    """The answer is a call of one of these tools, or of the one of that ``name``, and nothing else. Raises :class:`Fault`."""
    try:
        return _call_of(tools, name)
    except RecursionError:
        raise Fault(400, "the parameters of a tool are nested too deep", code="invalid_value", param="tools") from None


def _call_of(tools: Sequence[dict[str, Any]], name: str | None) -> Options:
    definitions: dict[str, Any] = {}
    calls = []
    for tool in tools:
        function = tool["function"]
        if name not in (None, function["name"]):
            continue
        parameters = _own_definitions(function.get("parameters") or {"type": "object"}, function["name"], definitions)
        call = {"name": {"const": function["name"]}, "arguments": parameters}
        calls.append({"type": "object", "properties": call, "required": ["name", "arguments"], "additionalProperties": False})
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {"json_schema": _text(schema | ({"$defs": definitions} if definitions else {}))}


def _own_definitions(schema: dict[str, Any], name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A schema within another: what it refers to moves to the top, under names of its own."""
    for key in ("$defs", "definitions"):
        inners = schema.get(key) or {}
        if not isinstance(inners, dict):
            raise Fault(400, f"{key} of the tool {name!r} is no object", code="invalid_value", param="tools")
        for inner, page in inners.items():
            definitions[f"{name}.{inner}"] = _renamed(page, name)
    moved = _renamed({key: value for key, value in schema.items() if key not in ("$defs", "definitions", "$schema")}, name)
    assert isinstance(moved, dict), "of a dict comes a dict"
    return moved


def _renamed(page: Any, name: str) -> Any:
    if isinstance(page, list):
        return [_renamed(each, name) for each in page]
    if not isinstance(page, dict):
        return page
    found = {key: _renamed(value, name) for key, value in page.items()}
    reference = page.get("$ref")
    if isinstance(reference, str):
        for start in ("#/$defs/", "#/definitions/"):
            if reference.startswith(start):
                found["$ref"] = f"#/$defs/{name}.{reference.removeprefix(start)}"
    return found


def _text(schema: dict[str, Any]) -> str:
    return msgspec.json.encode(schema).decode()

