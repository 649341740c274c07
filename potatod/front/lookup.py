"""Drafts for nothing: what a text goes on with was often said before. Pure.

Where the last tokens of a text stand earlier in it, what followed them there is proposed (prompt lookup, A. Saxena 2023): code that is edited,
documents that are quoted, lists that go on. The longer the stretch that is found again, the likelier the proposal is right. Places are found as in
LZ77: all that end with the same two tokens are a chain, newest first.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

#: Tokens of a stretch that are looked at, and that it has at least.
LONGEST: Final = 16
SHORTEST: Final = 2
#: Places that are looked at, newest first.
_TRIED: Final = 64


class Lookup:
    """Of one text."""

    def __init__(self) -> None:
        #: of two tokens: where they ended last, the end of the text left out
        self._last: dict[int, int] = {}
        #: of each place: where the same two tokens had ended before; 0: nowhere
        self._before = array("i", [0] * SHORTEST)

    def propose(self, tokens: Sequence[int], most: int, ways: int = 1) -> list[tuple[list[int], int]]:
        """Up to ``most`` tokens that may follow, and how long the stretch was that was found (up to LONGEST): the longest first, and of several
        ``ways`` to go on each begins with another token."""
        self._learn(tokens)
        found: list[tuple[int, int]] = []
        end = self._last.get(_two(tokens, len(tokens)), 0) if len(tokens) >= SHORTEST else 0
        for _ in range(_TRIED):
            if end == 0:
                break
            found.append((_alike(tokens, end), end))
            if ways == 1 and found[-1][0] == LONGEST:
                break
            end = self._before[end]
        begun: dict[int, tuple[list[int], int]] = {}
        for length, end in sorted(found, reverse=True):  # of stretches as long as each other the newest
            if len(begun) < ways and tokens[end] not in begun:
                after = tokens[end : end + most]
                begun[tokens[end]] = [after[at % len(after)] for at in range(most)], length  # what repeats itself goes on repeating
        return list(begun.values())

    def _learn(self, tokens: Sequence[int]) -> None:
        for end in range(len(self._before), len(tokens)):
            two = _two(tokens, end)
            self._before.append(self._last.get(two, 0))
            self._last[two] = end


def _two(tokens: Sequence[int], end: int) -> int:
    return tokens[end - 2] << 32 | tokens[end - 1]


def _alike(tokens: Sequence[int], end: int) -> int:
    """How many tokens before ``end`` are those before the end of the text."""
    length = SHORTEST
    while length < min(LONGEST, end) and tokens[end - 1 - length] == tokens[-1 - length]:
        length += 1
    return length
