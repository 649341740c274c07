"""The scheduler under whatever order of events: arrivals, sweeps, cancels, restarts.

A model worker keeps the KV as DESIGN says and refuses what the real one would. Its "model" is a function of all tokens
so far, so that a token fed twice, left out or moved changes every token after it.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from potatod.front.scheduler import QueueFull, Scheduler, Sequence
from potatod.messages import Row, Sweep

VOCABULARY = 1009
CHUNK = 5
PLACES = 3
QUEUE = 4
#: A sequence that grows longer is computed anew, as under longrope.
BORDER = 12


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
    def __init__(self) -> None:
        self.kv: dict[int, list[int]] = {}
        #: whether that KV was begun beyond the border
        self.long: dict[int, bool] = {}

    def serve(self, sweep: Sweep) -> list[Row]:
        rows = []
        assert len({step.sequence for step in sweep.steps}) == len(sweep.steps) <= PLACES
        assert sum(len(s.tokens) for s in sweep.steps if len(s.tokens) > 1) <= CHUNK
        for step in sweep.steps:
            held = self.kv.setdefault(step.sequence, [])
            assert step.start == len(held), "a step goes on where the KV ends"
            assert step.tokens, "a step has tokens"
            if not held:
                self.long[step.sequence] = step.known > BORDER
            assert self.long[step.sequence] == (step.known > BORDER), "no KV of a short text stays where the text has grown long"
            assert (step.want == "nothing") == (step.start + len(step.tokens) < step.known)
            held.extend(step.tokens)
            if step.want != "nothing":
                rows.append(Row(step.sequence, token=next_token(held)))
        assert len(self.kv) <= PLACES, "no more KV than there are places"
        return rows


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_sequences=PLACES, max_queue=QUEUE, prefill_chunk=CHUNK, rope_border=BORDER)
        self.worker = ModelWorker()
        self.epoch = 1
        self.sweep: Sweep | None = None
        self.prompts: dict[int, list[int]] = {}
        self.answers: dict[int, list[int]] = {}
        self.arrived: list[int] = []
        self.last_id = 0

    @rule(prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=14))
    def arrive(self, prompt: list[int]) -> None:
        self.last_id += 1
        try:
            self.scheduler.add(Sequence(self.last_id, list(prompt)))
        except QueueFull:
            assert (len(self.scheduler.waiting), len(self.scheduler.running)) == (QUEUE, PLACES)
            return
        self.prompts[self.last_id] = prompt
        self.answers[self.last_id] = []
        self.arrived.append(self.last_id)

    @precondition(lambda self: self.sweep is None)
    @rule()
    def send(self) -> None:
        self.sweep = self.scheduler.compose(self.epoch)
        for sequence in self.scheduler.drops():
            self.worker.kv.pop(sequence, None)
        assert (self.sweep is None) == (not self.arrived), "whoever runs or waits is not forgotten"

    @precondition(lambda self: self.sweep is not None)
    @rule()
    def complete(self) -> None:
        assert self.sweep is not None
        rows = self.worker.serve(self.sweep)
        for sequence, row in self.scheduler.completed(self.sweep.number, rows):
            assert row.token is not None
            self.answers[sequence].append(row.token)
            self.scheduler.append(sequence, row.token)
        self.sweep = None

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.arrived:
            sequence = data.draw(st.sampled_from(self.arrived))
            self.scheduler.remove(sequence)
            self.arrived.remove(sequence)

    @rule(computed=st.booleans())
    def engine_dies(self, computed: bool) -> None:
        if self.sweep is not None and computed:  # its rows come too late
            late = self.worker.serve(self.sweep)
            self.scheduler.restarted()
            assert self.scheduler.completed(self.sweep.number, late) == []
        else:
            self.scheduler.restarted()
        self.sweep, self.worker, self.epoch = None, ModelWorker(), self.epoch + 1

    @invariant()
    def every_answer_is_what_it_would_be_alone(self) -> None:
        for sequence, answer in self.answers.items():
            assert answer == undisturbed(self.prompts[sequence], len(answer))

    @invariant()
    def places_go_to_who_came_first(self) -> None:
        assert [*self.scheduler.running, *self.scheduler.waiting] == self.arrived

    def teardown(self) -> None:
        """Nothing lost: whoever is left goes on to get more tokens, restarts or not."""
        goal = {sequence: len(self.answers[sequence]) + 2 for sequence in self.arrived}
        for _ in range(400):
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
TestLife.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
