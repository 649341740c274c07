"""A job that runs or waits for its turn, with its tokens and its text, and what one sweep adds to it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from potato_client.protocol import Progress
from potatod.jobs.job import Job
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

    @property
    def shown_ids(self) -> tuple[int, ...]:
        begin = self.job.prompt_tokens
        return tuple(self.sequence.tokens[begin : begin + self.job.shown_tokens])


@dataclass(slots=True)
class Gain:
    """What one sweep, or the end, adds to an answer."""

    first: int
    ids: list[int] = field(default_factory=list)
    shown: Shown = field(default_factory=lambda: Shown((), "", ""))

    def add(self, shown: Shown) -> None:
        before = self.shown
        self.shown = Shown(before.token_ids + shown.token_ids, before.text + shown.text, before.reasoning + shown.reasoning)
