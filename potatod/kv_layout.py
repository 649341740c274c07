"""What the KV of a sequence takes, and which of it may be shared. Pure: plan, front and worker count by the same rules.

KV lies in blocks of BLOCK tokens. Layers that attend to everything keep all blocks of a sequence; those with a sliding window keep the blocks that
the window still reaches, and one more, so that another sequence can go on from a place a little before the end:

    window 256, 1000 tokens:   · · · · · 5 6 7      every layer without a window:   0 1 2 3 4 5 6 7

A sequence that begins like another one takes over whole blocks and copies the part of the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

#: Tokens of a block. A multiple of worker.attention.STEP.
BLOCK: Final = 128


def blocks(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


def first_kept(window: int | None, length: int) -> int:
    """The first block that a layer with this window still needs where the next token comes behind so many."""
    return 0 if window is None else max(0, length - window + 1 - BLOCK) // BLOCK


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that keep the same blocks."""

    #: tokens that the newest one sees, itself included; None: all
    window: int | None
    #: all of these layers together
    bytes_per_token: int


@dataclass(frozen=True, slots=True)
class KvLayout:
    groups: tuple[KvGroup, ...]
    #: kept of a sequence whatever its length: recurrent states
    state_bytes: int = 0
    #: whether a sequence may go on from another one's KV
    forks: bool = True

    @property
    def bytes_per_token(self) -> int:
        """Of a token that every layer keeps."""
        return sum(group.bytes_per_token for group in self.groups)

    def bytes_of(self, tokens: int, chunk: int = 0) -> int:
        """Of one sequence of so many tokens, the last ``chunk`` of which came together."""
        kept = sum(
            (blocks(tokens) - first_kept(group.window, tokens - chunk)) * BLOCK * group.bytes_per_token for group in self.groups
        )
        return self.state_bytes + kept

    def affordable(self, budget_bytes: int, most: int, chunk: int = 0) -> int:
        """Tokens of the longest sequence that so many bytes hold, up to ``most``."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bytes_of(middle, min(chunk, middle)) <= budget_bytes else (low, middle - 1)
        return low

    def forkable(self, kept_from: int, length: int) -> Iterator[bool]:
        """For each group: whether what is kept of a sequence, to which was last appended behind ``kept_from`` tokens, is enough to go on behind
        ``length``."""
        for group in self.groups:
            yield first_kept(group.window, length) >= first_kept(group.window, kept_from)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, page: dict[str, Any]) -> KvLayout:
        return cls(**page | {"groups": tuple(KvGroup(**group) for group in page["groups"])})
