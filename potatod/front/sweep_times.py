"""What sweeps cost lately: seconds each, bytes read, the disk's rate. Pure.

The disk's rate is bytes ÷ wall time, its limit the most that was seen while reads were under way: their quotient says how much of the
time the disk was put to use. Where everything is resident and nothing is read there is neither.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from typing import Final

from potatod.messages import Rows

#: Sweeps over which the median time, and the disk's rate, are taken.
_REMEMBERED: Final = 32


class SweepTimes:
    """Counters over the front's life, and medians over the last sweeps, whichever engine made them.

    ``expecting``: seconds that a sweep with so many tokens was planned to take.
    """

    def __init__(self, expecting: Callable[[int], float] | None = None) -> None:
        self._expecting = expecting
        self._decode: deque[float] = deque(maxlen=_REMEMBERED)
        self._expected: deque[float] = deque(maxlen=_REMEMBERED)
        self._waited: deque[float] = deque(maxlen=_REMEMBERED)
        self._any: deque[float] = deque(maxlen=_REMEMBERED)
        self._latest: list[tuple[float, float]] = []
        self._read_bytes: deque[int] = deque(maxlen=_REMEMBERED)
        #: of the sweep under way, on the clock; None where there is none
        self.began_at: float | None = None
        self.sweeps = 0
        #: of the last one
        self.last_s = 0.0
        self.read_bytes = 0
        #: the most that was seen since this front started, over a pass of the reader
        self.disk_limit_bytes_per_s: float | None = None

    def passed_s(self, now: float) -> float:
        """Of what the sweep under way takes."""
        return 0.0 if self.began_at is None else min(now - self.began_at, self.s_per_sweep or 0.0)

    def add(self, seconds: float, *, decode: bool, rows: Rows) -> None:
        self.sweeps += 1
        self.last_s = seconds
        self.read_bytes += rows.read_bytes
        self._any.append(seconds)
        self._read_bytes.append(rows.read_bytes)
        if decode:
            self._decode.append(seconds)
            self._waited.append(rows.waited_s)
            if self._expecting is not None:
                self._expected.append(self._expecting(max(1, len(rows.rows))))
                self._latest.append((seconds, self._expected[-1]))
        if rows.read_bytes_per_s is not None:
            self.disk_limit_bytes_per_s = max(rows.read_bytes_per_s, self.disk_limit_bytes_per_s or 0.0)

    @property
    def s_per_sweep(self) -> float | None:
        """Median over the last sweeps that only decoded, or, before there was one, over all."""
        times = self._decode or self._any
        return statistics.median(times) if times else None

    @property
    def expected_s_per_sweep(self) -> float | None:
        """What those that only decoded were planned to take, the median."""
        return statistics.median(self._expected) if self._expected else None

    def take_latest(self) -> tuple[float, float] | None:
        """Seconds that those took which only decoded since the last call, and what they were planned to take, medians; None where there was none."""
        latest, self._latest = self._latest, []
        if not latest:
            return None
        real, expected = zip(*latest, strict=True)
        return statistics.median(real), statistics.median(expected)

    @property
    def waited_s_per_sweep(self) -> float | None:
        """How long the worker had nothing to compute with in those that only decoded, the median."""
        return statistics.median(self._waited) if self._waited else None

    @property
    def disk_bytes_per_s(self) -> float | None:
        """Over the last sweeps, from their beginning to their end; None where they read nothing."""
        seconds, read_bytes = sum(self._any), sum(self._read_bytes)
        return read_bytes / seconds if read_bytes and seconds > 0 else None
