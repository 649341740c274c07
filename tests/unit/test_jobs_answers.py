"""Jobs from Accepted to their last message, without a socket and with a clock that the test moves."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from schedulers import scheduler

from potato_client.protocol import Accepted, Finished, Piece, Progress, Refused
from potatod.front.admission import Admitted
from potatod.front.answers import Answers, EngineNow
from potatod.front.refusal import Refusal
from potatod.front.sweep_times import SweepTimes
from potatod.front.text import Shown
from potatod.messages import Row, Rows, Sweep
from potatod.sampling.params import Sampling

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


@dataclass
class World:
    """Answers, a clock, and everything that was sent."""

    running: int = 2
    queue: int = 2
    now: float = 100.0
    sent: list[tuple[bytes, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = scheduler(running=self.running, queue=self.queue)
        self.times = SweepTimes()
        self.answers = Answers(
            self.scheduler,
            self.times,
            frozenset({END}),
            self._send,
            logging.getLogger("potatod.test"),
            lambda: self.now,
        )

    def _send(self, owner: bytes, message: object) -> bool:
        self.sent.append((owner, message))
        return True

    def ask(self, owner: bytes = b"me", prompt: int = 3, limit: int = 5) -> Accepted:
        prompt_ids = list(range(1, prompt + 1))
        self.answers.accept(owner, 1, Admitted(prompt_ids, Sampling(seed=7), limit, Numbers()))  # type: ignore[arg-type]
        return self.of(Accepted, owner)[-1]

    def sweep(self, token: int = 5, seconds: float = 2.0) -> Sweep:
        sweep = self.scheduler.compose(1)
        assert sweep is not None
        self.answers.taken(sweep)
        self.now += seconds
        rows = tuple(Row(step.sequence, token=token) for step in sweep.steps if step.want != "nothing")
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
    accepted = world.ask(limit=2)
    assert (accepted.seed, accepted.prompt_tokens, accepted.place) == (7, 3, 0)
    world.now += 1
    world.sweep()
    world.sweep()
    assert [(piece.index, piece.text) for piece in world.of(Piece)] == [(0, "5 "), (1, "5 ")]
    last = world.of(Finished)[0]
    assert (last.job, last.reason, last.completion_tokens) == (accepted.job, "length", 2)
    assert (last.queued_s, last.prefill_s, last.decode_s) == (1.0, 2.0, 2.0)
    assert (last.sweeps, last.disk_bytes, last.disk_bytes_per_s, last.disk_limit_bytes_per_s) == (2, 200, 50.0, 80.0)


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
    assert (refused.job, refused.code, refused.exit_code) == (first.job, "internal", 70)
    assert len(world.of(Piece, b"you")) == 1
    assert world.scheduler.running == (2,)


def test_a_cancelled_job_frees_its_place_for_whoever_waits() -> None:
    world = World(running=1)
    first = world.ask()
    world.ask(b"you")
    world.answers.cancel(first.job, b"me")
    assert world.of(Finished)[0].reason == "cancelled"
    assert world.scheduler.running == (2,)


@pytest.mark.parametrize("owner", [b"you", b"me"])
def test_a_job_that_is_over_or_of_another_is_unknown(owner: bytes) -> None:
    world = World()
    accepted = world.ask(limit=1)
    if owner == b"me":
        world.sweep()
    with pytest.raises(Refusal, match="no job") as refusal:
        world.answers.cancel(accepted.job, owner)
    assert refusal.value.code == "unknown_job"


def test_only_jobs_of_vanished_clients_are_cancelled() -> None:
    world = World()
    world.ask(b"me")
    world.ask(b"you")
    world.answers.cancel_where(lambda owner: owner == b"you")
    assert (len(world.of(Finished, b"me")), len(world.of(Finished, b"you"))) == (0, 1)


def test_a_full_queue_and_a_greedy_client_are_refused() -> None:
    world = World(running=1, queue=400)
    for _ in range(256):
        world.ask()
    with pytest.raises(Refusal, match="under way for you"):
        world.ask()
    world = World(running=1, queue=1)
    world.ask()
    world.ask()
    with pytest.raises(Refusal, match="queue is full: 1 answer") as refusal:
        world.ask()
    assert refusal.value.to(request=1).exit_code == 75


def test_progress_is_said_at_once_when_a_place_or_state_changes_and_now_and_then_otherwise() -> None:
    world = World(running=1)
    world.ask(b"first", prompt=9)
    world.ask(b"me")
    for _ in range(3):
        world.answers.say_progress(UP)
    assert [(p.state, p.place) for p in world.of(Progress)] == [("queued", 1)], "nothing changed, nothing is said"
    world.sweep()
    world.answers.say_progress(UP)
    world.now += 0.1
    world.answers.say_progress(EngineNow(up=True, layers_done=1, layers=4, under_way_s=0.5))
    world.now += 0.6
    world.answers.say_progress(EngineNow(up=True, layers_done=2, layers=4, under_way_s=0.5))
    prefill = [p for p in world.of(Progress, b"first") if p.state == "prefill"]
    assert [(p.layers_done, p.prefilled_tokens, p.eta_s) for p in prefill] == [(0, 4, 4.0), (2, 4, 3.5)]
    world.scheduler.restarted()
    world.answers.say_progress(EngineNow(up=False, layers_done=0, layers=4, under_way_s=0.0))
    assert world.of(Progress, b"first")[-1].state == "restarting"


def test_an_answer_that_is_prefilled_again_after_a_restart_says_so() -> None:
    world = World()
    world.ask(limit=50)
    for _ in range(4):
        world.sweep()
    world.answers.say_progress(UP)
    assert world.of(Progress)[-1].state == "decode"
    world.scheduler.restarted()
    world.answers.say_progress(UP)
    assert world.of(Progress)[-1].state == "prefill"


def test_when_the_daemon_stops_every_job_is_told() -> None:
    world = World(running=1)
    jobs = {world.ask().job, world.ask().job}
    world.answers.fail_all(Refusal("stopping", "the daemon is stopping"))
    assert {(r.job, r.code, r.exit_code) for r in world.of(Refused)} == {(job, "stopping", 75) for job in jobs}
    assert world.scheduler.compose(1) is None


def test_a_text_that_the_card_has_no_memory_for_is_refused_and_the_others_go_on() -> None:
    world = World()
    first, second = world.ask(b"a"), world.ask(b"b")
    sweep = world.scheduler.compose(1)
    assert sweep is not None
    world.answers.taken(sweep)
    world.answers.swept(Rows(1, sweep.number, (), 1.0, 100, 80.0, exhausted=True), no_logits)
    assert [refused.job for refused in world.of(Refused, b"b")] == [second.job]
    assert not world.of(Refused, b"a")
    world.sweep()
    assert world.of(Piece, b"a")[0].job == first.job
