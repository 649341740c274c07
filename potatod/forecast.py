"""What a sweep of a plan takes, and which link it waits for. Pure.

    Plan + Rates ─▶ forecast() ─▶ Forecast: seconds of reading, of uploading, of computing

Reading goes on across layers and sweeps, and the ring holds what computing is behind by: so nothing waits without need, and a sweep takes as
long as its slowest link. tests/unit/test_forecast.py holds that against a simulation of the pipeline, event by event.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Literal

from .plan import Plan

Link = Literal["disk", "upload", "compute"]


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
    #: bytes a second from the pool into a card's memory; None where the cpu computes
    upload: float | None = None
    #: whether the card computes meanwhile; it does not where the pool cannot be page-locked
    overlaps: bool = True

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
class Load:
    """What a sweep moves, in bytes, and computes with."""

    weights_bytes: int
    streamed_bytes: int
    uploaded_bytes: int
    #: with one, uploading and computing take turns
    slots: int
    layers: int

    @classmethod
    def of(cls, plan: Plan, layers: int) -> Load:
        return cls(plan.weights_bytes, plan.streamed_bytes, plan.uploaded_bytes, plan.slots, layers)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one sweep with one token of each of ``rows`` sequences."""

    rows: int
    disk_s: float
    compute_s: float
    upload_s: float = 0.0
    #: whether a layer is uploaded while the one before it computes
    overlapped: bool = True

    @property
    def sweep_s(self) -> float:
        return max(self.disk_s, self._on_the_card_s)

    @property
    def token_s(self) -> float:
        """Seconds per token, all sequences together."""
        return self.sweep_s / self.rows

    @property
    def stream_s(self) -> float:
        """Until all weights have come to where they are computed with."""
        return max(self.disk_s, self.upload_s if self.overlapped else 0.0)

    @property
    def bottleneck(self) -> Link:
        if self.disk_s > self._on_the_card_s:
            return "disk"
        return "upload" if self.upload_s > self.compute_s else "compute"

    @property
    def _on_the_card_s(self) -> float:
        return max(self.upload_s, self.compute_s) if self.overlapped else self.upload_s + self.compute_s


def forecast(plan: Plan, layers: int, rates: Rates, rows: int = 1) -> Forecast:
    return of_load(Load.of(plan, layers), rates, rows)


def of_load(load: Load, rates: Rates, rows: int = 1) -> Forecast:
    return Forecast(
        rows,
        disk_s=load.streamed_bytes / rates.disk,
        compute_s=load.weights_bytes / rates.compute_at(rows) + load.layers * rates.layer_s,
        upload_s=load.uploaded_bytes / rates.upload if rates.upload else 0.0,
        overlapped=rates.overlaps and load.slots != 1,
    )
