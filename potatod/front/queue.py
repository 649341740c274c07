"""Who runs, and who waits for a place or for memory. Pure.

    waiting ──a place and KV are free──▶ running
       ▲                                  │
       └───── set aside: no KV left ──────┘
"""

from __future__ import annotations

import bisect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from potatod.kv_layout import BLOCK

from .ledger import Ledger
from .prefixes import common
from .sequence import Sequence

#: So many may go before one for whom there is no room yet.
MOST_PASSED: Final = 32


class QueueFull(Exception):
    """Every place in the queue is taken."""


@dataclass(slots=True)
class Reuse:
    """Since the scheduler began."""

    #: of sequences that have begun, and of those the tokens whose KV others held
    prompt_tokens: int = 0
    reused_tokens: int = 0
    #: how often a sequence was set aside
    set_aside: int = 0


class Queue:
    """Both lists are by their sequences' turns."""

    def __init__(self, max_sequences: int, max_queue: int, ledger: Ledger, reuse: Reuse, rope_border: int | None) -> None:
        self._max_sequences = max_sequences
        self._max_queue = max_queue
        self._ledger = ledger
        self._reuse = reuse
        self._rope_border = rope_border
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    def room_for(self, count: int) -> bool:
        """Whether so many sequences more would be taken."""
        return count <= max(0, self._max_sequences - len(self.running) - len(self.waiting)) + max(0, self._max_queue - len(self.waiting))

    def wait(self, sequence: Sequence) -> None:
        """Until there is a place for it."""
        bisect.insort(self.waiting, sequence, key=lambda s: s.turn)

    def promote(self, chunk: int, *, may_put_aside: bool) -> None:
        """Who waits takes a place, in turn, where its KV fits beside those that run; for who goes before the last of them, those make place where
        that is of any use. Who fits may pass one who does not, some times. ``chunk``: tokens of prompts in a sweep, at most."""
        blocked: Sequence | None = None
        for sequence in list(self.waiting):
            if blocked is not None and (blocked.passed >= MOST_PASSED or len(self.running) >= self._max_sequences):
                return
            lower = [other for other in self.running if other.rank > sequence.rank] if may_put_aside and blocked is None else []
            if not self._has_place(sequence, chunk, lower):
                blocked = blocked or sequence
                continue
            while not self._has_place(sequence, chunk):
                self.put_aside(lower.pop())
            if blocked is not None:
                blocked.passed += 1
            self.waiting.remove(sequence)
            bisect.insort(self.running, sequence, key=lambda s: s.turn)

    def put_aside(self, sequence: Sequence) -> None:
        """It waits, and goes on later with the same text."""
        self.running.remove(sequence)
        self._ledger.keep(sequence.id, sequence.tokens[: sequence.held])
        self._reuse.set_aside += sequence.held > 0
        sequence.held = 0
        self.wait(sequence)

    def is_long(self, sequence: Sequence) -> bool:
        """Whether it is computed as longrope computes long texts: its KV is no beginning of a short one."""
        return self._rope_border is not None and sequence.is_long(self._rope_border)

    def alike(self, one: Sequence, other: Sequence) -> int:
        """Tokens whose KV one of them may take from the other: those that both begin with."""
        if not self._ledger.forks or self.is_long(one) != self.is_long(other):
            return 0
        return common(one.tokens, other.tokens)

    def _has_place(self, sequence: Sequence, chunk: int, without: Collection[Sequence] = ()) -> bool:
        """If those of ``without`` did not run."""
        gone = {other.id for other in without}
        others = [other for other in self.running if other.id not in gone]
        if not others:
            sequence.expects = 0
            return True
        if len(others) >= self._max_sequences:
            return False
        beside = sum(self._ledger.growth(max(o.held, o.expects), len(o.tokens), chunk) for o in others)
        known = len(sequence.tokens) + 1
        shared = min(max(self.alike(sequence, other) for other in others), len(sequence.tokens) - 1)  # they hold that, or will
        fits = self._ledger.fits(known, shared, beside, min(known, chunk), gone)
        sequence.expects = shared - shared % BLOCK
        return fits
