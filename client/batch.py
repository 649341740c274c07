"""A file of questions, a JSON object a line: all of it is understood before any of it is asked. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .asking import Prompt, generate_message
from .errors import BadRequest
from .session import encode

#: Of a line, beside what AnswerOptions has.
_FIELDS: Final = ("prompt", "messages", "system", "raw", "key")
#: "custom_id" is what other tools call a key.
_ALSO: Final = {"custom_id": "key"}


@dataclass(frozen=True, slots=True)
class Line:
    number: int
    prompt: Prompt
    system: str | None
    raw: bool
    key: str
    options: dict[str, Any]


def lines_of(text: str, defaults: Mapping[str, Any], *, anew: bool = False) -> list[Line]:
    """``defaults``: options of lines that say nothing. A line without a key has one of the whole text, these options and its number, so that the same
    file asked again is the same jobs; ``anew`` makes none. Raises :class:`BadRequest` with the number of the line."""
    same = json.dumps(dict(defaults), sort_keys=True, default=str)
    whole = hashlib.sha256(f"{same}\n{text}".encode()).hexdigest()[:32]
    lines = text.removeprefix("\ufeff").split("\n")  # and nowhere else: a JSON string may hold what Unicode also calls the end of a line
    found = [_line(number, line, defaults, "" if anew else f"{whole}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise BadRequest("the file has no lines: each is a JSON object with a prompt or messages")
    keys: dict[str, int] = {}
    for each in found:
        if each.key and keys.setdefault(each.key, each.number) != each.number:
            raise BadRequest(f"lines {keys[each.key]} and {each.number} have the same key")
    return found


def _line(number: int, line: str, defaults: Mapping[str, Any], key: str) -> Line:
    try:
        page = json.loads(line)
        if not isinstance(page, dict):
            raise BadRequest("is no JSON object")
        page = {_ALSO.get(name, name): value for name, value in page.items()}
        prompt = page.get("messages", page.get("prompt"))
        if prompt is None or ("messages" in page and "prompt" in page):
            raise BadRequest('needs either "prompt" or "messages"')
        options = {**defaults, **dict(_options(page))}
        raw, own = page.get("raw", False), page.get("key")
        if not isinstance(raw, bool):
            raise BadRequest("raw must be true or false")
        if own is not None and not (isinstance(own, str) and own):
            raise BadRequest("key must be a text, and not an empty one")
        made = Line(number, prompt, page.get("system"), raw, own or key, options)
        encode(generate_message(1, prompt, system=made.system, raw=raw, key=made.key, options=options))
    except json.JSONDecodeError as error:
        raise BadRequest(f"line {number} is not JSON: {error.msg} at character {error.pos + 1}") from None
    except (BadRequest, TypeError, ValueError) as error:
        raise BadRequest(f"line {number}: {error}") from None
    return made


def _options(page: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in page.items() if name not in _FIELDS)
