"""Whether an engine that died is started again. Pure: deaths and sweeps go in, a verdict comes out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Restarts:
    """Counts deaths without one completed sweep between them, inside a moving window."""

    #: so many deaths in the window and the engine stays down
    limit: int
    window_s: float
    #: over the daemon's life
    total: int = 0
    _deaths: deque[float] = field(default_factory=deque)
    #: seconds that passed while engines were starting and never came to be ready: no time in which anything went well
    _lost_s: float = 0.0

    def swept(self) -> None:
        """The engine completed a sweep: it works, and earlier deaths say nothing any more."""
        self._deaths.clear()

    def died(self, now: float, lost_s: float = 0.0) -> bool:
        """Records a death at ``now`` (seconds, monotonic); whether to start again. ``lost_s``: for so long it was starting, where it never was ready.
        One that hangs at each start would else be started for ever, since its deaths are far apart."""
        self._lost_s += lost_s
        counted = now - self._lost_s
        self._deaths.append(counted)
        while self._deaths and counted - self._deaths[0] > self.window_s:
            self._deaths.popleft()
        if len(self._deaths) >= self.limit:
            return False
        self.total += 1
        return True
