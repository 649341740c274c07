"""Which of many texts begins most like a given one. Pure.

Sorted by their tokens, the texts that share the longest beginning with another one are its neighbours.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Final

#: Texts that are looked at for those that another one begins with: they stand before it, the longest first.
_NEAR: Final = 32


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the beginning that are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices are compared at C speed
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Prefixes:
    """Texts by their ids."""

    def __init__(self) -> None:
        self._sorted: list[tuple[tuple[int, ...], int]] = []
        self._tokens: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, id: int, tokens: Sequence[int]) -> None:
        self._tokens[id] = tuple(tokens)
        bisect.insort(self._sorted, (self._tokens[id], id))

    def discard(self, id: int) -> None:
        tokens = self._tokens.pop(id, None)
        if tokens is not None:
            del self._sorted[bisect.bisect_left(self._sorted, (tokens, id))]

    def nearest(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(id, tokens in common) of those that have any, most first."""
        wanted = tuple(tokens)
        right = bisect.bisect_left(self._sorted, (wanted, -1))
        left = right - 1
        shared = [self._shared(left, wanted), self._shared(right, wanted)]
        while max(shared) > 0:
            if shared[1] >= shared[0]:
                yield self._sorted[right][1], shared[1]
                right += 1
                shared[1] = min(shared[1], self._shared(right, wanted))
            else:
                yield self._sorted[left][1], shared[0]
                left -= 1
                shared[0] = min(shared[0], self._shared(left, wanted))

    def within(self, tokens: Sequence[int]) -> Iterator[int]:
        """Ids of the texts that ``tokens`` begins with, of those that are near."""
        for id, shared in itertools.islice(self.nearest(tokens), _NEAR):
            if shared == len(self._tokens[id]):
                yield id

    def _shared(self, at: int, wanted: tuple[int, ...]) -> int:
        return common(self._sorted[at][0], wanted) if 0 <= at < len(self._sorted) else 0
