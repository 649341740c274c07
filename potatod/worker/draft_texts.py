"""What the draft model has read of a text, and where it has looked behind it: a tree that goes on along with the text.

    the text ── Looked ─┬─ behind ── Looked ── …      one path reads on where the text's own KV ends,
                        └─ behind ── Looked           every other is a fork of what it follows
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from potatod.kv_layout import BLOCK, blocks

from .draft_model import Read


@dataclass(slots=True)
class Looked:
    """Where it was looked behind: the end of a text, or a node of its tree."""

    #: what has read up to here, and more maybe; how much that had read here
    read: Read
    length: int
    #: what may follow, and by how much the first is preferred to each
    tokens: list[int]
    gaps: list[float]
    #: the same behind some of those
    behind: dict[int, Looked] = field(default_factory=dict)

    def every(self) -> Iterator[Looked]:
        """It, and all behind it."""
        left = [self]
        while left:
            some = left.pop()
            left += some.behind.values()
            yield some


@dataclass(slots=True)
class Text:
    """A text, and what the draft model has of it."""

    read: Read
    #: where the last draft began
    looked: Looked | None = None
    #: whether the last draft was of others
    stale: bool = False

    @property
    def known(self) -> int:
        """Tokens of it that have been read; what was read behind them are guesses."""
        return len(self.read.tokens) if self.looked is None else self.looked.length

    def settle(self) -> bool:
        """Nobody goes on with it for now: what was guessed is forgotten. False where that cannot be taken back."""
        known, self.looked = self.known, None
        return self.read.cut(known)

    def forked_blocks(self) -> int:
        """Blocks that its guesses take beside it."""
        if self.looked is None:
            return 0
        of_text, begun = blocks(self.looked.length), {id(self.looked.read): self.looked.length}
        reads = {id(self.looked.read): self.looked.read}
        for looked in self.looked.every():
            reads[id(looked.read)] = looked.read
            begun.setdefault(id(looked.read), looked.length - 1)
        return sum(blocks(len(read.tokens)) - (of_text if read is self.looked.read else begun[key] // BLOCK) for key, read in reads.items())


def alike(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    least = min(len(some), len(others))
    if list(some[:least]) == list(others[:least]):
        return least
    return next(at for at in range(least) if some[at] != others[at])
