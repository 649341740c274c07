"""What sweeps were to take beside what they take: once a minute for the log, and a word to the supervisor where they have parted for long. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from potatod.forecast import Forecast, Load, Rates, of_load

from .sweep_times import SweepTimes

EVERY_S: Final = 60.0
#: Real and expected may differ by so much of what was expected …
APART: Final = 0.2
#: … and for so many minutes in which something was computed.
FOR_MINUTES: Final = 10
#: Where one is more than this many times the other, so many minutes are enough: a disk that slows down to a tenth is no passing noise.
FAR: Final = 2.0
FOR_MINUTES_FAR: Final = 2


def planned(verdict: dict[str, Any]) -> Callable[[int], Forecast]:
    """What was planned of a sweep of so many tokens, from a boot page's facts."""
    known = verdict["rates"]
    rates = Rates(**known | {"compute": tuple((int(rows), float(rate)) for rows, rate in known["compute"])})
    load = Load(**verdict["load"])
    return lambda rows: of_load(load, rates, rows)


@dataclass(frozen=True, slots=True)
class Minute:
    """Seconds of its sweeps, the medians; only those count that decoded."""

    sweeps: int
    real_s: float
    expected_s: float
    waited_s: float
    #: bytes a second from disk, wall time
    read: float
    #: expected and real have been apart for long, or far apart; true once
    parted: bool


class Beside:
    def __init__(self, times: SweepTimes, now: float) -> None:
        self._times = times
        self._next = now + EVERY_S
        self._sweeps = 0
        self._apart = self._far = 0
        self._told = False

    def look(self, now: float) -> Minute | None:
        """None where the minute is not over, or no token came of it."""
        if now < self._next:
            return None
        self._next = now + EVERY_S
        times, sweeps = self._times, self._times.sweeps - self._sweeps
        self._sweeps = times.sweeps
        if (latest := times.take_latest()) is None:
            return None
        real, expected = latest
        self._apart = self._apart + 1 if abs(real / expected - 1) > APART else 0
        self._far = self._far + 1 if not 1 / FAR <= real / expected <= FAR else 0
        parted = (self._apart >= FOR_MINUTES or self._far >= FOR_MINUTES_FAR) and not self._told
        self._told |= parted
        return Minute(sweeps, real, expected, times.waited_s_per_sweep or 0.0, times.disk_bytes_per_s or 0.0, parted)
