"""What a job can be, and what can happen to it. Pure.

              ┌───────── interrupted, resumed, retried ─────────┐
              ▼                                                 │
    ────▶ queued ──taken──▶ running ◀──taken── set aside        │
              │                │ └──set_aside──────▲ │          │
              │                ├──finish──▶ finished │          │
              ├────────────────┼──pause──▶ paused ◀──┤ ─resume──┤
              ├────────────────┼──fail───▶ failed ◀──┤ ─retry───┤
              └────────────────┴──cancel─▶ cancelled ◀ ─retry───┘

A job that is paused can be cancelled, too. Whatever is not in the table does not happen.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


class State(enum.Enum):
    QUEUED = "queued"
    #: it takes part in sweeps
    RUNNING = "running"
    #: it has made place for others, and goes on as soon as there is room
    SET_ASIDE = "set aside"
    #: somebody wants it to wait until it is resumed
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Whether nothing more comes unless it is retried."""
        return self in (State.FINISHED, State.FAILED, State.CANCELLED)

    @property
    def active(self) -> bool:
        """Whether it runs, or will without anybody's doing."""
        return self in (State.QUEUED, State.RUNNING, State.SET_ASIDE)


class Event(enum.Enum):
    #: it takes part in a sweep
    TAKEN = "taken"
    SET_ASIDE = "set aside"
    #: the daemon has ended, and begins again
    INTERRUPTED = "interrupted"
    FINISH = "finish"
    FAIL = "fail"
    # the four that a person may wish for
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    RETRY = "retry"


TABLE: Final[Mapping[tuple[State, Event], State]] = MappingProxyType({
    (State.QUEUED, Event.TAKEN): State.RUNNING,
    (State.QUEUED, Event.INTERRUPTED): State.QUEUED,
    (State.QUEUED, Event.PAUSE): State.PAUSED,
    (State.QUEUED, Event.FAIL): State.FAILED,
    (State.QUEUED, Event.CANCEL): State.CANCELLED,
    (State.RUNNING, Event.SET_ASIDE): State.SET_ASIDE,
    (State.RUNNING, Event.INTERRUPTED): State.QUEUED,
    (State.RUNNING, Event.FINISH): State.FINISHED,
    (State.RUNNING, Event.PAUSE): State.PAUSED,
    (State.RUNNING, Event.FAIL): State.FAILED,
    (State.RUNNING, Event.CANCEL): State.CANCELLED,
    (State.SET_ASIDE, Event.TAKEN): State.RUNNING,
    (State.SET_ASIDE, Event.INTERRUPTED): State.QUEUED,
    (State.SET_ASIDE, Event.PAUSE): State.PAUSED,
    (State.SET_ASIDE, Event.FAIL): State.FAILED,
    (State.SET_ASIDE, Event.CANCEL): State.CANCELLED,
    (State.PAUSED, Event.RESUME): State.QUEUED,
    (State.PAUSED, Event.CANCEL): State.CANCELLED,
    (State.FAILED, Event.RETRY): State.QUEUED,
    (State.CANCELLED, Event.RETRY): State.QUEUED,
})  # fmt: skip


class NotNow(Exception):
    """What happens to jobs, and not to one in this state."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"a job that is {state.value} cannot {event.value}")
        self.state = state
        self.event = event


def after(state: State, event: Event) -> State:
    """Raises :class:`NotNow`."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise NotNow(state, event) from None
