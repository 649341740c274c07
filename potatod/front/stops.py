"""Stop strings over a stream of text: the text ends before the first of them, however it was cut into pieces. Pure.

The first is the one that is complete first; of several that are complete with the same character the longest counts.
"""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """One per answer."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        #: the longest end of the text so far with which a stop string begins
        self._held = ""
        #: whether one has come; then no text passes any more
        self.found = False

    def push(self, text: str) -> str:
        """What may be shown: what no stop string can begin in."""
        if self.found:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        cut = len(text) - max(_overlap(text, stop) for stop in self._stops)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """The text is complete: what was held back, since it became no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``, the whole of it excepted."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
