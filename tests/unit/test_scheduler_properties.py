"""The scheduler under whatever order of events: arrivals, sweeps, cancels, restarts, with KV for two of the longest texts.

A model worker keeps the KV as DESIGN says and refuses what the real one would. Its "model" is a function of all tokens
so far, so that a token fed twice, left out or moved changes every token after it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from guessing import branches_of, paths_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from schedulers import scheduler

from potatod.front.queue import QueueFull
from potatod.front.sequence import Sequence
from potatod.kv_layout import BLOCK, KvGroup, KvLayout, blocks, first_kept, first_read
from potatod.messages import Cut, Draft, Drafted, DraftText, Drop, Fork, Row, Sweep
from potatod.trees import Tree

VOCABULARY = 1009
CHUNK = 90
PLACES = 3
QUEUE = 4
#: A sequence that grows longer is computed anew, as under longrope.
BORDER = 200
#: A text is no longer than this.
CONTEXT = 330
WINDOW = 40
LAYOUTS = {
    "one group": KvLayout((KvGroup(None, 3),)),
    "a window": KvLayout((KvGroup(None, 1), KvGroup(WINDOW, 2))),
    "states": KvLayout((KvGroup(None, 2),), 700, forks=False),
}


def next_token(tokens: list[int]) -> int:
    state = 1
    for token in tokens:
        state = (state * 31 + token + 1) % 1_000_003
    return state % VOCABULARY


def undisturbed(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class ModelWorker:
    """KV as blocks that are shared, counted in bytes one by one."""

    def __init__(self, layout: KvLayout) -> None:
        self.layout = layout
        self.kv: dict[int, list[int]] = {}
        #: blocks of each sequence, for each group of layers; equal objects are one block
        self.blocks: dict[int, list[dict[int, object]]] = {}
        #: tokens that were known in the last step, and its branches
        self.guessed: dict[int, tuple[int, list[list[int]]]] = {}
        #: whether that KV was begun beyond the border
        self.long: dict[int, bool] = {}

    @property
    def bytes(self) -> int:
        distinct = [{block for chains in self.blocks.values() for block in chains[number].values()} for number in range(len(self.layout.groups))]
        sizes = (len(found) * BLOCK * group.bytes_per_token for found, group in zip(distinct, self.layout.groups, strict=True))
        return sum(sizes) + self.layout.state_bytes * len(self.kv)

    def obey(self, order: Drop | Fork | Cut) -> None:
        if isinstance(order, Cut):
            if order.branch is not None:
                known, branches = self.guessed[order.sequence]
                assert known < order.length <= known + len(branches[order.branch]) <= len(self.kv[order.sequence])
                self.kv[order.sequence][known:] = branches[order.branch]
            del self.kv[order.sequence][order.length :]
            for chain in self.blocks[order.sequence]:
                for index in [index for index in chain if index >= blocks(order.length)]:
                    del chain[index]
            return
        if isinstance(order, Drop):
            self.kv.pop(order.sequence)
            self.blocks.pop(order.sequence)
            return
        assert self.layout.forks
        assert order.sequence not in self.kv, "a sequence begins once"
        self.kv[order.sequence] = self.kv[order.of][: order.length]
        assert len(self.kv[order.sequence]) == order.length > 0
        self.long[order.sequence] = self.long[order.of]
        self.blocks[order.sequence] = []
        for group, chain in zip(self.layout.groups, self.blocks[order.of], strict=True):
            first = first_kept(group.window, order.length)
            taken = {index: chain[index] for index in range(first, blocks(order.length)) if index in chain}
            assert all(index in taken for index in range(first_read(group.window, order.length), blocks(order.length)))
            if order.length % BLOCK:
                taken[order.length // BLOCK] = object()
            self.blocks[order.sequence].append(taken)

    def serve(self, sweep: Sweep, budget: int) -> list[Row]:
        rows = []
        assert len({step.sequence for step in sweep.steps}) == len(sweep.steps) <= PLACES
        assert sum(len(s.tokens) - s.drafted for s in sweep.steps if len(s.tokens) - s.drafted > 1) <= CHUNK
        for step in sweep.steps:
            held = self.kv.setdefault(step.sequence, [])
            assert step.start == len(held), "a step goes on where the KV ends"
            assert step.tokens, "a step has tokens"
            if not held:
                self.long[step.sequence] = step.known > BORDER
                self.blocks[step.sequence] = [{} for _ in self.layout.groups]
            assert self.long[step.sequence] == (step.known > BORDER), "no KV of a short text stays where the text has grown long"
            assert (step.want == "nothing") == (step.start + len(step.tokens) < step.known)
            assert step.drafted == 0 or (self.layout.forks and len(step.tokens) == 1 + step.drafted)
            held.extend(step.tokens)
            for group, chain in zip(self.layout.groups, self.blocks[step.sequence], strict=True):
                for index in [index for index in chain if index < first_kept(group.window, step.start)]:
                    del chain[index]
                for index in range(blocks(step.start), blocks(len(held))):
                    chain[index] = object()
            known = len(held) - step.drafted
            self.guessed[step.sequence] = known, branches_of(step)
            if step.want != "nothing":
                rows += (Row(step.sequence, token=next_token([*held[:known], *path])) for path in paths_of(step))
        assert self.bytes <= budget, "no more KV than there is room for"
        return rows


class Guesses:
    """Some right, some wrong, some of both, by chance; one way to go on, or several."""

    def __init__(self) -> None:
        self.chance = random.Random(1)
        self.asked: list[Draft] = []

    def draft(self, texts: list[tuple[int, list[int], int]], most: int, sweep_s: Callable[[int], float]) -> dict[int, Tree]:
        drafts = {}
        for id, tokens, room in texts:
            assert room > 0
            tree = Tree()
            for _ in range(self.chance.randrange(4)):
                guesses = undisturbed(tokens, self.chance.randrange(min(room, 6) + 1))
                if guesses and self.chance.random() < 0.5:
                    guesses[self.chance.randrange(len(guesses))] = self.chance.randrange(3)
                tree.add_path(guesses, [1.0] * len(guesses), "chance")
            most -= len(tree)
            if len(tree) and most >= 0:
                drafts[id] = tree.only(range(len(tree)))
        return drafts

    def ask(self, epoch: int, texts: list[DraftText], nodes: int, sweep_s: float, spare_s: float) -> Draft | None:
        if self.chance.random() < 0.5:
            return None
        self.asked.append(Draft(epoch, len(self.asked) + 1, tuple(texts), nodes, 64, sweep_s, spare_s))
        return self.asked[-1]

    def told(self, drafted: Drafted) -> None:
        assert drafted.number == len(self.asked)

    def restarted(self) -> None:
        pass

    def verified(self, id: int, guesses: Tree, accepted: list[int]) -> dict[str, tuple[int, int]]:
        assert guesses.node(accepted) is not None
        return {}

    def forget(self, id: int) -> None:
        pass

    def said(self, tokens: list[int]) -> None:
        pass


class Life(RuleBasedStateMachine):
    @initialize(layout=st.sampled_from(sorted(LAYOUTS)), texts=st.sampled_from([1, 2]), more=st.integers(0, 2000))
    def begin(self, layout: str, texts: int, more: int) -> None:
        self.layout = LAYOUTS[layout]
        self.budget = texts * self.layout.bytes_of(CONTEXT, CHUNK) + more
        self.scheduler = scheduler(running=PLACES, queue=QUEUE, chunk=CHUNK, border=BORDER, kv=self.budget, layout=self.layout, drafter=Guesses())
        self.worker = ModelWorker(self.layout)
        self.epoch = 1
        self.sweep: Sweep | None = None
        self.draft: Draft | None = None
        self.prompts: dict[int, list[int]] = {}
        self.answers: dict[int, list[int]] = {}
        self.arrived: list[int] = []
        self.last_id = 0

    @rule(
        beginning=st.sampled_from([0, 3, 100, 190]), again=st.booleans(), length=st.integers(1, 120), rank=st.integers(0, 1), data=st.data(),
    )  # fmt: skip
    def arrive(self, beginning: int, again: bool, length: int, rank: int, data: st.DataObject) -> None:
        """Many texts begin alike, and some go on from an earlier one with its answer."""
        self.last_id += 1
        prompt = [5] * beginning + [self.last_id] * length
        if again and self.prompts:
            earlier = data.draw(st.sampled_from(sorted(self.prompts)))
            prompt = (self.prompts[earlier] + self.answers[earlier])[: CONTEXT - 20] + [9] * data.draw(st.integers(0, 3))
        try:
            self.scheduler.add(Sequence(self.last_id, list(prompt), rank=rank, most=CONTEXT))
        except QueueFull:
            assert len(self.scheduler.waiting) >= QUEUE
            return
        self.prompts[self.last_id] = prompt
        self.answers[self.last_id] = []
        self.arrived.append(self.last_id)

    @precondition(lambda self: self.sweep is None)
    @rule()
    def send(self) -> None:
        self.consult()
        if self.draft is not None:
            assert self.scheduler.compose(self.epoch) is None, "a sweep waits for what is guessed"
            self.scheduler.told(Drafted(self.epoch, self.draft.number, (), 0.1))
            self.draft = None
        self.sweep = self.scheduler.compose(self.epoch)
        for order in self.scheduler.orders():
            self.worker.obey(order)
        assert (self.sweep is None) == (not self.arrived), "whoever runs or waits is not forgotten"

    @precondition(lambda self: self.sweep is None)
    @rule()
    def consult(self) -> None:
        """Whatever may happen happens while the draft model is busy, too."""
        if self.draft is None and (draft := self.scheduler.consult(self.epoch)) is not None:
            self.draft = draft
            for text in draft.texts:
                known = self.prompts[text.sequence] + self.answers[text.sequence]
                assert list(text.tokens) == (known if text.most else known[: len(text.tokens)])

    @precondition(lambda self: self.sweep is not None)
    @rule()
    def complete(self) -> None:
        assert self.sweep is not None
        rows = self.worker.serve(self.sweep, self.budget)
        for sequence, found in self.scheduler.completed(self.sweep.number, rows):
            step = next(step for step in self.sweep.steps if step.sequence == sequence)
            assert len(found) == step.wanted
            at: int | None = 0
            accepted: list[int] = []
            while at is not None:
                assert paths_of(step)[at] == accepted, "the row behind what was sampled"
                token = found[at].token
                assert token is not None
                self.answers[sequence].append(token)
                at = self.scheduler.append(sequence, token)
                if at is not None:
                    accepted.append(token)
                if len(self.prompts[sequence]) + len(self.answers[sequence]) >= CONTEXT:
                    self.scheduler.remove(sequence)
                    self.arrived.remove(sequence)
                    break
            self.scheduler.verified(sequence, step, accepted)
        self.sweep = None

    @rule(sweeps=st.integers(1, 60))
    def go_on(self, sweeps: int) -> None:
        for _ in range(sweeps):
            if self.sweep is None:
                self.send()
            if self.sweep is not None:
                self.complete()

    @rule(data=st.data(), keep=st.booleans())
    def end(self, data: st.DataObject, keep: bool) -> None:
        if self.arrived:
            sequence = data.draw(st.sampled_from(self.arrived))
            self.scheduler.remove(sequence, keep)
            self.arrived.remove(sequence)

    @precondition(lambda self: self.sweep is not None)
    @rule()
    def card_is_full(self) -> None:
        """The worker forgets what took part."""
        assert self.sweep is not None
        failed = self.scheduler.exhausted(self.sweep.number)
        for order in self.scheduler.orders():
            self.worker.obey(order)
        for step in self.sweep.steps:
            self.worker.kv.pop(step.sequence, None)
            self.worker.blocks.pop(step.sequence, None)
        if failed is not None:
            self.scheduler.remove(failed, keep=False)
            self.arrived.remove(failed)
        self.sweep = None

    @rule(computed=st.booleans())
    def engine_dies(self, computed: bool) -> None:
        if self.sweep is not None and computed:  # its rows come too late
            late = self.worker.serve(self.sweep, self.budget)
            self.scheduler.restarted()
            assert self.scheduler.completed(self.sweep.number, late) == []
        else:
            self.scheduler.restarted()
        self.sweep, self.draft, self.worker, self.epoch = None, None, ModelWorker(self.layout), self.epoch + 1

    @invariant()
    def every_answer_is_what_it_would_be_alone(self) -> None:
        for sequence, answer in getattr(self, "answers", {}).items():
            assert answer == undisturbed(self.prompts[sequence], len(answer))

    @invariant()
    def nobody_is_lost(self) -> None:
        if hasattr(self, "scheduler"):
            assert sorted([*self.scheduler.running, *self.scheduler.waiting]) == sorted(self.arrived)

    @invariant()
    def the_ledger_counts_what_the_worker_has(self) -> None:
        if getattr(self, "sweep", 1) is None:
            for order in self.scheduler.orders():
                self.worker.obey(order)
            assert self.scheduler.ledger.used_bytes == self.worker.bytes

    def teardown(self) -> None:
        """Nothing lost: whoever is left goes on to get more tokens, restarts or not."""
        if not hasattr(self, "scheduler"):
            return
        goal = {sequence: len(self.answers[sequence]) + 2 for sequence in self.arrived}
        for _ in range(600):
            if not self.arrived:
                break
            if self.sweep is None:
                self.send()
            self.complete()
            for sequence in [s for s in self.arrived if len(self.answers[s]) >= goal[s]]:
                self.scheduler.remove(sequence)
                self.arrived.remove(sequence)
        assert not self.arrived, "someone starves"
        self.every_answer_is_what_it_would_be_alone()


TestLife = pytest.mark.slow(Life.TestCase)
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
