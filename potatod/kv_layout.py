"""What the KV of a sequence takes, and which of it may be shared. Pure: plan, front and worker count by the same rules.

KV lies in blocks of BLOCK tokens. Layers that attend to everything keep all blocks of a sequence; those with a sliding window keep the blocks that
the window still reaches, and one more, so that another sequence can go on from a place a little before the end:

    window 256, 1000 tokens:   · · · · · 5 6 7      every layer without a window:   0 1 2 3 4 5 6 7

A sequence that begins like another one takes over whole blocks and copies the part of the last one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

#: Tokens of a block. A multiple of worker.attention.STEP.
BLOCK: Final = 128
#: Attention reads whole tiles of queries and whole steps of keys (worker.attention), and native attention steps of its own.
_SLACK: Final = 80
#: Where a window has moved on over no more than so many tokens, they can be taken back.
WAY_BACK: Final = BLOCK - _SLACK


def blocks(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


def first_kept(window: int | None, length: int) -> int:
    """The first block that a layer with this window still needs where the next token comes behind so many."""
    return 0 if window is None else max(0, length - window + 1 - BLOCK) // BLOCK


def first_read(window: int | None, length: int) -> int:
    """The first block that is read to go on behind so many tokens: a window begins no more than so far before its oldest token."""
    return 0 if window is None else max(0, length - window + 1 - _SLACK) // BLOCK


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that keep the same blocks."""

    #: tokens that the newest one sees, itself included; None: all
    window: int | None
    #: all of these layers together
    bytes_per_token: int
    #: whether these are the draft model's: what is not there of them it reads again
    of_draft: bool = False


@dataclass(frozen=True, slots=True)
class KvLayout:
    groups: tuple[KvGroup, ...]
    #: kept of a sequence whatever its length: recurrent states
    state_bytes: int = 0
    #: whether a sequence may go on from another one's KV
    forks: bool = True
    #: so many times as large as it is kept a token is where it is computed with; of the model's, not of its draft's
    widened: int = 1

    @property
    def bytes_per_token(self) -> int:
        """Of a token that every layer keeps."""
        return sum(group.bytes_per_token for group in self.groups)

    def bytes_of(self, tokens: int, chunk: int = 0) -> int:
        """Of one sequence of so many tokens, of which up to ``chunk`` come together: at most, wherever they begin. More tokens never take less."""
        return self.state_bytes + sum(self._most_blocks(group, tokens, chunk) * BLOCK * group.bytes_per_token for group in self.groups)

    def growth(self, start: int, end: int, chunk: int = 0) -> int:
        """Bytes more that a sequence of ``start`` tokens takes at most when it has ``end``."""
        more = blocks(end) - blocks(start)
        return sum(min(more, self._most_blocks(group, end, chunk)) * BLOCK * group.bytes_per_token for group in self.groups)

    @staticmethod
    def _most_blocks(group: KvGroup, tokens: int, chunk: int) -> int:
        """From first_kept() before the chunk to its end, each of them inside of a block."""
        return blocks(tokens) if group.window is None else min(blocks(tokens), (group.window + chunk) // BLOCK + 3)

    def affordable(self, budget_bytes: int, most: int, chunk: int = 0) -> int:
        """Tokens of the longest sequence that so many bytes hold, up to ``most``."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bytes_of(middle, min(chunk, middle)) <= budget_bytes else (low, middle - 1)
        return low

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, page: dict[str, Any]) -> KvLayout:
        return cls(**page | {"groups": tuple(KvGroup(**group) for group in page["groups"])})
