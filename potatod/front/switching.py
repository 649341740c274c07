"""Which model has the engine: one at a time, and each change costs the time to load it, and the KV of every text that is not over. Pure.

    the model that has it ──▶ keeps it while it has jobs ──▶ then the one that goes first, or has waited longest

So as few changes as can be, and each sweep is shared by all jobs of its model. Two things end a model's turn sooner: jobs of another one have waited
for so long as the user lets them (nobody starves), or another one has jobs that go before all of its own.

NOTE [ a turn that is worth its beginning ]
A turn begins with loading a model and reading again every text that is not over. Ended before that is done it has brought nothing, and two models
with long texts would take turns for ever. So a turn that others wait for lasts until the texts that it began with are where they were, and then for
so many times what that took: of the time at most a fifth goes into beginnings.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

#: See NOTE [ a turn that is worth its beginning ].
HOLD: Final = 4.0
#: Before one has been seen, seconds.
_FIRST_COST_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a model that does not have the engine, and could."""

    model: int
    #: of the job that goes first; 0 goes before 1
    rank: int
    #: seconds that there have been jobs of it, or since it had the engine
    waited_s: float


class Turn:
    """Of the model that has the engine, or is to have it next. All times in seconds, monotonic."""

    def __init__(self, now: float, cost_s: float = _FIRST_COST_S) -> None:
        """``cost_s``: what the beginning of the last turn took."""
        self.cost_s = cost_s
        self._began = now
        #: sequences that are to be read before it counts
        self._first: frozenset[int] | None = None
        self._settled: float | None = None
        self._last_rank: int | None = None
        self._idle_since: float | None = None

    def look(self, now: float, rank: int | None, *, swept: bool, running: Collection[int], reading: Collection[int]) -> None:
        """Between two sweeps. ``rank``: of its best job; ``swept``: whether a sweep has been completed in it; ``running``: sequences that take part,
        and of these the ones that are still ``reading`` their texts."""
        if rank is None:
            self._idle_since = now if self._idle_since is None else self._idle_since
            if self._settled is None:  # nothing is to be read again, so there is nothing that would be for nothing
                self._settled = now - HOLD * self.cost_s
            return
        self._last_rank, self._idle_since = rank, None
        if self._settled is None and swept:
            self._first = frozenset(running) if self._first is None else self._first
            if self._first.isdisjoint(reading):
                self._settled, self.cost_s = now, now - self._began

    def left_s(self, now: float) -> float:
        """For so long it lasts, whoever waits; infinite where nobody knows yet."""
        return float("inf") if self._settled is None else max(0.0, self._settled + HOLD * self.cost_s - now)

    def rank(self, now: float) -> int | None:
        """Of its best job; and for a moment of the last one that it had, since whoever asks one question after the other has another soon. None: it has
        nothing to do."""
        if self._idle_since is not None and now - self._idle_since >= self.cost_s:
            return None
        return self._last_rank

    @property
    def idle(self) -> bool:
        return self._idle_since is not None or self._last_rank is None


def next_model(turn: Turn, waiting: Sequence[Demand], now: float, patience_s: float) -> int | None:
    """Which of ``waiting`` is to have the engine now; None: the one that has it keeps it. ``patience_s``: so long others wait while there is work."""
    if not waiting:
        return None
    first = _in_turn(waiting, patience_s)[0]
    rank = turn.rank(now)
    if turn.idle:
        return first.model if rank is None or first.rank <= rank or first.waited_s >= patience_s else None
    if turn.left_s(now) > 0 or rank is None:
        return None
    return first.model if first.rank < rank or first.waited_s >= patience_s else None


def in_turn(waiting: Sequence[Demand], patience_s: float) -> list[int]:
    """Their order."""
    return [each.model for each in _in_turn(waiting, patience_s)]


def _in_turn(waiting: Sequence[Demand], patience_s: float) -> list[Demand]:
    """Whoever has waited for too long goes before all others, the longest first."""
    return sorted(waiting, key=lambda each: (each.waited_s < patience_s, each.rank if each.waited_s < patience_s else 0, -each.waited_s))
