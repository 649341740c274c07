"""What a stage did when, while somebody watches (`potatod trace`). Costs a comparison where nobody does."""

from __future__ import annotations

from typing import Final

from .messages import Span

#: More than this is not kept: a trace ends then.
MOST: Final = 200_000


class Spans:
    """Times are time.monotonic(), which all processes of a machine share. Thread-safe: a list grows in one step."""

    def __init__(self) -> None:
        self.until = 0.0
        self._kept: list[Span] = []

    def begin(self, until: float) -> None:
        self._kept = []
        self.until = until

    def add(self, track: str, name: str, began: float, ended: float) -> None:
        """``track``: what of the stage was busy; spans on one do not overlap."""
        if self.until and len(self._kept) < MOST:
            self._kept.append(Span(track, name, began, ended - began))

    def over(self, now: float) -> list[Span] | None:
        """All of them, once, as soon as the time is over."""
        if not self.until or now < self.until:
            return None
        kept, self._kept, self.until = self._kept, [], 0.0
        return kept
