"""JSON Schemas by chance, and a plain check of what they are said to allow."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

WORDS = st.sampled_from(["a", "name", "ö", "two words", 'quo"te', "東京", ""])
LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(-300, 300), st.integers(0, 500)),
    st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, st.integers(0, 3), st.integers(0, 6)),
    st.builds(lambda values: {"enum": values}, st.lists(WORDS | st.integers(-20, 20) | st.booleans() | st.none(), min_size=1, max_size=4)),
    st.just({"type": "string", "pattern": "^[a-c]{2}[0-9]+x$", "maxLength": 9}),
    st.builds(lambda value: {"const": value}, WORDS),
)


def _objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def made(properties: dict[str, Any], left_out: set[str]) -> dict[str, Any]:
        required = [name for name in properties if name not in left_out]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.builds(made, st.dictionaries(WORDS, inner, max_size=3), st.sets(WORDS, max_size=2))


def _lists(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more}, inner, st.integers(0, 2), st.integers(0, 2)
    )


SCHEMAS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    LEAVES,
    lambda inner: _objects(inner) | _lists(inner) | st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    max_leaves=5,
)


def keeps_to(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is one of those; of the keywords above only."""
    if "anyOf" in schema:
        return any(keeps_to(value, option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return any(value == one and type(value) is type(one) for one in schema.get("enum", [schema.get("const")]))
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            in_bounds = isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema["maxLength"]
            return in_bounds and re.search(schema.get("pattern", ""), value) is not None
        case "array":
            in_bounds = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            return in_bounds and all(keeps_to(each, schema["items"]) for each in value)
        case "object":
            known = isinstance(value, dict) and set(schema["required"]) <= set(value) <= set(schema["properties"])
            return known and all(keeps_to(each, schema["properties"][name]) for name, each in value.items())
    raise AssertionError(f"a schema of no kind that is made here: {schema}")
