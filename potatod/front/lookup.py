"""Drafts for nothing: what a text goes on with was often said before. Pure.

Where the last tokens of a text stand earlier in it, what followed them there is proposed (prompt lookup, A. Saxena 2023): code that is edited,
documents that are quoted, lists that go on. The longer the stretch that is found again, the likelier the proposal is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Tokens that are looked for, longest first.
LENGTHS: Final = (16, 8, 4, 3, 2)


class Lookup:
    """Of one text: where each stretch of LENGTHS tokens has ended last, the newest left out."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        #: tokens whose stretches are known
        self._known = 0

    def propose(self, tokens: Sequence[int], most: int) -> tuple[list[int], int]:
        """Up to ``most`` tokens that may follow, and how long the stretch was that was found; none and 0 where nothing was."""
        self._learn(tokens)
        for length in LENGTHS:
            if length < len(tokens) and (end := self._ends.get(tuple(tokens[-length:]))) is not None:
                after = tokens[end : end + most]
                return [after[at % len(after)] for at in range(most)], length  # what repeats itself goes on repeating
        return [], 0

    def _learn(self, tokens: Sequence[int]) -> None:
        """All stretches that end before the last token."""
        for end in range(max(1, self._known), len(tokens)):
            for length in LENGTHS:
                if length <= end:
                    self._ends[tuple(tokens[end - length : end])] = end
        self._known = max(self._known, len(tokens))
