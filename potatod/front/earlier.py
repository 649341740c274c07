"""What was said in texts that are over, so that a question which is asked again, or a file which is edited in another chat, is guessed from them. Pure.

The newest texts stand one behind the other, and places in them are found as those of one text are (lookup.py): all that end with the same two tokens
are a chain, newest first. When there is no more room the older half is left out.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

from .lookup import LONGEST, SHORTEST, TRIED, Way, two

#: Tokens that are kept: they and what finds them are some ten megabytes.
KEPT: Final = 1 << 16
#: Of a stretch that is found again: fewer say nothing about another text.
_LEAST: Final = 4
#: Between texts.
_BORDER: Final = -1


class Earlier:
    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._begin(())

    def add(self, tokens: Sequence[int]) -> None:
        """A text is over. Of one that is longer than half of what is kept the last tokens count."""
        tokens = tokens[-(self._kept // 2) :]
        if len(self._tokens) + len(tokens) > self._kept:
            half = self._tokens[-(self._kept // 2) :]
            self._begin(half[half.index(_BORDER) + 1 :] if _BORDER in half else ())
        self._append((*tokens, _BORDER))

    def propose(self, tokens: Sequence[int], most: int) -> Way | None:
        """Up to ``most`` tokens that may follow, and how long the stretch is that was found again."""
        if len(tokens) < SHORTEST or most <= 0:
            return None
        best, place, end = 0, 0, self._last.get(two(tokens, len(tokens)), 0)
        for _ in range(TRIED):
            if end == 0 or best == LONGEST:
                break
            length = self._alike(tokens, end)
            if length > best and self._tokens[end] != _BORDER:
                best, place = length, end
            end = self._before[end]
        if best < _LEAST:
            return None
        after = self._tokens[place : place + most]
        return Way(list(after[: after.index(_BORDER)] if _BORDER in after else after), best)

    def _begin(self, tokens: Sequence[int]) -> None:
        self._tokens = array("i")
        #: of two tokens where they ended last, and of each place where they had ended before; 0: nowhere
        self._last: dict[int, int] = {}
        self._before = array("i")
        self._append(tokens)

    def _append(self, tokens: Sequence[int]) -> None:
        first = len(self._tokens)
        self._tokens.extend(tokens)
        for end in range(first, len(self._tokens)):  # the last one has nothing behind it yet
            if end < SHORTEST or _BORDER in self._tokens[end - SHORTEST : end]:
                self._before.append(0)
                continue
            key = two(self._tokens, end)
            self._before.append(self._last.get(key, 0))
            self._last[key] = end

    def _alike(self, tokens: Sequence[int], end: int) -> int:
        """How many tokens before ``end`` are those that the text ends with."""
        length = SHORTEST
        while length < min(LONGEST, end, len(tokens)) and self._tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        return length
