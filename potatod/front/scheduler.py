"""Which tokens go into the next sweep. Pure: no clock, no socket, no text.

    waiting (FIFO) ──a place is free──▶ running ──▶ compose() ─▶ Sweep ─▶ worker ─▶ Rows ─▶ completed()
                                           ▲                                                   │ wanted rows
                                           └──────────────── append(token) ◀── sampler ◀───────┘

A sweep costs one pass over the weights whatever it computes, so every running sequence that has one token to feed takes
part in each; what is left to prefill shares a bounded number of tokens per sweep, first come first served. A sequence
counts the tokens whose KV the worker holds (``held``). That is the only thing an engine's death changes: ``held``
becomes 0 and the same rule prefills prompt and answer again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from potatod.messages import Row, Step, Sweep

#: A card's memory may be too small for a prompt's share of a sweep; it is halved down to this, and doubled again after so many sweeps that were not.
LEAST_CHUNK: Final = 16
GOOD_SWEEPS: Final = 64


class QueueFull(Exception):
    """Every place in the queue is taken."""


@dataclass(slots=True)
class Sequence:
    """Token ids inside the engine: a prompt and what has been sampled after it."""

    id: int
    tokens: list[int]
    #: whether sampling needs the logits, or the likeliest token is enough
    needs_logits: bool = False
    #: tokens, from the start, whose KV the worker holds
    held: int = 0

    @property
    def pending(self) -> int:
        """Tokens that the worker has not seen."""
        return len(self.tokens) - self.held


class Scheduler:
    """The queue, the running sequences and the one sweep that may be under way."""

    def __init__(
        self, *, max_sequences: int, max_queue: int, prefill_chunk: int = 512, rope_border: int | None = None, may_cut: bool = True
    ) -> None:  # fmt: skip
        """``rope_border``: a sequence that grows longer is computed anew from its first token (None: that never happens); ``may_cut``: whether a prompt
        may come in smaller pieces than ``prefill_chunk`` says."""
        self._max_sequences = max_sequences
        self._max_queue = max_queue
        #: tokens of prompts per sweep, and what they were planned to be
        self._prefill_chunk = self._planned_chunk = prefill_chunk
        self._good_sweeps = 0
        self._rope_border = rope_border
        self._may_cut = may_cut
        self._waiting: deque[Sequence] = deque()
        #: in the order of arrival
        self._running: dict[int, Sequence] = {}
        self._in_flight: Sweep | None = None
        self._number = 0
        #: ids whose KV the worker may still hold
        self._dropped: list[int] = []

    # the queue

    @property
    def running(self) -> tuple[int, ...]:
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[int, ...]:
        return tuple(sequence.id for sequence in self._waiting)

    @property
    def in_flight(self) -> Sweep | None:
        return self._in_flight

    def add(self, sequence: Sequence) -> int:
        """Queues it; returns its place (0: it takes part in the next sweep). Raises :class:`QueueFull`."""
        assert sequence.tokens, "a sequence starts with a prompt"
        assert sequence.held == 0, "a new sequence is one that no worker has seen"
        if len(self._running) < self._max_sequences:  # then nobody waits
            self._running[sequence.id] = sequence
            return 0
        if len(self._waiting) >= self._max_queue:
            raise QueueFull
        self._waiting.append(sequence)
        return len(self._waiting)

    def remove(self, sequence_id: int) -> None:
        """It is finished, failed or cancelled. A sweep that it is part of goes on; its row will be ignored."""
        sequence = self._running.pop(sequence_id, None)
        if sequence is None:
            self._waiting = deque(s for s in self._waiting if s.id != sequence_id)
            return
        if sequence.held or self._takes_part(sequence_id):
            self._dropped.append(sequence_id)
        self._promote()

    def sweeps_to_go(self, sequence_id: int) -> int:
        """Sweeps until this running sequence has its next token, the one under way or next included."""
        ahead = 0
        for sequence in self._running.values():
            ahead += sequence.pending if sequence.pending > 1 else 0
            if sequence.id == sequence_id:
                break
        return max(1, -(-ahead // self._prefill_chunk))

    # sweeps

    def drops(self) -> tuple[int, ...]:
        """Ids the worker must forget; said before the next sweep. Each is returned once."""
        dropped, self._dropped = tuple(self._dropped), []
        return dropped

    def compose(self, epoch: int) -> Sweep | None:
        """The next sweep, now under way; None while one is, or while there is nothing to compute."""
        if self._in_flight is not None:
            return None
        steps = tuple(self._steps())
        if not steps:
            return None
        self._number += 1
        self._in_flight = Sweep(epoch, self._number, steps)
        return self._in_flight

    def completed(self, number: int, rows: Iterable[Row]) -> list[tuple[int, Row]]:
        """The sweep under way is done: what it computed is held; returns the rows of sequences that still run.

        Rows of any other sweep are dropped (an empty list). Every row must be answered by :meth:`append` or
        :meth:`remove`.
        """
        sweep = self._in_flight
        if sweep is None or sweep.number != number:
            return []
        self._in_flight = None
        self._good_sweeps += 1
        if self._prefill_chunk < self._planned_chunk and self._good_sweeps >= GOOD_SWEEPS:
            self._prefill_chunk, self._good_sweeps = min(self._planned_chunk, 2 * self._prefill_chunk), 0
        for step in sweep.steps:
            if step.sequence in self._running:
                self._running[step.sequence].held = step.start + len(step.tokens)
        return [(row.sequence, row) for row in rows if row.sequence in self._running]

    def exhausted(self, number: int) -> int | None:
        """The card had not the memory for the sweep under way, and forgot its sequences: they are computed anew, prompts in pieces half as large.

        Returns the youngest of them where smaller pieces are of no help: that one is to be removed.
        """
        sweep = self._in_flight
        if sweep is None or sweep.number != number:
            return None
        self._in_flight = None
        self._good_sweeps = 0
        taken = [self._running[step.sequence] for step in sweep.steps if step.sequence in self._running]
        for sequence in taken:
            sequence.held = 0
        longest = max(len(step.tokens) for step in sweep.steps)
        if longest > LEAST_CHUNK and self._may_cut:
            self._prefill_chunk = max(LEAST_CHUNK, min(self._prefill_chunk, longest) // 2)
            return None
        return taken[-1].id if taken else None

    def append(self, sequence_id: int, token: int) -> None:
        """The sampled token; it is fed in the next sweep."""
        sequence = self._running[sequence_id]
        assert sequence.pending == 0, "a token was sampled before everything before it was computed"
        sequence.tokens.append(token)
        if self._rope_border is not None and len(sequence.tokens) == self._rope_border + 1:
            sequence.held = 0
            self._dropped.append(sequence_id)

    def restarted(self) -> None:
        """The engine is gone, and all KV with it: whatever runs is prefilled again from its first token."""
        self._in_flight = None
        self._prefill_chunk, self._good_sweeps = self._planned_chunk, 0
        self._dropped.clear()
        for sequence in self._running.values():
            sequence.held = 0

    def _promote(self) -> None:
        while self._waiting and len(self._running) < self._max_sequences:
            sequence = self._waiting.popleft()
            self._running[sequence.id] = sequence

    def _steps(self) -> Iterable[Step]:
        budget = self._prefill_chunk
        for sequence in self._running.values():
            count = sequence.pending
            if count > 1:  # prefill, bounded by what is left of this sweep's share
                count = min(count, budget)
                budget -= count
            if count:
                yield _step(sequence, count)

    def _takes_part(self, sequence_id: int) -> bool:
        return self._in_flight is not None and any(step.sequence == sequence_id for step in self._in_flight.steps)


def _step(sequence: Sequence, count: int) -> Step:
    end = sequence.held + count
    tokens, known = tuple(sequence.tokens[sequence.held : end]), len(sequence.tokens)
    if end < known:
        return Step(sequence.id, sequence.held, tokens, known, "nothing")
    return Step(sequence.id, sequence.held, tokens, known, "logits" if sequence.needs_logits else "argmax")
