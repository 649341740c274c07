"""The lines of a batch: what each asks, and what is written when it is answered. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from . import asking, body, pages
from .faults import Fault
from .tools import known

MAX_LINES: Final = 50_000
#: What a batch can ask for, and how that is understood and answered.
ENDPOINTS: Final[Mapping[str, Callable[[Mapping[str, Any]], asking.Question]]] = {
    "/v1/chat/completions": asking.chat,
    "/v1/completions": asking.completion,
}


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One question of a batch."""

    number: int
    custom_id: str
    question: asking.Question

    def shape(self, endpoint: str) -> pages.Format:
        return pages.Chat(known(self.question.tools)) if endpoint == "/v1/chat/completions" else pages.Completion(self.question.before)


@dataclass(frozen=True, slots=True)
class Wrong:
    """A line that cannot be asked."""

    line: int
    fault: Fault

    def page(self) -> dict[str, Any]:
        return {"code": self.fault.code or "invalid_request", "line": self.line, "message": self.fault.message, "param": self.fault.param}


def lines_of(text: bytes, endpoint: str, check: Callable[[str], object]) -> tuple[list[Line], list[Wrong]]:
    """All of them are understood before any is asked. ``check`` raises :class:`Fault` where a model is not served."""
    lines: list[Line] = []
    wrong: list[Wrong] = []
    seen: set[str] = set()
    rows = [(number, row) for number, row in enumerate(text.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1) if row.strip()]
    if not rows:
        return [], [Wrong(1, Fault(400, "the file has no lines", code="empty_file"))]
    if len(rows) > MAX_LINES:
        return [], [Wrong(MAX_LINES + 1, Fault(400, f"a batch has at most {MAX_LINES} lines", code="too_many_tasks"))]
    for number, row in rows:
        try:
            line = _line(number, row, endpoint, check)
            if line.custom_id in seen:
                raise Fault(400, f"there is a custom_id {line.custom_id[:100]!r} already", code="duplicate_custom_id", param="custom_id")
            seen.add(line.custom_id)
            lines.append(line)
        except Fault as fault:
            wrong.append(Wrong(number, fault))
        except RecursionError:
            wrong.append(Wrong(number, Fault(400, "the line is nested too deep", code="bad_json")))
    return lines, wrong


def _line(number: int, row: bytes, endpoint: str, check: Callable[[str], object]) -> Line:
    found = body.understood(body.parse(row), _Line, {}, {})
    if (found.method, found.url) != ("POST", endpoint):
        raise Fault(400, f"this batch is of POST {endpoint}, and the line of {found.method[:20]} {found.url[:100]}", code="mismatched_url", param="url")
    try:
        question = ENDPOINTS[endpoint](found.body)
        if question.stream:
            raise Fault(400, "a batch is not streamed", code="invalid_value", param="stream")
        check(question.model)
    except Fault as fault:
        raise within_body(fault) from None
    if question.options.get("priority") is None:
        question.options["priority"] = "batch"
    return Line(number, found.custom_id, question)


def answered(line: Line, page: pages.Page) -> pages.Page:
    response = {"status_code": 200, "request_id": secrets.token_hex(8), "body": page}
    return {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": line.custom_id, "response": response, "error": None}


def failed(line: Line, fault: Fault) -> pages.Page:
    response = {"status_code": fault.status, "request_id": secrets.token_hex(8), "body": fault.page()}
    error = {"code": fault.code or "failed", "message": fault.message}
    return {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": line.custom_id, "response": response, "error": error}


def within_body(fault: Fault) -> Fault:
    """What it names stands in the line's ``body``."""
    if fault.param is not None:
        fault.param = f"body.{fault.param}"
    return fault


def custom_ids(rows: Sequence[bytes]) -> set[str]:
    """Of lines that were written before; the last may be cut."""
    found = set()
    for row in rows:
        try:
            found.add(msgspec.json.decode(row)["custom_id"])
        except (msgspec.DecodeError, KeyError, TypeError):
            continue
    return found
