"""What a sweep of a plan takes, and which link it waits for. Pure.

    Plan + Rates ─▶ forecast() ─▶ Forecast: seconds of reading, seconds of computing

Reading goes on across layers and sweeps, and the ring holds what computing is behind by: so nothing waits without need, and a sweep takes as
long as its slowest link. tests/unit/test_forecast.py holds that against a simulation of the pipeline, event by event.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Literal

from .plan import Plan

Link = Literal["disk", "compute"]


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine does with bytes."""

    #: bytes a second, in the reads that the reader makes
    disk: float
    #: (rows in a sweep, bytes of weights a second that are computed with), rows ascending
    compute: tuple[tuple[int, float], ...]
    #: seconds that a layer takes whatever its size
    layer_s: float
    #: bytes a second that one thread compares with their checksum
    checksum: float = 5e9

    def compute_at(self, rows: int) -> float:
        """Bytes of weights a second in a sweep of so many rows. Between two measured numbers of rows the seconds per byte lie on a line, and
        beyond the last they grow with the rows."""
        known = [(measured, 1 / rate) for measured, rate in self.compute]
        at = bisect.bisect_left([measured for measured, _ in known], rows)
        if at == 0:
            return 1 / known[0][1]
        if at == len(known):
            return 1 / (known[-1][1] * rows / known[-1][0])
        (fewer, low), (more, high) = known[at - 1], known[at]
        return 1 / (low + (high - low) * (rows - fewer) / (more - fewer))


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one sweep with one token of each of ``rows`` sequences."""

    rows: int
    disk_s: float
    compute_s: float

    @property
    def sweep_s(self) -> float:
        return max(self.disk_s, self.compute_s)

    @property
    def token_s(self) -> float:
        """Seconds per token, all sequences together."""
        return self.sweep_s / self.rows

    @property
    def bottleneck(self) -> Link:
        return "disk" if self.disk_s > self.compute_s else "compute"


def forecast(plan: Plan, layers: int, rates: Rates, rows: int = 1) -> Forecast:
    return of_bytes(plan.resident_bytes + plan.streamed_bytes, plan.streamed_bytes, layers, rates, rows)


def of_bytes(weights_bytes: int, streamed_bytes: int, layers: int, rates: Rates, rows: int = 1) -> Forecast:
    """``streamed_bytes`` are read of the ``weights_bytes`` that are computed with."""
    return Forecast(rows, streamed_bytes / rates.disk, weights_bytes / rates.compute_at(rows) + layers * rates.layer_s)
