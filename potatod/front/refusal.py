"""Why a request comes to nothing: the public protocol's reasons as exceptions, raised by decisions, sent by loops."""

from __future__ import annotations

from typing import Any, Final

from potato_client.protocol import Refused
from potatod.errors import EXIT_INTERNAL, EXIT_TRY_AGAIN, EXIT_USAGE

_EXIT_CODES: Final = {
    "bad_request": EXIT_USAGE,
    "prompt_too_long": EXIT_USAGE,
    "empty_prompt": EXIT_USAGE,
    "no_template": EXIT_USAGE,
    "unknown_job": EXIT_USAGE,
    "queue_full": EXIT_TRY_AGAIN,
    "degraded": EXIT_TRY_AGAIN,
    "stopping": EXIT_TRY_AGAIN,
    "internal": EXIT_INTERNAL,
}


class Refusal(Exception):
    """A request or a job that comes to nothing, in the protocol's words."""

    def __init__(self, code: Any, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def to(self, *, request: int | None = None, job: str | None = None) -> Refused:
        return Refused(self.code, self.message, _EXIT_CODES[self.code], request=request, job=job)
