"""Why a request comes to nothing: the public protocol's reasons as exceptions, raised by decisions, sent by loops."""

from __future__ import annotations

from potato_client.protocol import RefusalCode, Refused


class Refusal(Exception):
    """A request or a job that comes to nothing, in the protocol's words."""

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def to(self, *, request: int | None = None, job: str | None = None) -> Refused:
        return Refused.because(self.code, self.message, request=request, job=job)
