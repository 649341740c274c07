"""Jobs that are not over, from Accepted to the last message: requests and rows come in, messages for clients go out.

No socket in here: ``send(owner, message)`` puts a message on its way and never waits. A client that cannot be reached
is found out by whoever owns the socket, and its jobs are cancelled between two sweeps like any other.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potato_client.protocol import MAX_JOBS, PROGRESS_EVERY_S, Accepted, Piece, Progress
from potato_client.words import disk_share
from potatod import log
from potatod.errors import first_line
from potatod.messages import Drawn, Row, Rows, Step, Sweep
from potatod.sampling.params import Sampling
from potatod.sampling.sampler import needs_logits, sample

from .admission import Admitted
from .jobs import Job, Jobs, Reason, State
from .queue import QueueFull
from .refusal import Refusal
from .scheduler import Scheduler
from .sequence import Sequence
from .sweep_times import SweepTimes
from .text import Shown, Text


@dataclass(frozen=True, slots=True)
class EngineNow:
    """What progress depends on beside the job itself."""

    up: bool
    #: of the sweep under way
    layers_done: int
    layers: int
    #: seconds since that sweep was sent
    under_way_s: float


@dataclass(slots=True)
class _Answer:
    """A job with its tokens and its text."""

    job: Job
    sequence: Sequence
    text: Text
    #: the last Progress, and when it was said
    said: Progress | None = None
    said_at: float = 0.0


class Answers:
    def __init__(
        self,
        scheduler: Scheduler,
        times: SweepTimes,
        end_ids: frozenset[int],
        send: Callable[[bytes, object], bool],
        logger: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._times = times
        self._end_ids = end_ids
        self._send = send
        self._logger = logger
        self._clock = clock
        self._jobs = Jobs()
        self._answers: dict[int, _Answer] = {}
        self._sequence_ids = itertools.count(1)

    # coming and going

    def accept(self, owner: bytes, request: int, admitted: Admitted) -> None:
        """Queues it and says Accepted. Raises :class:`Refusal` where there is no place."""
        if len(self._jobs.of_owner(owner)) >= MAX_JOBS:
            raise Refusal("queue_full", f"{MAX_JOBS} answers are under way for you; wait for one to end")
        drawn = _drawn(admitted.sampling, admitted.choice)
        sequence = Sequence(next(self._sequence_ids), list(admitted.prompt_ids), needs_logits(admitted.sampling), drawn, admitted.rank)
        sequence.most = len(admitted.prompt_ids) + admitted.limit_tokens
        try:
            place = self._scheduler.add(sequence)
        except QueueFull:
            raise Refusal(
                "queue_full", f"the queue is full: {len(self._scheduler.waiting)} answers wait; ask again later"
            ) from None
        job = Job(
            id=secrets.token_hex(8),
            sequence=sequence.id,
            owner=owner,
            request=request,
            prompt_tokens=len(admitted.prompt_ids),
            sampling=admitted.sampling,
            limit_tokens=admitted.limit_tokens,
            accepted_at=self._clock(),
            choice=admitted.choice,
        )
        self._jobs.add(job)
        self._answers[sequence.id] = _Answer(job, sequence, admitted.text)
        log.event(self._logger, "accepted", job=job.id, prompt_tokens=job.prompt_tokens, place=place)
        self._send(owner, Accepted(request, job.id, job.sampling.seed, job.prompt_tokens, place))

    def cancel(self, job_id: str, owner: bytes) -> None:
        """Its client does not want it any more. Raises :class:`Refusal` where that client has no such job."""
        job = self._jobs.owned(job_id, owner)
        if job is None:
            raise Refusal("unknown_job", f"there is no job {job_id[:40]!r} of yours under way; it may be over")
        self._end(self._answers[job.sequence], State.CANCELLED, "cancelled")

    def cancel_where(self, vanished: Callable[[bytes], bool]) -> None:
        """Ends the jobs whose clients have vanished."""
        for job in self._jobs:
            if vanished(job.owner):
                log.event(self._logger, "its client vanished", job=job.id)
                self._end(self._answers[job.sequence], State.CANCELLED, "cancelled")

    def fail_all(self, refusal: Refusal) -> None:
        for job in self._jobs:
            self._fail(self._answers[job.sequence], refusal)

    # sweeps

    def taken(self, sweep: Sweep) -> None:
        """That sweep is on its way."""
        now = self._clock()
        for step in sweep.steps:
            job = self._answers[step.sequence].job
            if job.state is State.QUEUED:
                job.enter(State.RUNNING, now)

    def swept(self, rows: Rows, logits: Callable[[int], NDArray[np.float32]]) -> None:
        """The sweep under way is complete: one token more for each job that wanted one."""
        sweep = self._scheduler.in_flight
        assert sweep is not None, "rows of a sweep that nobody sent"
        for step in sweep.steps:
            if step.sequence in self._answers:  # else it ended while it was being computed
                self._answers[step.sequence].job.disk.add(rows.read_bytes)
        if rows.exhausted:
            self._exhausted(rows.number)
            return
        steps = {step.sequence: step for step in sweep.steps}
        for sequence, found in self._scheduler.completed(rows.number, rows.rows):
            answer = self._answers[sequence]
            try:
                reason = self._advance(answer, steps[sequence], found, logits)
                if reason is not None:
                    self._end(answer, State.FINISHED, reason)
            except Exception as error:  # a job's top: its sampler or its text may fail, the daemon lives
                self._logger.exception("job %s failed", answer.job.id)
                self._fail(answer, Refusal("internal", f"this answer failed: {type(error).__name__}: {first_line(error)}"[:500]))

    def _exhausted(self, number: int) -> None:
        failed = self._scheduler.exhausted(number)
        log.event(self._logger, "the card's memory was too small for a sweep: its texts are computed anew in smaller pieces", level=logging.WARNING)
        if failed is not None:
            self._fail(
                self._answers[failed],
                Refusal("prompt_too_long", "the card's memory does not hold this text beside the others; ask for less, or lower [front] max_sequences"),
            )

    def _advance(
        self, answer: _Answer, step: Step, rows: list[Row], logits: Callable[[int], NDArray[np.float32]]
    ) -> Reason | None:
        """Samples as long as what was guessed is what is sampled, and shows what can be shown; returns why the answer is complete, None while it is
        not."""
        job, tokens, reason = answer.job, answer.sequence.tokens, None
        before = len(tokens)
        at: int | None = 0
        right = -1  # of the tokens that are sampled each but the last one was guessed
        while at is not None and reason is None:
            right += 1
            at, reason = self._sampled(answer, rows[at], logits)
        if len(rows) > 1:
            job.drafted_tokens += len(rows) - 1
            job.accepted_tokens += right
            job.count_guesses(self._scheduler.verified(answer.sequence.id, step, tokens[before : before + right]))
        return reason

    def _sampled(self, answer: _Answer, row: Row, logits: Callable[[int], NDArray[np.float32]]) -> tuple[int | None, Reason | None]:
        """Which of its rows follows this one's token, None where none does; and why the answer is complete."""
        job, tokens = answer.job, answer.sequence.tokens
        if row.logits_row is None:
            assert row.token is not None, "a row is a token or logits"
            token = row.token
        else:
            token = sample(logits(row.logits_row), tokens, job.sampling, job.choice, len(tokens))
        if token in self._end_ids:
            return None, "stop"
        job.sampled(self._clock())
        following = self._scheduler.append(answer.sequence.id, token)
        self._show(job, answer.text.push(token))
        if answer.text.stopped:
            return None, "stop"
        return following, "length" if job.full else None

    # last messages

    def _end(self, answer: _Answer, state: State, reason: Reason) -> None:
        job, limit = answer.job, self._times.disk_limit_bytes_per_s
        if state is State.FINISHED:
            self._show(job, answer.text.finish())
        self._forget(answer, state)
        self._send(job.owner, job.finished(reason, limit))
        log.event(
            self._logger,
            "finished",
            job=job.id,
            reason=reason,
            tokens=job.shown_tokens,
            s_per_token=_rounded(job.s_per_token),
            sweeps=job.disk.sweeps,
            disk_bytes=job.disk.read_bytes,
            share_of_disk=_rounded(disk_share(job.disk_bytes_per_s, limit)),
        )

    def _fail(self, answer: _Answer, refusal: Refusal) -> None:
        self._forget(answer, State.FAILED, keep=False)
        job = answer.job
        self._send(job.owner, refusal.to(job=job.id))
        log.event(self._logger, "failed", level=logging.WARNING, job=job.id, code=refusal.code, why=refusal.message)

    def _forget(self, answer: _Answer, state: State, keep: bool = True) -> None:
        answer.job.enter(state, self._clock())
        self._scheduler.remove(answer.sequence.id, keep)
        self._jobs.forget(answer.job)
        del self._answers[answer.sequence.id]

    def _show(self, job: Job, shown: Shown) -> None:
        if not shown:
            return
        self._send(job.owner, Piece(job.id, job.shown_tokens, shown.text, shown.token_ids, shown.reasoning))
        job.shown_tokens += len(shown.token_ids)

    # progress

    def say_progress(self, engine: EngineNow) -> None:
        """Tells each client how far its jobs are: what changed since it was last told, now and then."""
        now = self._clock()
        places = {sequence: place for place, sequence in enumerate(self._scheduler.waiting, 1)}
        for answer in self._answers.values():
            before = answer.said
            progress = self._progress(answer, places.get(answer.sequence.id, 0), engine)
            moved = before is None or (progress.state, progress.place) != (before.state, before.place)
            if progress != before and (moved or now - answer.said_at >= PROGRESS_EVERY_S):
                answer.said, answer.said_at = progress, now
                self._send(answer.job.owner, progress)

    def _progress(self, answer: _Answer, place: int, engine: EngineNow) -> Progress:
        job = answer.job
        about: dict[str, Any] = {"prompt_tokens": job.prompt_tokens, "s_per_token": self._times.s_per_sweep}
        if job.state is State.QUEUED or place:
            return Progress(job.id, "queued", place, **about)
        about["prefilled_tokens"] = min(answer.sequence.held, job.prompt_tokens)
        if not engine.up:
            return Progress(job.id, "restarting", **about)
        about |= {"layers_done": engine.layers_done, "layers": engine.layers}
        if job.first_token_at is not None and answer.sequence.pending <= 1:
            return Progress(job.id, "decode", **about)
        return Progress(job.id, "prefill", eta_s=self._eta_s(answer, engine), **about)

    def _eta_s(self, answer: _Answer, engine: EngineNow) -> float | None:
        """Seconds to the next token of a job that is being prefilled."""
        if self._times.s_per_sweep is None:
            return None
        return max(0.0, self._scheduler.sweeps_to_go(answer.sequence.id) * self._times.s_per_sweep - engine.under_way_s)


def _drawn(sampling: Sampling, choice: int) -> Drawn:
    return Drawn(
        sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty, sampling.seed, choice
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
