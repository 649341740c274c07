"""A job that runs or waits for its turn, with its tokens and its text, and what one sweep adds to it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from potato_client.protocol import LikelyToken, Progress, TokenLogprob
from potatod.jobs.job import Job
from potatod.jobs.logprobs import packed
from potatod.sampling.logprobs import logprobs
from potatod.sampling.params import Sampling

from .sequence import Sequence
from .text import Shown, Text


@dataclass(slots=True)
class Answer:
    """A job with its tokens and its text."""

    job: Job
    sampling: Sampling
    sequence: Sequence
    #: makes the text of the answer, anew from its beginning; costs time for a long one
    make_text: Callable[[], Text]
    #: what has been shown of it
    shown: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    #: of each token of the answer, shown or not, packed as in jobs/logprobs.py; empty where nobody asked for them
    logprobs: list[bytes] = field(default_factory=list)
    #: the last Progress, and when it was said
    said: Progress | None = None
    said_at: float = 0.0
    _text: Text | None = None
    #: tokens of the answer that have become text
    _pushed: int = 0

    @property
    def text(self) -> Text:
        """Where its tokens are now."""
        self.catch_up(len(self.sequence.tokens))
        assert self._text is not None
        return self._text

    def catch_up(self, tokens: int) -> bool:
        """Makes text of so many tokens of a job that has been restored; whether there are more."""
        if self._text is None:
            self._text = self.make_text()
        first = self.job.prompt_tokens + self._pushed
        for token in self.sequence.tokens[first : first + tokens]:
            self._text.push(token)
            self._pushed += 1
        return self.behind

    @property
    def behind(self) -> bool:
        """Whether tokens of it have no text yet."""
        return len(self.sequence.tokens) > self.job.prompt_tokens + self._pushed

    def push(self, token: int) -> Shown:
        """The text of a token that has just been sampled, and is the sequence's last."""
        self._pushed += 1
        return self.text.push(token)

    def allowed(self) -> NDArray[np.bool_] | None:
        """Tokens that may come next, (vocabulary,); None: all. Raises :class:`Refusal` as :meth:`Text.allowed`."""
        return None if self.sampling.json_schema is None else self.text.allowed()

    @property
    def complete(self) -> bool:
        """Whether a stop string has come, or all that it must be. Raises :class:`Refusal` as :meth:`Text.complete`."""
        return self.text.stopped or (self.sampling.json_schema is not None and self.text.complete)

    def likelihood(self, logits: NDArray[np.float32], token: int) -> list[bytes]:
        """Of a token sampled from these logits, (vocabulary,), packed; none where nobody asked for it."""
        count = self.sampling.top_logprobs
        if count is None:
            return []
        found, bytes_of = logprobs(logits, token, count), self.text.bytes_of
        others = tuple(LikelyToken(id, value, bytes_of(id)) for id, value in found.likeliest)
        return [packed(TokenLogprob(token, found.sampled, bytes_of(token), others))]

    @property
    def shown_ids(self) -> tuple[int, ...]:
        begin = self.job.prompt_tokens
        return tuple(self.sequence.tokens[begin : begin + self.job.shown_tokens])


@dataclass(slots=True)
class Gain:
    """What one sweep, or the end, adds to an answer."""

    first: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[bytes] = field(default_factory=list)
    shown: Shown = field(default_factory=lambda: Shown((), "", ""))

    def add(self, shown: Shown) -> None:
        before = self.shown
        self.shown = Shown(before.token_ids + shown.token_ids, before.text + shown.text, before.reasoning + shown.reasoning)
