"""What an HTTP client is told when it gets nothing: OpenAI's shape, with sentences of ours.

    {"error": {"message": …, "type": "invalid_request_error", "param": "max_tokens", "code": "unsupported_parameter"}}
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.responses import Response

from potato_client import BadRequest, ClientError, DaemonLost, NoDaemon, RequestRefused
from potato_client.protocol import RefusalCode

#: Of what the front refuses. What passes by itself (429, 503) is asked again by clients, so it says when.
_STATUS: Final[Mapping[RefusalCode, int]] = {
    "bad_frame": 500,
    "too_fast": 429,
    "bad_version": 500,
    "hello_first": 503,
    "bad_request": 400,
    "prompt_too_long": 400,
    "empty_prompt": 400,
    "no_template": 400,
    "queue_full": 429,
    "degraded": 503,
    "stopping": 503,
    "storage": 503,
    "unknown_job": 404,
    "ambiguous_job": 400,
    "not_now": 409,
    "key_used": 422,
    "other_model": 404,
    "poisoned": 500,
    "internal": 500,
}
#: By OpenAI's names, where it has one.
_CODES: Final[Mapping[str, str]] = {"prompt_too_long": "context_length_exceeded", "queue_full": "rate_limit_exceeded", "other_model": "model_not_found"}
_RETRY_AFTER: Final[Mapping[int, str]] = {429: "10", 503: "5"}


class Fault(Exception):
    """Ends a request with a status and a sentence."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        if status in _RETRY_AFTER:
            self.headers.setdefault("Retry-After", _RETRY_AFTER[status])

    @classmethod
    def of(cls, error: ClientError) -> Fault:
        """From what the front, or the way to it, says."""
        if isinstance(error, RequestRefused):
            return cls(_STATUS[error.code], str(error), code=_CODES.get(error.code, error.code))
        if isinstance(error, BadRequest):
            return cls(400, str(error))
        if isinstance(error, NoDaemon | DaemonLost):
            return cls(503, "the front is not there for a moment; ask again", code="unavailable")
        return cls(500, str(error), code="internal")

    def page(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": _kind(self.status), "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return Json(self.page(), self.status, self.headers)


def unsupported(name: str, why: str = "") -> Fault:
    return Fault(400, f"{name} is not supported{f': {why}' if why else ''}", code="unsupported_parameter", param=name)


def not_found(what: str) -> Fault:
    return Fault(404, what, code="not_found")


def _kind(status: int) -> str:
    if status == HTTPStatus.UNAUTHORIZED:
        return "authentication_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


class Json(Response):
    """Any page of dictionaries, lists and plain values."""

    media_type = "application/json"

    def __init__(self, page: object, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(msgspec.json.encode(page), status_code, headers)
