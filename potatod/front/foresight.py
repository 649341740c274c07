"""How long a text becomes that does not exist yet: for operations whose result can be far larger than what goes in. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jinja2.exceptions import SecurityError

from .budget import MAX_NUMBER_BITS

#: Widths in format strings that no template needs: of five digits, or taken from an argument.
_WIDE: Final = re.compile(r"\d{5}|\{[^{}]*\{|%[^a-zA-Z%]*\*")
_WIDTH: Final = re.compile(r"\d+")
#: What a number is written with at most, where it is no width.
_DIGITS: Final = 400
_PADDING: Final = frozenset({"center", "ljust", "rjust", "zfill"})
#: Everything that can grow; the rest makes about what it is given.
GROWING: Final = _PADDING | {"expandtabs", "replace", "join", "indent", "format"}


def chars_after(operation: str, text: str, arguments: Sequence[Any]) -> int:
    """Characters that an operation on a text makes at most: every place in the text takes one argument, the longest."""
    if operation == "format":
        return _formatted(text, arguments)
    longest = max((size(argument) for argument in arguments), default=0)
    if operation == "join":
        items = arguments[0] if arguments else ()
        return longest + len(text) * (len(items) if hasattr(items, "__len__") else 0)
    places = {
        "replace": text.count(arguments[0]) if arguments and isinstance(arguments[0], str) else len(text),
        "expandtabs": text.count("\t"), "indent": text.count("\n") + 1,
    }.get(operation, 1)  # fmt: skip
    return len(text) + places * longest


def _formatted(text: str, arguments: Sequence[Any]) -> int:
    if _WIDE.search(text):
        raise SecurityError("it formats to a width that no chat template needs")
    widest = max((int(digits) for digits in _WIDTH.findall(text)), default=0)
    longest = max((size(argument, number=_DIGITS) for argument in arguments), default=0)
    return len(text) + (text.count("%") + text.count("{")) * (widest + longest)


def check_numbers(operator: str, left: Any, right: Any) -> None:
    """Raises where a product or a power would be a number that nobody needs, before it is computed."""
    if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
        factors = abs(right) if operator == "**" else 2
        if factors * max(left.bit_length(), right.bit_length()) > MAX_NUMBER_BITS:
            raise SecurityError("it computes with numbers larger than a chat template may")


def repeated(left: Any, right: Any) -> int:
    """Items of ``left * right`` where one of them is a text or a list; 0 elsewhere."""
    for number, other in ((left, right), (right, left)):
        if isinstance(number, int) and isinstance(other, str | list | tuple):
            return len(other) * max(number, 0)
    return 0


def size(value: Any, number: int | None = None) -> int:
    """Characters that a value stands for. A number may be a width or a count: itself, unless ``number`` says otherwise."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) if number is None else number
    if isinstance(value, Mapping):
        return sum(size(key, number) + size(item, number) + 6 for key, item in value.items())
    if isinstance(value, list | tuple | set):
        return sum(size(item, number) + 2 for item in value)
    return 32
