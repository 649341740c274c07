"""Jobs from the queue to their last message, without a socket or a disk and with a clock that the test moves."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from schedulers import scheduler

from potato_client.protocol import Finished, Piece, Progress, Refused
from potatod.front.answers import POISONED_AFTER, Answers
from potatod.front.followers import Followers
from potatod.front.guessing import Drafter
from potatod.front.outlook import EngineNow, Outlook
from potatod.front.refusal import Refusal
from potatod.front.sweep_times import SweepTimes
from potatod.front.text import Shown
from potatod.jobs.database import Changed, Gathered, Said, Write
from potatod.jobs.job import Ask, Job
from potatod.jobs.rows import Answered
from potatod.jobs.states import State
from potatod.messages import Draft, Drafted, DraftText, Row, Rows, Sweep
from potatod.sampling.params import Sampling
from potatod.trees import Tree

from .test_jobs import job

END = 0
UP = EngineNow(up=True, layers_done=0, layers=4, under_way_s=0.0)


class Numbers:
    """Text of tokens as numbers; the token 13 makes it fail."""

    stopped = False

    def push(self, token: int) -> Shown:
        if token == 13:
            raise UnicodeError("no such text")
        return Shown((token,), f"{token} ", "")

    def finish(self) -> Shown:
        return Shown((), "", "")


class Three:
    """Guesses that three more tokens are like this one."""

    def draft(self, texts: list[tuple[int, list[int], int]], most: int, sweep_s: Callable[[int], float]) -> dict[int, Tree]:
        trees = {id: Tree() for id, _, room in texts if room >= 3}
        for tree in trees.values():
            tree.add_path([5, 5, 5], [1.0, 1.0, 1.0], "test")
        return trees

    def verified(self, id: int, guesses: Tree, accepted: list[int]) -> dict[str, tuple[int, int]]:
        return {"test": (3, len(accepted))}

    def forget(self, id: int) -> None: ...

    def said(self, tokens: list[int]) -> None: ...

    def ask(self, epoch: int, texts: list[DraftText], nodes: int, sweep_s: float, spare_s: float) -> Draft | None: ...

    def told(self, drafted: Drafted) -> None: ...

    def restarted(self) -> None: ...


class Paper:
    """A diary that is durable at once, or when the test says so."""

    def __init__(self) -> None:
        self.written: list[Write] = []
        self.held: list[Callable[[], None]] | None = None

    def write(self, *writes: Write, then: Callable[[], None] | None = None) -> None:
        self.written += writes
        if then is not None:
            self.then(then)

    def then(self, do: Callable[[], None]) -> None:
        if self.held is None:
            do()
        else:
            self.held.append(do)

    def of(self, kind: type) -> list[Any]:
        return [each for each in self.written if type(each) is kind]


@dataclass
class World:
    """Answers, a clock, and everything that was sent."""

    running: int = 2
    queue: int = 2
    now: float = 100.0
    sent: list[tuple[bytes, Any]] = field(default_factory=list)
    paper: Paper = field(default_factory=Paper)
    changed: list[State] = field(default_factory=list)
    #: a client that nothing can be sent to
    deaf: bytes = b""
    drafter: Drafter | None = None

    def __post_init__(self) -> None:
        self.scheduler = scheduler(running=self.running, queue=self.queue, drafter=self.drafter)
        self.times = SweepTimes()
        self.followers = Followers()
        self.answers = Answers(
            self.scheduler, self.times, frozenset({END}), self.paper, self.followers, self._send, logging.getLogger("potatod.test"),
            lambda job: self.changed.append(job.state), clock=lambda: self.now, now=lambda: self.now,
        )  # fmt: skip
        self.outlook = Outlook(self.answers, self.scheduler, self.times, self.followers, self.running, clock=lambda: self.now)
        self._numbers = itertools.count(1)

    def _send(self, owner: bytes, message: object) -> bool:
        self.sent.append((owner, message))
        return owner != self.deaf

    def ask(self, owner: bytes = b"me", prompt: int = 3, limit: int = 5, answered: Answered = Answered(), **changes: Any) -> Job:  # noqa: B008
        number = next(self._numbers)
        one = job(number=number, id=f"job {number}", prompt_tokens=prompt, limit_tokens=limit, accepted_at=self.now, **changes)
        ask = Ask(b"", tuple(range(1, prompt + 1)), Sampling(seed=7, max_tokens=limit), False, "")
        self.followers.add(number, owner)
        self.answers.begin(one, ask, Numbers, answered)  # type: ignore[arg-type]
        return one

    def answer(self, one: Job) -> Any:
        return self.answers.of(one.number)

    def sweep(self, token: int = 5, seconds: float = 2.0) -> Sweep:
        sweep = self.scheduler.compose(1)
        assert sweep is not None
        self.answers.taken(sweep)
        self.now += seconds
        rows = tuple(Row(step.sequence, token=token) for step in sweep.steps if step.want != "nothing" for _ in range(1 + step.drafted))
        said = Rows(1, sweep.number, rows, seconds, 100, 80.0)
        self.times.add(seconds, decode=True, rows=said)
        self.answers.swept(said, no_logits)
        return sweep

    def of(self, kind: type, owner: bytes = b"me") -> list[Any]:
        return [message for to, message in self.sent if to == owner and type(message) is kind]


def no_logits(row: int) -> NDArray[np.float32]:
    raise AssertionError("greedy answers need no logits")


def test_a_job_is_accepted_shown_and_finished_with_its_timings() -> None:
    world = World()
    one = world.ask(limit=2)
    world.now += 1
    world.sweep()
    world.sweep()
    assert [(piece.index, piece.text) for piece in world.of(Piece)] == [(0, "5 "), (1, "5 ")]
    last = world.of(Finished)[0]
    assert (last.job, last.reason, last.completion_tokens) == (one.id, "length", 2)
    assert (last.queued_s, last.prefill_s, last.decode_s) == (1.0, 2.0, 2.0)
    assert (last.sweeps, last.disk_bytes, last.disk_bytes_per_s, last.disk_limit_bytes_per_s) == (2, 200, 50.0, 80.0)


def test_an_answer_that_can_keep_to_its_schema_no_longer_is_refused_and_the_other_goes_on() -> None:
    class Stuck(Numbers):
        complete = False

        def allowed(self) -> NDArray[np.bool_]:
            raise Refusal("bad_request", "no token may come here")

    world = World()
    bad = world.ask(b"bad", prompt=1)
    world.ask(b"good", limit=1, prompt=1)
    world.answer(bad).sampling = Sampling(json_schema="{}")
    world.answer(bad).make_text = Stuck
    sweep = world.scheduler.compose(1)
    assert sweep is not None
    world.answers.taken(sweep)
    stuck = world.answer(bad).sequence.id
    rows = tuple(Row(step.sequence, logits_row=0) if step.sequence == stuck else Row(step.sequence, token=5) for step in sweep.steps)
    world.answers.swept(Rows(1, sweep.number, rows, 1.0, 0, None), lambda row: np.zeros(9, dtype=np.float32))
    refused = [(message.job, message.code, message.message) for message in world.of(Refused, b"bad")]
    assert refused == [(bad.id, "bad_request", "no token may come here")]
    assert [last.reason for last in world.of(Finished, b"good")] == ["length"]


def test_an_end_of_text_token_ends_an_answer_and_is_not_part_of_it() -> None:
    world = World()
    world.ask()
    world.sweep(token=5)
    world.sweep(token=END)
    assert len(world.of(Piece)) == 1
    assert [(last.reason, last.completion_tokens) for last in world.of(Finished)] == [("stop", 1)]
    assert world.scheduler.compose(1) is None


def test_an_answer_whose_text_fails_is_refused_and_the_other_goes_on() -> None:
    world = World()
    first = world.ask(b"me")
    world.sweep()
    world.ask(b"you")
    sweep = world.scheduler.compose(1)
    assert sweep is not None
    world.answers.taken(sweep)
    rows = (Row(1, token=13), Row(2, token=5))
    world.answers.swept(Rows(1, sweep.number, rows, 1.0, 0, None), no_logits)
    refused = world.of(Refused)[0]
    assert (refused.job, refused.code, refused.exit_code) == (first.id, "internal", 70)
    assert len(world.of(Piece, b"you")) == 1
    assert world.scheduler.running == (2,)


def test_a_cancelled_job_frees_its_place_for_whoever_waits() -> None:
    world = World(running=1)
    first = world.ask()
    world.ask(b"you")
    world.answers.cancel(world.answer(first))
    assert world.of(Finished)[0].reason == "cancelled"
    assert world.scheduler.running == (2,)


def test_nothing_is_said_before_it_is_on_disk() -> None:
    world = World()
    world.ask(limit=1)
    world.paper.held = []
    world.sweep()
    assert world.sent == []
    for do in world.paper.held:
        do()
    assert [type(message) for _, message in world.sent] == [Piece, Finished]


def test_what_is_written_is_what_is_said() -> None:
    world = World()
    one = world.ask(limit=3)
    for token in (5, 6, 7):
        world.sweep(token)
    assert world.paper.of(Said) == [Said(1, 0, (5,), "5 ", ""), Said(1, 1, (6,), "6 ", ""), Said(1, 2, (7,), "7 ", "")]
    assert world.paper.of(Gathered) == [Gathered(1)]
    states = [changed.job.state for changed in world.paper.of(Changed)]
    assert states == [State.RUNNING] * 3 + [State.FINISHED]
    assert (one.sampled_tokens, one.shown_tokens, one.reason) == (3, 3, "length")
    assert world.changed == [State.FINISHED]


def test_a_job_goes_on_from_what_was_answered_before() -> None:
    world = World()
    one = world.ask(limit=4, answered=Answered((5, 6), "5 6 ", ""), sampled_tokens=2, shown_tokens=2)
    sweep = world.sweep(7)
    assert sweep.steps[0].tokens == (1, 2, 3, 5), "prompt and answer are prefilled together, as far as a sweep takes them"
    world.sweep(7)
    world.sweep(8)
    assert [(piece.index, piece.text, piece.token_ids) for piece in world.of(Piece)] == [(2, "7 ", (7,)), (3, "8 ", (8,))]
    assert (world.of(Finished)[0].reason, one.sampled_tokens) == ("length", 4)


def test_texts_of_restored_jobs_are_made_while_there_is_no_engine_and_one_that_fails_is_that_job_s_end() -> None:
    world = World()
    good = world.ask(b"good", answered=Answered((5,) * 1000, "5 " * 1000, ""), sampled_tokens=1000, shown_tokens=1000, limit=2000, prompt=1)
    world.ask(b"bad", answered=Answered((5, 13), "5 ", ""), sampled_tokens=2, shown_tokens=1, limit=9, prompt=1)
    assert world.answers.make_texts(-1.0), "for a moment only"
    assert not world.answers.make_texts(1.0)
    assert [refused.code for refused in world.of(Refused, b"bad")] == ["internal"]
    for _ in range(300):
        world.sweep(7)
        if good.sampled_tokens > 1000:
            break
    assert world.of(Piece, b"good")[0].index == 1000


def test_whoever_follows_hears_of_it_and_nobody_else() -> None:
    world = World()
    one = world.ask(b"me", prompt=1)
    world.ask(b"you", prompt=1)
    world.followers.add(one.number, b"also me")
    world.sweep()
    assert [len(world.of(Piece, client)) for client in (b"me", b"also me", b"you")] == [1, 1, 1]
    world.followers.drop_where(lambda client: client == b"me")
    world.sweep()
    assert [len(world.of(Piece, client)) for client in (b"me", b"also me", b"you")] == [1, 2, 2]


def test_a_job_that_is_paused_computes_nothing_and_says_so() -> None:
    world = World()
    one = world.ask()
    world.sweep()
    world.answers.pause(world.answer(one))
    assert one.state is State.PAUSED
    assert world.scheduler.compose(1) is None
    assert world.of(Progress)[-1].state == "paused"
    assert world.followers.of(one.number) == (b"me",), "it will be resumed"


def test_a_job_of_which_an_engine_dies_again_and_again_fails_and_the_others_go_on() -> None:
    world = World()
    bad, good = world.ask(b"bad"), world.ask(b"good")
    for _ in range(2):
        world.scheduler.compose(1)
        world.answers.engine_died()
        world.scheduler.restarted()
    sweep = world.scheduler.compose(1)
    assert sweep is not None
    assert [step.sequence for step in sweep.steps] == [1], "who may be guilty is tried alone"
    assert POISONED_AFTER == 3
    world.answers.engine_died()
    world.scheduler.restarted()
    assert (bad.state, bad.code) == (State.FAILED, "poisoned")
    assert world.of(Refused, b"bad")[0].exit_code == 70
    world.sweep()
    world.sweep()
    assert (good.deaths, good.sampled_tokens, good.state) == (2, 2, State.RUNNING)


def test_who_was_tried_alone_and_is_innocent_shares_sweeps_again() -> None:
    world = World()
    world.ask(b"a", prompt=1)
    world.ask(b"b", prompt=1)
    for _ in range(2):
        world.scheduler.compose(1)
        world.answers.engine_died()
        world.scheduler.restarted()
    assert [len(world.sweep().steps) for _ in range(3)] == [1, 1, 2]


def test_an_engine_that_dies_between_sweeps_is_nobody_s_fault() -> None:
    world = World()
    one = world.ask()
    world.answers.engine_died()
    assert one.deaths == 0


def test_progress_is_said_at_once_when_a_place_or_state_changes_and_now_and_then_otherwise() -> None:
    world = World(running=1)
    world.ask(b"first", prompt=9)
    world.ask(b"me")
    for _ in range(3):
        world.outlook.say_progress(UP, world.answers.places())
    assert [(p.state, p.place) for p in world.of(Progress)] == [("queued", 1)], "nothing changed, nothing is said"
    world.sweep()
    world.outlook.say_progress(UP, world.answers.places())
    world.now += 0.1
    world.outlook.say_progress(EngineNow(up=True, layers_done=1, layers=4, under_way_s=0.5), world.answers.places())
    world.now += 0.6
    world.outlook.say_progress(EngineNow(up=True, layers_done=2, layers=4, under_way_s=0.5), world.answers.places())
    prefill = [p for p in world.of(Progress, b"first") if p.state == "prefill"]
    assert [(p.layers_done, p.prefilled_tokens, p.eta_s) for p in prefill] == [(0, 4, 4.0), (2, 4, 3.5)]
    world.scheduler.restarted()
    world.outlook.say_progress(EngineNow(up=False, layers_done=0, layers=4, under_way_s=0.0), world.answers.places())
    assert world.of(Progress, b"first")[-1].state == "restarting"


@pytest.mark.parametrize("restarted", [False, True], ids=["undisturbed", "from where a front before this one ended"])
def test_it_is_over_when_its_tokens_have_come_as_fast_as_they_do(restarted: bool) -> None:
    world = World(drafter=Three())
    there = Answered(ids=(5,) * 400) if restarted else Answered()
    one = world.ask(prompt=1, limit=1000, answered=there, sampled_tokens=len(there.ids), accepted_tokens=len(there.ids) * 3 // 4)
    while one.sampled_tokens < 500:
        world.sweep(seconds=2.0)
    assert one.accepted_tokens == pytest.approx(375, abs=2), "three of four were guessed"
    eta = world.outlook.etas()[one.number]
    assert eta.s == pytest.approx(2.0 * 500 / 4, rel=0.1)
    assert eta.least_s < eta.s < eta.most_s
    young = world.ask(prompt=1, limit=500)
    world.now += 2
    if not restarted:
        assert world.outlook.etas()[young.number].s == pytest.approx(2.0 * 500 / 4, rel=0.2), "it has been given nothing yet, and another has"


def test_the_end_comes_nearer_while_a_sweep_is_under_way() -> None:
    world = World()
    one = world.ask(prompt=1, limit=10)
    world.sweep(seconds=4.0)
    world.times.began_at = world.now
    said = []
    for _ in range(5):
        said.append(world.outlook.etas()[one.number].s)
        world.now += 0.75
    assert said == [36.0, 35.25, 34.5, 33.75, 33.0]
    world.now += 4
    assert world.outlook.etas()[one.number].s == 32.0, "no more than what a sweep takes"


def test_while_no_sweep_begins_each_job_says_why_and_keeps_its_place() -> None:
    world = World(running=1)
    world.ask(b"first", prompt=9)
    world.ask(b"me")
    world.sweep()
    world.outlook.say_progress(replace(UP, paused="on battery"), world.answers.places())
    said = [(p.state, p.place, p.why) for client in (b"first", b"me") for p in world.of(Progress, client)]
    assert said == [("paused", 0, "on battery"), ("paused", 1, "on battery")]
    world.outlook.say_progress(replace(UP, up=False, paused="on battery"), world.answers.places())
    assert world.of(Progress, b"first")[-1].state == "restarting"
    world.outlook.say_progress(UP, world.answers.places())
    assert [world.of(Progress, client)[-1].state for client in (b"first", b"me")] == ["prefill", "queued"]


def test_an_answer_that_is_prefilled_again_after_a_restart_says_so() -> None:
    world = World()
    world.ask(limit=50)
    for _ in range(4):
        world.sweep()
    world.outlook.say_progress(UP, world.answers.places())
    assert world.of(Progress)[-1].state == "decode"
    world.scheduler.restarted()
    world.outlook.say_progress(UP, world.answers.places())
    assert world.of(Progress)[-1].state == "prefill"


def test_a_client_that_does_not_read_hears_no_more_and_the_others_do() -> None:
    world = World()
    one = world.ask(b"slow", prompt=1)
    world.followers.add(one.number, b"me")
    world.deaf = b"slow"
    world.sweep()
    assert world.followers.of(one.number) == (b"me",)
    assert len(world.of(Piece, b"me")) == 1


def test_a_text_that_the_card_has_no_memory_for_is_refused_and_the_others_go_on() -> None:
    world = World()
    first, second = world.ask(b"a"), world.ask(b"b")
    sweep = world.scheduler.compose(1)
    assert sweep is not None
    world.answers.taken(sweep)
    world.answers.swept(Rows(1, sweep.number, (), 1.0, 100, 80.0, exhausted=True), no_logits)
    assert [refused.job for refused in world.of(Refused, b"b")] == [second.id]
    assert not world.of(Refused, b"a")
    world.sweep()
    assert world.of(Piece, b"a")[0].job == first.id
