"""What is known of an answer while it comes and after. Pure: events are folded in, waiting is done elsewhere."""

from __future__ import annotations

from typing import TypeVar

from .errors import ClientError, NotUnderstood
from .protocol import Accepted, Finished, Piece, Progress, TokenLogprob
from .session import Event, Message

_M = TypeVar("_M", bound=Message)


class Collected:
    """The part of an answer that has come so far. After the end it stays as it is."""

    def __init__(self, request: int) -> None:
        self.request = request
        #: what the daemon said when it took the request: id, seed, prompt tokens
        self.accepted: Accepted | None = None
        #: the last of them
        self.progress: Progress | None = None
        self.finished: Finished | None = None
        #: why nothing more comes, where it is not Finished
        self.error: ClientError | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._first_at_s = self._last_at_s = 0.0

    @property
    def over(self) -> bool:
        return self.finished is not None or self.error is not None

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """The model's thoughts before its answer; empty where it has none."""
        return "".join(self._reasoning)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Of answer and reasoning; an end-of-text token is never among them."""
        return tuple(self._token_ids)

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """One for each of ``token_ids`` where ``top_logprobs`` asked for them, else none."""
        return tuple(self._logprobs)

    @property
    def s_per_token(self) -> float | None:
        """(arrival of the last token - arrival of the first, at this client) ÷ (tokens - 1).

        None for fewer than two tokens.
        """
        count = len(self._token_ids)
        return (self._last_at_s - self._first_at_s) / (count - 1) if count > 1 else None

    def take(self, event: Event) -> Message:
        """Folds in what came. Raises what an error event carries; :class:`NotUnderstood` where tokens are missing."""
        what = event.what
        if isinstance(what, ClientError):
            self.error = what
            raise what
        if isinstance(what, Piece):
            self._add(what, event.at_s)
        elif isinstance(what, Accepted):
            self.accepted = what
        elif isinstance(what, Progress):
            self.progress = what
        elif isinstance(what, Finished):
            self.finished = what
        return what

    def _add(self, piece: Piece, at_s: float) -> None:
        if piece.index != len(self._token_ids):
            self.error = NotUnderstood(
                f"tokens of the answer are missing: {len(self._token_ids)} have come, the next is number {piece.index}"
            )
            raise self.error
        if piece.token_ids:
            self._first_at_s = self._first_at_s if self._token_ids else at_s
            self._last_at_s = at_s
        self._token_ids.extend(piece.token_ids)
        self._logprobs.extend(piece.logprobs)
        if piece.text:
            self._text.append(piece.text)
        if piece.reasoning:
            self._reasoning.append(piece.reasoning)


def only(event: Event, expected: type[_M]) -> _M:
    """What came for a question that has one answer; raises what an error event carries."""
    if isinstance(event.what, ClientError):
        raise event.what
    if not isinstance(event.what, expected):
        raise NotUnderstood(f"the daemon answered with {type(event.what).__name__} where {expected.__name__} was asked for")
    return event.what
