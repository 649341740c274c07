"""Guesses in the scheduler's sweeps: for whom, how many, and when the draft model is asked. Pure. Who guesses is speculation.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from potatod.messages import Draft, Drafted, DraftText, Step
from potatod.trees import Tree

from .cost import CostModel
from .sequence import Sequence

#: Guesses in a sweep, of all sequences together. With what prompts take they are no more than a prompt's share, for which memory is planned.
LONGEST_DRAFTS: Final = 64


class Drafter(Protocol):
    """Whoever guesses."""

    def draft(self, texts: list[tuple[int, list[int], int]], most: int, sweep_s: Callable[[int], float]) -> dict[int, Tree]: ...
    def verified(self, id: int, guesses: Tree, accepted: list[int]) -> dict[str, tuple[int, int]]: ...
    def forget(self, id: int) -> None: ...
    def said(self, tokens: list[int]) -> None: ...
    def ask(self, epoch: int, texts: list[DraftText], nodes: int, sweep_s: float, spare_s: float) -> Draft | None: ...
    def told(self, drafted: Drafted) -> None: ...
    def restarted(self) -> None: ...


class Guessing:
    def __init__(self, drafter: Drafter | None, costs: CostModel, rope_border: int | None, logits_rows: int) -> None:
        """As Scheduler takes them; without a ``drafter`` nothing is guessed."""
        self._drafter = drafter
        self._costs = costs
        self._rope_border = rope_border
        self._logits_rows = logits_rows
        #: sweeps in which nothing is guessed
        self._resting = 0
        #: what the draft model is busy with, and whether it has been asked since the last sweep
        self._asked: Draft | None = None
        self._consulted = False

    @property
    def busy(self) -> bool:
        """The draft model has not answered yet."""
        return self._asked is not None

    def consult(self, epoch: int, running: Iterable[Sequence], prefill: int) -> Draft | None:
        """What the draft model is to guess before the next sweep, in which so many tokens of prompts may be; None where it is not worth it, or has been
        asked."""
        if self._drafter is None or self._consulted or self._resting > 0:
            return None
        running = list(running)
        decoding = [sequence for sequence in running if sequence.held and sequence.pending == 1]
        many, keys = max(1, len(decoding)), sum(len(sequence.tokens) for sequence in decoding)
        prompts = min(prefill, sum(sequence.pending for sequence in running if sequence.pending > 1))
        spare_s = self._costs.spare_s(many + prompts, keys + sum(sequence.held for sequence in running if sequence.pending > 1))
        texts = list(self._told_of(running, prefill if spare_s > 0 else 0))
        if not texts:
            return None
        self._consulted = True
        self._asked = self._drafter.ask(epoch, texts, LONGEST_DRAFTS, self._costs.sweep_s(many, keys), spare_s)
        return self._asked

    def told(self, drafted: Drafted) -> None:
        """The draft model has answered."""
        if self._asked is not None and self._asked.number == drafted.number and self._drafter is not None:
            self._asked = None
            self._drafter.told(drafted)

    def composed(self) -> None:
        """A sweep has begun: before the next one the draft model may be asked again."""
        self._consulted = False

    def rest(self, sweeps: int) -> None:
        """Nothing is guessed for so many."""
        self._resting = sweeps

    def drafts(self, running: Iterable[Sequence], prefill: int, most: int) -> dict[int, Tree]:
        """Guesses for those that decode, beside ``prefill`` tokens of prompts; both together no more than ``most``."""
        if self._drafter is None or self._resting > 0:
            self._resting -= 1
            return {}
        running = list(running)
        decoding = [sequence for sequence in running if sequence.held and sequence.pending == 1]
        prefill = min(prefill, sum(sequence.pending for sequence in running) - len(decoding))
        keys = sum(len(sequence.tokens) for sequence in decoding)
        rows = self._logits_rows - sum(sequence.needs_logits for sequence in running)  # for guesses of those whose logits are needed

        def sweep_s(more: int) -> float:
            each = keys / max(1, len(decoding))
            return self._costs.sweep_s(len(decoding) + prefill + more, int(keys + (prefill + more) * each))

        texts = [(s.id, s.tokens, room) for s in decoding if (room := self._room(s, rows)) > 0]
        drafts = self._drafter.draft(texts, min(LONGEST_DRAFTS, most - prefill), sweep_s) if texts else {}
        for sequence in decoding:
            if sequence.needs_logits and (draft := drafts.get(sequence.id)):
                if len(draft) > rows:
                    drafts[sequence.id] = draft.only(draft.likeliest()[:rows])
                rows -= len(drafts[sequence.id])
        return drafts

    def verified(self, sequence_id: int, step: Step, accepted: list[int]) -> dict[str, tuple[int, int]]:
        """See Scheduler.verified()."""
        return {} if self._drafter is None else self._drafter.verified(sequence_id, Tree.of(step), accepted)

    def forget(self, sequence_id: int) -> None:
        if self._drafter is not None:
            self._drafter.forget(sequence_id)

    def said(self, tokens: list[int]) -> None:
        """A text that is over, and may be guessed from."""
        if self._drafter is not None:
            self._drafter.said(tokens)

    def restarted(self) -> None:
        """The engine is gone."""
        if self._drafter is not None:
            self._drafter.restarted()
        self._asked = None
        self._consulted = False

    def _told_of(self, running: Iterable[Sequence], ahead: int) -> Iterator[DraftText]:
        """Of prompts what is held, since the draft model's KV is counted with that; and those ``ahead`` tokens that the sweep will bring."""
        for s in running:
            decodes = s.held > 0 and s.pending == 1
            coming = 1 if decodes else min(s.pending, ahead)
            ahead -= 0 if decodes else coming
            if tokens := s.tokens[: s.held + coming]:
                yield DraftText(s.id, tuple(tokens), self._room(s, self._logits_rows) if decodes else 0, self._left(s), s.drawn)

    def _room(self, sequence: Sequence, rows: int) -> int:
        """How far guesses may go; ``rows`` of logits are left where it needs those."""
        return min(self._left(sequence), rows if sequence.needs_logits else LONGEST_DRAFTS)

    def _left(self, sequence: Sequence) -> int:
        """Tokens that may follow it, but for the one that is sampled behind guesses."""
        least = min(sequence.most, sequence.most if self._rope_border is None or sequence.is_long(self._rope_border) else self._rope_border)
        return max(0, least - len(sequence.tokens) - 1)
