"""Drafts for nothing: what a text goes on with was often said before. Pure.

Where the last tokens of a text stand earlier in it, what followed them there is proposed (prompt lookup, A. Saxena 2023): code that is edited,
documents that are quoted, lists that go on. The longer the stretch that is found again, the likelier the proposal is right. Places are found as in
LZ77: all that end with the same two tokens are a chain, newest first.

Who repeats something with a change goes on behind it, and makes the same change again:

    … the shape of a box … this shape.   … the figure of a box … this fig
                    ▲                                               ▲    the place that is copied goes along; what was put for "shape" is put again
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Tokens of a stretch that are looked at, and that it has at least.
LONGEST: Final = 16
SHORTEST: Final = 2
#: Places that are looked at, newest first.
TRIED: Final = 64
#: Tokens that may come in between, or be left out, before the copying is found again; and how many may come that are not copied.
_SKIPPED: Final = 4
_LOST: Final = 8


@dataclass(frozen=True, slots=True)
class Way:
    """How a text may go on."""

    tokens: list[int]
    #: tokens of the stretch that was found again, up to LONGEST; 0 where it goes on with what is copied
    length: int


class Lookup:
    """Of one text."""

    def __init__(self) -> None:
        #: of two tokens: where they ended last, the end of the text left out
        self._last: dict[int, int] = {}
        #: of each place: where the same two tokens had ended before; 0: nowhere
        self._before = array("i", [0] * SHORTEST)
        self._copying = _Copying()

    def propose(self, tokens: Sequence[int], most: int, ways: int = 1) -> list[Way]:
        """Up to ``most`` tokens that may follow: behind the longest stretch first, and of several such ``ways`` to go on each begins with another
        token. Last comes what goes on with what is copied, where that is something else."""
        self._learn(tokens)
        found: list[tuple[int, int]] = []
        end = self._last.get(two(tokens, len(tokens)), 0) if len(tokens) >= SHORTEST else 0
        for _ in range(TRIED):
            if end == 0:
                break
            found.append((_alike(tokens, end), end))
            if ways == 1 and found[-1][0] == LONGEST:
                break
            end = self._before[end]
        begun: dict[int, Way] = {}
        for length, end in sorted(found, reverse=True):  # of stretches as long as each other the newest
            if len(begun) < ways and tokens[end] not in begun:
                begun[tokens[end]] = Way(_behind(tokens, end, most), length)
        self._copying.follow(tokens, *max(found, default=(0, 0)))
        copied = self._copying.propose(tokens, most)
        known = next(iter(begun.values()), None)
        return [*begun.values(), *([Way(copied, 0)] if copied and (known is None or copied != known.tokens) else [])]

    def _learn(self, tokens: Sequence[int]) -> None:
        for end in range(len(self._before), len(tokens)):
            key = two(tokens, end)
            self._before.append(self._last.get(key, 0))
            self._last[key] = end


class _Copying:
    """What a text repeats with changes: the place that it has come to, and what it puts for what."""

    def __init__(self) -> None:
        #: where the token stands that would come next if nothing were changed; 0: nothing is copied
        self._place = 0
        #: tokens of the text that have been looked at; of the last ones, how many were as they are there, and how many were not
        self._seen = 0
        self._alike = 0
        self._missed = 0
        self._put: dict[int, int] = {}

    def follow(self, tokens: Sequence[int], length: int, end: int) -> None:
        """The text has come to here; a stretch of ``length`` tokens that it ends with ended at ``end`` before (0: none)."""
        for at in range(self._seen if self._place else len(tokens), len(tokens)):
            self._step(tokens, at)
        self._seen = len(tokens)
        if length > self._alike:
            self._place, self._alike, self._missed = end, length, 0

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        if not self._place or most <= 0:
            return []
        return [self._put.get(token, token) for token in _behind(tokens, self._place, most)]

    def _step(self, tokens: Sequence[int], at: int) -> None:
        place, token = self._place, tokens[at]
        if token == tokens[place] or (self._missed == 0 and token == self._put.get(tokens[place])):
            if token == tokens[place]:
                self._put.pop(token, None)
            self._place, self._alike, self._missed = place + 1, self._alike + 1, 0
            return
        if self._missed:  # something was put in or left out: perhaps it goes on a little further on, or nothing had been left out
            again = next((near for near in range(max(1, place - 1), min(place + _SKIPPED, at)) if tokens[near] == token), None)
            if again is not None:
                self._place, self._alike, self._missed = again + 1, 1, 0
                return
            self._missed += 1
            if self._missed > _LOST:
                self._place = self._alike = self._missed = 0
            return
        self._put[tokens[place]] = token
        self._place, self._alike, self._missed = place + 1, 0, 1


def _behind(tokens: Sequence[int], place: int, most: int) -> list[int]:
    """From there on; what repeats itself goes on repeating."""
    after = tokens[place : place + most]
    return [after[at % len(after)] for at in range(most)]


def two(tokens: Sequence[int], end: int) -> int:
    """The two tokens before ``end``, as one number."""
    return tokens[end - 2] << 32 | tokens[end - 1]


def _alike(tokens: Sequence[int], end: int) -> int:
    """How many tokens before ``end`` are those before the end of the text."""
    length = SHORTEST
    while length < min(LONGEST, end) and tokens[end - 1 - length] == tokens[-1 - length]:
        length += 1
    return length
