"""Parsed JSON from outside becomes dataclasses of ours, every field of its type. Pure.

Types are what a model folder's index needs: int, str, bool, tuples, dicts, literals, X | None, and dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import functools
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import ModelDataError


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """Types of the fields. Evaluated once: for every tensor anew they cost half a minute in a large model."""
    return get_type_hints(cls)


def build(cls: Any, value: Any, where: str) -> Any:
    """A dataclass of ours from parsed JSON, every field present and of its type, none unknown."""
    if not isinstance(value, dict):
        raise ModelDataError(f"{where} must be a JSON object")
    hints = _hints(cls)
    for name in value:
        if name not in hints:
            raise ModelDataError(f"{where} has an unknown field {str(name)[:60]!r}")
    built = {}
    for name, hint in hints.items():
        if name not in value:
            raise ModelDataError(f"{where} has no field {name!r}")
        built[name] = _typed(hint, value[name], f"{where}.{name}")
    return cls(**built)


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {_typed(arguments[0], k, where): _typed(arguments[1], v, f"{where}.{str(k)[:60]}") for k, v in value.items()}
    if origin is Literal and value in arguments:
        return value
    if origin is UnionType:  # int | None
        return None if value is None else _typed(arguments[0], value, where)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ModelDataError(f"{where} has a value of the wrong type: {str(value)[:60]!r}")
