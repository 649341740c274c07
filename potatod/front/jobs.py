"""A job: what a client asked for, from Accepted to its end. Pure: the clock is an argument.

queued ──▶ running ──▶ finished
   │          ├──────▶ failed
   └──────────┴──────▶ cancelled        (queued may fail too: the engine is degraded, the daemon stops)
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from potato_client.protocol import Finished
from potato_client.status import Guesses
from potatod.sampling.params import Sampling

Reason = Literal["stop", "length", "cancelled"]


class State(enum.Enum):
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        return not _NEXT[self]


_NEXT: Final[dict[State, frozenset[State]]] = {
    State.QUEUED: frozenset({State.RUNNING, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.FINISHED, State.FAILED, State.CANCELLED}),
    State.FINISHED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


@dataclass(slots=True)
class DiskUse:
    """What the sweeps of one job read. They are shared with other jobs; each counts them whole."""

    sweeps: int = 0
    read_bytes: int = 0

    def add(self, read_bytes: int) -> None:
        self.sweeps += 1
        self.read_bytes += read_bytes


@dataclass(slots=True)
class Job:
    id: str
    #: the job's name on the sweeps wire
    sequence: int
    #: routing id of the client that asked
    owner: bytes
    #: the number the client gave its request
    request: int
    prompt_tokens: int
    sampling: Sampling
    #: tokens that the answer may have: max_tokens, or what the context leaves
    limit_tokens: int
    #: time.monotonic(), like the three below
    accepted_at: float
    started_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    state: State = State.QUEUED
    #: which of several answers to one prompt this is; a part of the noise's key
    choice: int = 0
    #: sampled so far, an end-of-text token not counted
    sampled_tokens: int = 0
    #: guessed for it, and of those the ones that were right
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    #: the same by who guessed them; what two guessed alike is counted for both
    guesses: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: sent to the client, in Pieces
    shown_tokens: int = 0
    disk: DiskUse = field(default_factory=DiskUse)

    @property
    def full(self) -> bool:
        return self.sampled_tokens >= self.limit_tokens

    def enter(self, state: State, now: float) -> None:
        """The only way a job changes its state."""
        assert state in _NEXT[self.state], f"a {self.state.value} job does not become {state.value}"
        self.state = state
        if state is State.RUNNING:
            self.started_at = now
        elif state.over:
            self.ended_at = now

    def sampled(self, now: float) -> None:
        """One more token of the answer."""
        if self.first_token_at is None:
            self.first_token_at = now
        self.sampled_tokens += 1

    def count_guesses(self, found: Mapping[str, tuple[int, int]]) -> None:
        """Of one sweep, by who guessed: how many, and how many of them were right."""
        for source, (drafted, accepted) in found.items():
            before = self.guesses.get(source, (0, 0))
            self.guesses[source] = before[0] + drafted, before[1] + accepted

    @property
    def s_per_token(self) -> float | None:
        """Seconds from token to token, over the answer so far; None before the second."""
        if self.first_token_at is None or self.ended_at is None or self.sampled_tokens < 2:
            return None
        return (self.ended_at - self.first_token_at) / (self.sampled_tokens - 1)

    @property
    def disk_bytes_per_s(self) -> float | None:
        """Over the whole time in which sweeps ran for it, those included in which nothing was read; None where none read anything."""
        if self.started_at is None or self.ended_at is None or not self.disk.read_bytes or self.ended_at <= self.started_at:
            return None
        return self.disk.read_bytes / (self.ended_at - self.started_at)

    def finished(self, reason: Reason, disk_limit_bytes_per_s: float | None) -> Finished:
        """The last message about a job that is over."""
        assert self.ended_at is not None, "a job that is not over has no last message"
        started = self.ended_at if self.started_at is None else self.started_at
        first = self.ended_at if self.first_token_at is None else self.first_token_at
        return Finished(
            job=self.id,
            reason=reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.shown_tokens,
            queued_s=started - self.accepted_at,
            prefill_s=first - started,
            decode_s=self.ended_at - first,
            sweeps=self.disk.sweeps,
            disk_bytes=self.disk.read_bytes,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
            guesses=tuple(Guesses(source, *counts) for source, counts in self.guesses.items()),
            disk_bytes_per_s=self.disk_bytes_per_s,
            disk_limit_bytes_per_s=disk_limit_bytes_per_s if self.disk.read_bytes else None,
        )


class Jobs:
    """All jobs that are not over, in the order they were accepted."""

    def __init__(self) -> None:
        self._by_id: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._by_id.values()))

    def add(self, job: Job) -> None:
        self._by_id[job.id] = job

    def forget(self, job: Job) -> None:
        del self._by_id[job.id]

    def owned(self, job_id: str, owner: bytes) -> Job | None:
        """That job, if this client asked for it: nobody learns of another's."""
        job = self._by_id.get(job_id)
        return job if job is not None and job.owner == owner else None

    def of_owner(self, owner: bytes) -> tuple[Job, ...]:
        return tuple(job for job in self._by_id.values() if job.owner == owner)
