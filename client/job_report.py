"""What a daemon says of a job: the part of protocol.Listed and protocol.Described. docs/PROTOCOL.md is the same in prose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

JobState = Literal["queued", "running", "set aside", "paused", "finished", "failed", "cancelled"]
JOB_STATES: Final[tuple[JobState, ...]] = get_args(JobState)
#: Those after which nothing comes unless the job is retried.
OVER: Final[frozenset[JobState]] = frozenset({"finished", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class JobReport:
    #: counts jobs in the order of their arrival
    number: int
    job: str
    state: JobState
    #: the beginning of the question
    title: str
    #: name of the model that was asked
    model: str
    priority: Literal["interactive", "batch"]
    prompt_tokens: int
    #: tokens that have been said, and the most that may be
    completion_tokens: int
    limit_tokens: int
    #: seconds since 1970, like the two below
    accepted_at: float
    started_at: float | None = None
    ended_at: float | None = None
    #: answers before this one; 0 where it does not wait
    place: int = 0
    #: seconds from token to token, so far
    s_per_token: float | None = None
    #: seconds until it is over, as expected, and within which it ends nine times of ten; None where nobody knows
    eta_s: float | None = None
    eta_least_s: float | None = None
    eta_most_s: float | None = None
    #: why it is over: "stop", "length", "cancelled"; empty where it is not or has failed
    reason: str = ""
    #: why it failed: a code of Refused, and a sentence
    code: str = ""
    why: str = ""
    #: false where its model is not the one that is served now: it waits until that is
    served: bool = True
