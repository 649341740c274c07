"""How good what is said of the end of jobs is: what was said half-way is kept in mind, and held against what came. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .eta import Eta

#: Jobs that take less are over before anybody asks.
_LEAST_S: Final = 2.0


class Promises:
    def __init__(self) -> None:
        #: by job: when it was said first that it would be over, on the clock
        self._since: dict[int, float] = {}
        self._halfway: dict[int, tuple[float, Eta]] = {}
        #: jobs that were over, of these the ones that ended within what was said, and the sum of how far its middle was off
        self.count = 0
        self.kept = 0
        self.error_s = 0.0

    def said(self, etas: Mapping[int, Eta], now: float) -> None:
        """Of jobs that run: half-way is when as much time has gone by as is said to be left."""
        for number, eta in etas.items():
            since = self._since.setdefault(number, now)
            if number not in self._halfway and now - since >= max(eta.s, _LEAST_S / 2):
                self._halfway[number] = now, eta

    def over(self, number: int, now: float) -> None:
        """It has come to its own end."""
        at, eta = self._halfway.get(number, (now, None))
        if eta is not None:
            self.count += 1
            self.kept += eta.least_s <= now - at <= eta.most_s
            self.error_s += abs(now - at - eta.s)
        self.forget(number)

    def forget(self, number: int) -> None:
        """It does not run any more: nothing that was said of it counts."""
        self._since.pop(number, None)
        self._halfway.pop(number, None)
