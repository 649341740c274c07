"""How far the jobs of one model are and when they will be over: said to whoever follows one, and to whoever asks.

    how long answers became, what sweeps take ──▶ etas()
    the engine now, places in the queue       ──▶ say_progress() ──▶ Progress, where it has changed
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from potato_client.protocol import PROGRESS_EVERY_S, Progress
from potatod.jobs.states import State

from .answer import Answer
from .answers import Answers
from .eta import Eta, Left, Work, ends, later, work_of
from .followers import Followers
from .scheduler import Scheduler
from .sweep_times import SweepTimes

#: Between two looks at when jobs will be over.
_ETAS_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class EngineNow:
    """What progress depends on beside the job itself; of another model's engine nothing."""

    up: bool = False
    #: of the sweep under way
    layers_done: int = 0
    layers: int = 0
    #: seconds since that sweep was sent
    under_way_s: float = 0.0
    #: it is not there yet, and not because one has died
    loading: bool = False
    #: why no sweep begins; empty where one may
    paused: str = ""


class Outlook:
    def __init__(
        self, answers: Answers, scheduler: Scheduler, times: SweepTimes, followers: Followers, max_running: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """``max_running``: places in a sweep."""
        self._answers = answers
        self._scheduler = scheduler
        self._times = times
        self._followers = followers
        self._max_running = max_running
        self._clock = clock
        self._expected: Mapping[int, Eta] = {}
        self._expected_at = self._promised_at = -_ETAS_EVERY_S

    def etas(self) -> Mapping[int, Eta]:
        """By job number, as far as anybody knows: from what was known a second ago at most."""
        now = self._clock()
        if now - self._expected_at > _ETAS_EVERY_S:
            self._expected_at, self._expected = now, self._ends(now)
        return later(self._expected, now - self._expected_at)

    def _ends_of_running(self, now: float) -> Mapping[int, Eta]:
        s_per_sweep = self._times.s_per_sweep
        if s_per_sweep is None:
            return {}
        chunk, passed_s = self._scheduler.prefill_tokens(), self._times.passed_s(now)
        works = [self._work(answer, True, chunk, s_per_sweep, passed_s) for answer in self._answers.running()]
        return {work.number: Eta(work.s, work.least_s, work.most_s) for work in works if work is not None}

    def _ends(self, now: float) -> Mapping[int, Eta]:
        s_per_sweep = self._times.s_per_sweep
        if s_per_sweep is None:
            return {}
        chunk, running = self._scheduler.prefill_tokens(), len(self._scheduler.running)
        passed_s = self._times.passed_s(now)
        works = [self._work(answer, at < running, chunk, s_per_sweep, passed_s) for at, answer in enumerate(self._answers.in_turn())]
        return ends(works, self._max_running)

    def _work(self, answer: Answer, running: bool, chunk: int, s_per_sweep: float, passed_s: float) -> Work | None:
        job = answer.job
        left = self._answers.lengths.left(job.sampled_tokens, job.limit_tokens, answer.sampling.max_tokens is not None)
        if left is None:
            return None
        prefill_s = -(-max(0, answer.sequence.pending - 1) // chunk) * s_per_sweep
        so_far, acceptance = (job.sampled_tokens, job.accepted_tokens), self._answers.acceptance
        sweeps = Left(
            acceptance.sweeps_left(*so_far, left.expected),
            acceptance.sweeps_left(*so_far, left.least),
            acceptance.most_sweeps_left(*so_far, left.most),
        )
        return work_of(job.number, running, sweeps, s_per_sweep, prefill_s, passed_s if running else 0.0)

    def say_progress(self, engine: EngineNow, places: Mapping[int, int]) -> None:
        """Tells who follows a job how far it is: what changed since it was last said, now and then. ``places``: of those that wait."""
        now = self._clock()
        if engine.up and not engine.paused and now - self._promised_at > _ETAS_EVERY_S:
            self._promised_at = now
            self._answers.promises.said(self._ends_of_running(now), now)
        for running in [each for each in self._answers if each.job.state is State.RUNNING and each.job.number in places]:
            self._answers.set_aside(running)
        for number in self._followers.numbers():
            answer = self._answers.of(number)
            if answer is None:  # of another model
                continue
            before = answer.said
            progress = self._progress(answer, places.get(number, 0), engine)
            moved = before is None or (progress.state, progress.place) != (before.state, before.place)
            if progress != before and (moved or now - answer.said_at >= PROGRESS_EVERY_S):
                answer.said, answer.said_at = progress, now
                self._answers.say(number, progress)

    def _progress(self, answer: Answer, place: int, engine: EngineNow) -> Progress:
        job = answer.job
        about: dict[str, Any] = {"prompt_tokens": job.prompt_tokens, "s_per_token": self._times.s_per_sweep}
        if engine.up and engine.paused:
            return Progress(job.id, "paused", place, why=engine.paused, **about)
        if job.state is State.QUEUED or place:
            return Progress(job.id, "queued", place, **about)
        about["prefilled_tokens"] = min(answer.sequence.held, job.prompt_tokens)
        if not engine.up:
            return Progress(job.id, "loading" if engine.loading else "restarting", **about)
        about |= {"layers_done": engine.layers_done, "layers": engine.layers}
        if job.first_token_at is not None and answer.sequence.pending <= 1:
            return Progress(job.id, "decode", **about)
        return Progress(job.id, "prefill", eta_s=self._eta_s(answer, engine), **about)

    def _eta_s(self, answer: Answer, engine: EngineNow) -> float | None:
        """Seconds to the next token of a job that is being prefilled."""
        if self._times.s_per_sweep is None:
            return None
        return max(0.0, self._scheduler.sweeps_to_go(answer.sequence.id) * self._times.s_per_sweep - engine.under_way_s)
