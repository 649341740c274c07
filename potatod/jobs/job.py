"""A job: what a client asked for, from Accepted until it is deleted. Pure: the time is an argument.

Times are seconds since 1970, since a job outlives processes and machines that are switched off; a clock that is set back makes no duration negative.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from potato_client.protocol import Finished
from potato_client.status import Guesses
from potatod.sampling.params import Sampling

from .states import Event, State, after

Reason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What was asked, and how it was understood then; another day, another release would understand it otherwise."""

    #: the request, a frame of the public protocol
    frame: bytes
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    #: whether the model's chat template made them, and the last characters of the text that it made
    chat: bool
    tail: str


@dataclass(slots=True)
class Job:
    """What is known of it beside the question and the answer themselves."""

    #: in the order of their arrival
    number: int
    id: str
    #: who asked
    owner: str
    #: the client's name for the request, by which it knows whether that arrived; may be empty
    key: str
    #: the model's checksum, and its name for people
    model: str
    model_name: str
    #: the beginning of the question
    title: str
    #: 0 goes before 1
    rank: int
    seed: int
    #: which of several answers to one prompt this is
    choice: int
    prompt_tokens: int
    #: tokens that the answer may have: max_tokens, or what the context leaves
    limit_tokens: int
    accepted_at: float
    state: State = State.QUEUED
    started_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    #: sampled so far, an end-of-text token not counted; and of those the ones that a client may see
    sampled_tokens: int = 0
    shown_tokens: int = 0
    #: that it took part in, and what they read; other jobs that took part count the same bytes
    sweeps: int = 0
    read_bytes: int = 0
    #: guessed for it, and of those the ones that were right
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    #: the same by who guessed them; what two guessed alike is counted for both
    guesses: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: why it is over
    reason: Reason | Literal[""] = ""
    #: why it failed: the protocol's code, and a sentence
    code: str = ""
    why: str = ""
    #: engines that ended while they computed its next token, and how many tokens it had then
    deaths: int = 0
    died_at: int = 0

    @property
    def full(self) -> bool:
        return self.sampled_tokens >= self.limit_tokens

    def enter(self, event: Event, now: float) -> None:
        """The only way a job changes its state. Raises :class:`NotNow`."""
        self.state = after(self.state, event)
        if event is Event.TAKEN and self.started_at is None:
            self.started_at = now
        elif event is Event.RETRY:
            self.ended_at, self.reason, self.code, self.why = None, "", "", ""
            self.deaths = 0
        elif self.state.over:
            self.ended_at = now

    def sampled(self, now: float) -> None:
        """One more token of the answer."""
        if self.first_token_at is None:
            self.first_token_at = now
        self.sampled_tokens += 1

    def swept(self, read_bytes: int) -> None:
        """It took part in a sweep."""
        self.sweeps += 1
        self.read_bytes += read_bytes

    def count_guesses(self, found: Mapping[str, tuple[int, int]]) -> None:
        """Of one sweep, by who guessed: how many, and how many of them were right."""
        for source, (drafted, accepted) in found.items():
            before = self.guesses.get(source, (0, 0))
            self.guesses[source] = before[0] + drafted, before[1] + accepted

    def died(self) -> int:
        """An engine has ended while it computed the next token; returns how many have in a row."""
        self.deaths = self.deaths + 1 if self.died_at == self.sampled_tokens else 1
        self.died_at = self.sampled_tokens
        return self.deaths

    def s_per_token(self, now: float) -> float | None:
        """Seconds from token to token, over the answer so far; None before the second."""
        if self.first_token_at is None or self.sampled_tokens < 2:
            return None
        return _between(self.first_token_at, now if self.ended_at is None else self.ended_at) / (self.sampled_tokens - 1)

    @property
    def disk_bytes_per_s(self) -> float | None:
        """Over the whole time in which sweeps ran for it, those included in which nothing was read; None where none read anything."""
        if self.started_at is None or self.ended_at is None or not self.read_bytes or self.ended_at <= self.started_at:
            return None
        return self.read_bytes / (self.ended_at - self.started_at)

    def finished(self, disk_limit_bytes_per_s: float | None) -> Finished:
        """The last message about a job that is over and has not failed."""
        assert self.ended_at is not None and self.reason, "a job that is not over has no last message"
        started = self.ended_at if self.started_at is None else self.started_at
        first = self.ended_at if self.first_token_at is None else self.first_token_at
        return Finished(
            job=self.id,
            reason=self.reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.shown_tokens,
            queued_s=_between(self.accepted_at, started),
            prefill_s=_between(started, first),
            decode_s=_between(first, self.ended_at),
            sweeps=self.sweeps,
            disk_bytes=self.read_bytes,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
            guesses=tuple(Guesses(source, *counts) for source, counts in self.guesses.items()),
            disk_bytes_per_s=self.disk_bytes_per_s,
            disk_limit_bytes_per_s=disk_limit_bytes_per_s if self.read_bytes else None,
        )

    def copy(self) -> Job:
        """As it is now, for another thread."""
        twin = copy.copy(self)
        twin.guesses = dict(self.guesses)
        return twin


def _between(begin: float, end: float) -> float:
    return max(0.0, end - begin)
