"""Which tokens go into the next sweep. Pure: no clock, no socket, no text.

    waiting ──a place and KV are free──▶ running ──▶ compose() ─▶ Sweep ─▶ worker ─▶ Rows ─▶ completed()
       ▲                                  │   ▲                                                │ wanted rows
       └───── set aside: no KV left ──────┘   └─────────────── append(token) ◀── sampler ◀─────┘

A sweep costs one pass over the weights whatever it computes, so every running sequence that has one token to feed takes part in each; what is left
to prefill shares as many tokens per sweep as the cost model says are free, in the order of priority and arrival. A sequence counts the tokens whose KV
the worker holds (``held``), and everything else follows: whose KV is gone, since the engine died or others needed the room, has ``held`` = 0, and the
same rule prefills prompt and answer again; who begins like another one starts with what that one holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from potatod.kv_layout import BLOCK
from potatod.messages import Cut, Draft, Drafted, Drop, Fork, Row, Step, Sweep
from potatod.trees import ROOT, Tree

from .cost import CostModel
from .guessing import Drafter, Guessing
from .ledger import Ledger
from .queue import Queue, QueueFull, Reuse
from .sequence import Sequence, step_of

#: A card's memory may be too small for a prompt's share of a sweep; it is halved down to this, and doubled again after so many sweeps that were not.
LEAST_CHUNK: Final = 16
GOOD_SWEEPS: Final = 64
#: Who begins like a sequence that is being prefilled waits for it where that spares so many tokens.
WORTH_WAITING: Final = 32


class Scheduler:
    """The queue, the running sequences and the one sweep that may be under way."""

    def __init__(
        self, *, max_sequences: int, max_queue: int, ledger: Ledger, costs: CostModel, prefill_chunk: int = 512, prefill_share: float = 0.5,
        rope_border: int | None = None, may_cut: bool = True, drafter: Drafter | None = None, logits_rows: int = 1 << 30,
    ) -> None:  # fmt: skip
        """``prefill_chunk``: most tokens of prompts in a sweep; ``prefill_share``: so much longer a sweep may become for them while others decode.
        ``rope_border``: a sequence that grows longer is computed anew from its first token (None: that never happens); ``may_cut``: whether a prompt
        may come in smaller pieces than ``prefill_chunk`` says. ``drafter`` guesses tokens, where KV can be cut; ``logits_rows``: of a sweep, so many
        rows may be wanted with all their logits."""
        self.ledger = ledger
        self.reuse = Reuse()
        self._queue = Queue(max_sequences, max_queue, ledger, self.reuse, rope_border)
        self._costs = costs
        #: tokens of prompts per sweep, and what they were planned to be
        self._prefill_chunk = self._planned_chunk = prefill_chunk
        self._prefill_share = prefill_share
        self._good_sweeps = 0
        self._rope_border = rope_border
        self._may_cut = may_cut
        self._guessing = Guessing(drafter if ledger.forks else None, costs, rope_border, logits_rows)
        #: that take part in the sweep under way and are over, and whether what is held of them may be kept
        self._leaving: dict[int, tuple[Sequence, bool]] = {}
        self._in_flight: Sweep | None = None
        self._number = 0

    # the queue

    @property
    def running(self) -> tuple[int, ...]:
        return tuple(sequence.id for sequence in self._queue.running)

    @property
    def waiting(self) -> tuple[int, ...]:
        return tuple(sequence.id for sequence in self._queue.waiting)

    @property
    def rank(self) -> int | None:
        """Of whoever goes first; None where nobody runs or waits."""
        first = (*self._queue.running[:1], *self._queue.waiting[:1])
        return min((sequence.rank for sequence in first), default=None)

    @property
    def in_flight(self) -> Sweep | None:
        return self._in_flight

    @property
    def reading(self) -> frozenset[int]:
        """Of those that run: whose texts are not held yet."""
        return frozenset(sequence.id for sequence in self._queue.running if sequence.pending > 1)

    @property
    def busy(self) -> bool:
        """Whether a sweep is under way, or the draft model guesses for the next one."""
        return self._in_flight is not None or self._guessing.busy

    def room_for(self, count: int) -> bool:
        """Whether so many sequences more would be taken."""
        return self._queue.room_for(count)

    def add(self, sequence: Sequence, *, beyond: bool = False) -> int:
        """Queues it, ``beyond`` however full the queue is; returns its place (0: it takes part in the next sweep). Raises :class:`QueueFull`."""
        assert sequence.tokens, "a sequence starts with a prompt"
        assert sequence.held == 0, "a new sequence is one that no worker has seen"
        if not (beyond or self.room_for(1)):
            raise QueueFull
        self._queue.wait(sequence)
        self._promote(may_put_aside=self._in_flight is None)
        return self._queue.waiting.index(sequence) + 1 if sequence in self._queue.waiting else 0

    def remove(self, sequence_id: int, keep: bool = True) -> None:
        """It is finished, failed or cancelled; ``keep``: others may go on from what the worker holds of it. A sweep that it is part of goes on; its
        row will be ignored."""
        for sequence in self._queue.waiting:
            if sequence.id == sequence_id:
                self._queue.waiting.remove(sequence)
                self._guessing.forget(sequence_id)
                if not keep:
                    self.ledger.forget(sequence_id)  # where it was set aside
                return
        for sequence in self._queue.running:
            if sequence.id == sequence_id:
                self._queue.running.remove(sequence)
                if self._takes_part(sequence_id):
                    self._leaving[sequence_id] = sequence, keep
                else:
                    self._over(sequence, keep)
                self._promote(may_put_aside=False)
                return

    def sweeps_to_go(self, sequence_id: int) -> int:
        """Sweeps until this running sequence has its next token, the one under way or next included."""
        ahead = 0
        for sequence in self._queue.running:
            ahead += sequence.pending if sequence.pending > 1 else 0
            if sequence.id == sequence_id:
                break
        return max(1, -(-ahead // max(1, self._prefill_tokens())))

    def prefill_tokens(self) -> int:
        """Tokens of prompts that the next sweep may take."""
        return max(1, self._prefill_tokens())

    # sweeps

    def orders(self) -> tuple[Drop | Fork | Cut, ...]:
        """What the worker is to forget and to begin; said before the next sweep. Each is returned once."""
        return self.ledger.orders()

    def consult(self, epoch: int) -> Draft | None:
        """What the draft model is to guess before the next sweep is composed; None where it is not worth it, or has been asked."""
        return None if self._in_flight is not None else self._guessing.consult(epoch, self._queue.running, self._prefill_tokens())

    def told(self, drafted: Drafted) -> None:
        """The draft model has answered."""
        self._guessing.told(drafted)

    def compose(self, epoch: int) -> Sweep | None:
        """The next sweep, now under way; None while one is or the draft model is busy, or while there is nothing to compute."""
        if self.busy:
            return None
        self._promote(may_put_aside=True)
        steps = tuple(self._steps())
        if not steps:
            self._guessing.composed()  # who comes next is to be guessed for
            return None
        self._guessing.composed()
        self._number += 1
        self._in_flight = Sweep(epoch, self._number, steps)
        return self._in_flight

    def completed(self, number: int, rows: Iterable[Row]) -> list[tuple[int, list[Row]]]:
        """The sweep under way is done: what it computed is held; returns the rows of sequences that still run, each one's together.

        Rows of any other sweep are dropped (an empty list). A sequence's first row must be answered by :meth:`append` or :meth:`remove`, and the
        next one where append says so.
        """
        sweep = self._in_flight
        if sweep is None or sweep.number != number:
            return []
        self._in_flight = None
        self._good_sweeps += 1
        if self._prefill_chunk < self._planned_chunk and self._good_sweeps >= GOOD_SWEEPS:
            self._prefill_chunk, self._good_sweeps = min(self._planned_chunk, 2 * self._prefill_chunk), 0
        running = {sequence.id: sequence for sequence in self._queue.running}
        for step in sweep.steps:
            sequence = running.get(step.sequence) or self._leaving[step.sequence][0]
            sequence.held = step.start + len(step.tokens) - step.drafted
            sequence.guesses, sequence.at = Tree.of(step), ROOT
        for sequence, keep in self._leaving.values():
            self._over(sequence, keep)
        self._leaving.clear()
        found: dict[int, list[Row]] = {}
        for row in rows:
            if row.sequence in running:
                found.setdefault(row.sequence, []).append(row)
        return list(found.items())

    def exhausted(self, number: int) -> int | None:
        """The card had not the memory for the sweep under way, and forgot its sequences: they are computed anew, without kept texts beside them, then
        without guesses, then with prompts in pieces half as large.

        Returns the youngest of them where smaller pieces are of no help: that one is to be removed.
        """
        sweep = self._in_flight
        if sweep is None or sweep.number != number:
            return None
        self._in_flight = None
        self._good_sweeps = 0
        for id in self._leaving:
            self._guessing.forget(id)
        self._leaving.clear()
        parts = {step.sequence for step in sweep.steps}
        taken = [sequence for sequence in self._queue.running if sequence.id in parts]
        for id in parts:
            self.ledger.lost(id)
        for sequence in taken:
            sequence.anew()
        if self.ledger.forget_kept():
            return None
        if any(step.drafted for step in sweep.steps):
            self._guessing.rest(GOOD_SWEEPS)
            return None
        longest = max(len(step.tokens) for step in sweep.steps)
        if longest > LEAST_CHUNK and self._may_cut:
            self._prefill_chunk = max(LEAST_CHUNK, min(self._prefill_chunk, longest) // 2)
            return None
        return max(taken, key=lambda s: s.turn).id if taken else None

    def append(self, sequence_id: int, token: int) -> int | None:
        """The sampled token, after which the sequence shares sweeps again. Where it was guessed it has been fed already, and which of the
        sequence's rows is what follows it is returned; else it is fed in the next sweep."""
        sequence = next(s for s in self._queue.running if s.id == sequence_id)
        assert sequence.pending == 0, "a token was sampled before everything before it was computed"
        sequence.tokens.append(token)
        sequence.alone = False
        node = sequence.guesses.child(sequence.at, token)
        if node is not None:
            sequence.at = node
            sequence.held += 1
        else:
            self._forget_guesses(sequence)
        if self._rope_border is not None and len(sequence.tokens) == self._rope_border + 1:
            sequence.anew()
            self.ledger.forget(sequence_id)
            return None
        return None if node is None else node + 1

    def verified(self, sequence_id: int, step: Step, accepted: list[int]) -> dict[str, tuple[int, int]]:
        """Of this sequence's guesses in the last sweep these were right, one after the other. Returns of each source how many it had guessed, and how
        many of them were right."""
        return self._guessing.verified(sequence_id, step, accepted)

    def isolate(self, sequence_ids: Iterable[int]) -> None:
        """An engine has died of one of them, as it seems: each computes its next token in a sweep of its own, so that only the guilty one fails."""
        for sequence in (*self._queue.running, *self._queue.waiting):
            sequence.alone |= sequence.id in sequence_ids

    def restarted(self) -> None:
        """The engine is gone, and all KV with it: whatever runs is prefilled again from its first token."""
        self._guessing.restarted()
        self._in_flight = None
        self._prefill_chunk, self._good_sweeps = self._planned_chunk, 0
        for id in self._leaving:
            self._guessing.forget(id)
        self._leaving.clear()
        self.ledger.reset()
        for sequence in self._queue.running:
            sequence.anew()

    # who runs

    def _promote(self, *, may_put_aside: bool) -> None:
        self._queue.promote(self._prefill_chunk, may_put_aside=may_put_aside)

    def _forget_guesses(self, sequence: Sequence) -> None:
        """Those that are left were wrong, or come after the end."""
        run = sequence.guesses.run_of(sequence.at)
        sequence.guesses, sequence.at = Tree(), ROOT
        self.ledger.cut(sequence.id, sequence.held, run - 1 if run else None)

    def _over(self, sequence: Sequence, keep: bool) -> None:
        self._guessing.forget(sequence.id)
        if keep:
            self._guessing.said(sequence.tokens)
        if sequence.held:
            self._forget_guesses(sequence)
        if keep:
            self.ledger.keep(sequence.id, sequence.tokens[: sequence.held])
        else:
            self.ledger.forget(sequence.id)

    # what they compute

    def _steps(self) -> Iterator[Step]:
        """In turn, so that whoever must be set aside for another has no step yet."""
        budget = self._prefill_tokens()
        drafts = self._guessing.drafts(self._queue.running, budget, self._prefill_chunk)
        alone = next((sequence for sequence in self._queue.running if sequence.alone), None)
        for sequence in list(self._queue.running) if alone is None else [alone]:
            if sequence not in self._queue.running or (sequence.pending > 1 and budget <= 0) or (sequence.held == 0 and not self._begin(sequence)):
                continue
            count = min(sequence.pending, max(1, budget))
            if sequence.pending > 1:
                count = min(count, budget)
                budget -= count
            draft = self._fitting(sequence, drafts.get(sequence.id))
            if draft:
                yield step_of(sequence, 1, draft)
            elif count and self._grow(sequence, count):
                yield step_of(sequence, count)

    def _fitting(self, sequence: Sequence, draft: Tree | None) -> Tree | None:
        """Those guesses for which there is room, as that is taken: all, or those that lie in the block that the sequence has already."""
        if not draft:
            return None
        held = sequence.held
        if self.ledger.grow(sequence.id, held, held + 1 + len(draft.trunk()), self._queue.is_long(sequence)):
            return draft
        inside = -(held + 1) % BLOCK
        draft = draft.only([node for node in range(len(draft)) if draft.depth(node) <= inside])
        return draft if draft and self.ledger.grow(sequence.id, held, held + 1 + len(draft.trunk()), self._queue.is_long(sequence)) else None

    def _prefill_tokens(self) -> int:
        """Tokens of prompts that the next sweep may take."""
        decoding = [sequence for sequence in self._queue.running if sequence.held and sequence.pending == 1]
        if not decoding or not self._may_cut:
            return self._prefill_chunk
        free = self._costs.free(len(decoding), sum(len(s.tokens) for s in decoding), self._prefill_chunk, self._prefill_share)
        return max(min(LEAST_CHUNK, self._prefill_chunk), free)

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Room for so many tokens more; False where that one itself had to be set aside."""
        while not self.ledger.grow(sequence.id, sequence.held, sequence.held + count, self._queue.is_long(sequence)):
            last = self._queue.running[-1]
            assert last is not sequence or len(self._queue.running) > 1, "the budget holds one text of the whole context"
            self._queue.put_aside(last)
            if last is sequence:
                return False
        return True

    def _begin(self, sequence: Sequence) -> bool:
        """Whether it may start now, with what another sequence holds of its beginning or with nothing; False where it is better to wait for one."""
        sequence.held = self.ledger.revive(sequence.id)
        if sequence.held:
            return True
        of, length = self.ledger.match(sequence.tokens, self._queue.is_long(sequence)) or (0, 0)
        coming = 0
        for other in self._queue.running:
            if other is sequence:
                continue
            shared = min(self._queue.alike(sequence, other), len(sequence.tokens) - 1)
            if other.turn < sequence.turn and other.pending > 1:
                coming = max(coming, shared)
            if length < (here := min(shared, other.held)) and self.ledger.forkable(other.id, here):
                of, length = other.id, here
        if coming >= length + WORTH_WAITING and not sequence.alone:
            return False
        if length and self.ledger.fork(sequence.id, of, length):
            sequence.held = length
        if not sequence.begun:
            sequence.begun = True
            self.reuse.prompt_tokens += len(sequence.tokens)
            self.reuse.reused_tokens += sequence.held
        return True

    def _takes_part(self, sequence_id: int) -> bool:
        return self._in_flight is not None and any(step.sequence == sequence_id for step in self._in_flight.steps)
