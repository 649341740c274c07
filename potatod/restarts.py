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

    def swept(self) -> None:
        """The engine completed a sweep: it works, and earlier deaths say nothing any more."""
        self._deaths.clear()

    def died(self, now: float) -> bool:
        """Records a death at ``now`` (seconds, monotonic); whether to start again."""
        self._deaths.append(now)
        while self._deaths and now - self._deaths[0] > self.window_s:
            self._deaths.popleft()
        if len(self._deaths) >= self.limit:
            return False
        self.total += 1
        return True
