"""Whether the daemon is well, for systemd's watchdog. Pure: what stages say, the engine's state and the time go in, a verdict comes out.

NOTE [ what being well is ]

That processes live says nothing: a worker may wait for what never comes, and each of them goes on saying that it is there. So systemd is told that all
is well only where that was seen since it was told the last time:

    starting, restarting,
    switching              within the supervisor's own deadlines
    up                     a sweep, a layer or bytes from disk have come further; or nothing is to be computed, and every stage has said something
    degraded               the front has said something: it answers from what is stored
    stopping               never: systemd has another deadline for that

Nothing is to be computed where the front says so: no job runs or waits, or none can be computed since jobs cannot be written, or none is to be while
this machine runs on battery or is short of memory (pausing.py). None of that is mended by a restart. Nor is this for what the supervisor mends
itself: a stage that is silent is killed after stages.SILENT_S, far earlier than WatchdogSec= of the unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from .messages import Counted, Queued, State

#: systemd is told so often within WatchdogSec=. It asks for twice; what is told rests on what stages say once a second.
_TIMES: Final = 4
#: An engine is on its way.
_AWAY: Final = ("starting", "restarting", "switching")


@dataclass(frozen=True, slots=True)
class Seen:
    """Since systemd was told the last time."""

    state: State
    #: an engine has been on its way for so long
    away_s: float = 0.0
    #: a sweep, a layer or bytes have come further
    moved: bool = False
    #: what the front said last: whether nothing is to be computed; None: nothing
    idle: bool | None = None
    #: every stage has said something
    all_heard: bool = False


def well(seen: Seen, away_s: float) -> bool:
    """See NOTE [ what being well is ]; ``away_s``: what the supervisor's deadlines for an engine come to."""
    if seen.state in _AWAY:
        return seen.away_s <= away_s
    if seen.state == "up":
        return seen.moved or (seen.idle is True and seen.all_heard)
    return seen.state == "degraded" and seen.idle is not None


@dataclass(slots=True)
class Watchdog:
    """``watchdog_s``: WatchdogSec= of the unit; ``away_s``: as in :func:`well`."""

    watchdog_s: float
    away_s: float
    _told: float | None = None
    _away_since: float | None = None
    _moved: bool = False
    _idle: bool | None = None
    #: pids of who has said something since
    _heard: set[int] = field(default_factory=set)
    #: by pid, over its life: sweeps, layers, bytes
    _counts: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def heard(self, message: Counted | Queued) -> None:
        self._heard.add(message.pid)
        if isinstance(message, Queued):
            self._idle = message.held or bool(message.paused) or not (message.running or message.waiting)
            return
        counts = (message.sweeps, message.layers, message.read_bytes)
        before = self._counts.get(message.pid, (0, 0, 0))
        self._moved |= any(now > then for now, then in zip(counts, before, strict=True))
        self._counts[message.pid] = counts

    def due(self, now: float, state: State, pids: set[int]) -> bool:
        """Whether systemd is to be told now (seconds, monotonic), and that it has been; ``pids``: the stages that there are."""
        if state not in _AWAY:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = now
        if self._told is not None and now - self._told < self.watchdog_s / _TIMES:
            return False
        away = 0.0 if self._away_since is None else now - self._away_since
        if not well(Seen(state, away, self._moved, self._idle, pids <= self._heard), self.away_s):
            return False
        self._told, self._moved, self._idle = now, False, None
        self._heard.clear()
        self._counts = {pid: counts for pid, counts in self._counts.items() if pid in pids}
        return True
