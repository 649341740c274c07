"""Jobs that run or wait for their turn: rows come in, tokens and text go to the journal, and from there to whoever follows.

    swept ──▶ sampled tokens, their text ──▶ journal ──on disk──▶ send(client, Piece | Finished)

No socket in here: ``send(client, message)`` puts a message on its way and never waits. What a client hears has been committed before; only Progress is
not worth that.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from potato_client.protocol import Progress
from potato_client.words import disk_share
from potatod import log
from potatod.errors import first_line
from potatod.jobs.database import Changed, Gathered, Said, Write
from potatod.jobs.job import Ask, Job, Reason
from potatod.jobs.rows import Answered
from potatod.jobs.states import Event, State
from potatod.messages import Drawn, Row, Rows, Step, Sweep
from potatod.sampling.params import Sampling
from potatod.sampling.sampler import needs_logits, sample

from .answer import Answer, Gain
from .eta import Acceptance, Lengths
from .followers import Followers
from .pieces import pieces
from .promises import Promises
from .refusal import Refusal
from .scheduler import Scheduler
from .sequence import Sequence
from .sweep_times import SweepTimes
from .text import Text

#: Engines that end while they compute the same token: after so many the job is tried alone, after so many it fails.
ALONE_AFTER: Final = 2
POISONED_AFTER: Final = 3
#: Of which text is made at a time.
_TEXT_TOKENS: Final = 256


class Diary(Protocol):
    """As :class:`potatod.jobs.journal.Journal`."""

    def write(self, *writes: Write, then: Callable[[], None] | None = None) -> None: ...
    def then(self, do: Callable[[], None]) -> None: ...


class Answers:
    def __init__(
        self,
        scheduler: Scheduler,
        times: SweepTimes,
        end_ids: frozenset[int],
        diary: Diary,
        followers: Followers,
        send: Callable[[bytes, object], bool],
        logger: logging.Logger,
        changed: Callable[[Job], None],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``changed`` is told of each job that is over or paused; ``clock`` counts seconds, ``now`` tells the time that jobs keep."""
        self._scheduler = scheduler
        self._times = times
        self._end_ids = end_ids
        self._diary = diary
        self._followers = followers
        self._send = send
        self._logger = logger
        self._changed = changed
        self._clock = clock
        self._now = now
        self._answers: dict[int, Answer] = {}
        self._by_number: dict[int, Answer] = {}
        self._sequence_ids = itertools.count(1)
        #: of answers that ended by themselves
        self.lengths = Lengths()
        self.acceptance = Acceptance()
        #: what was said of jobs' ends, and how that was kept
        self.promises = Promises()
        #: sampled since the front began; an end of text is one
        self.tokens = 0

    # coming and going

    def begin(self, job: Job, ask: Ask, make_text: Callable[[], Text], answered: Answered = Answered()) -> int:  # noqa: B008  frozen
        """Queues it, however full the queue is; returns its place. ``answered``: what there is of it already."""
        drawn = _drawn(ask.sampling, job)
        tokens = [*ask.prompt_ids, *answered.ids]
        sequence = Sequence(next(self._sequence_ids), tokens, needs_logits(ask.sampling), drawn, job.rank, job.number)
        sequence.most = len(ask.prompt_ids) + job.limit_tokens
        sequence.alone = job.deaths >= ALONE_AFTER
        answer = Answer(job, ask.sampling, sequence, make_text, [answered.text], [answered.reasoning], list(answered.logprobs))
        place = self._scheduler.add(sequence, beyond=True)
        self._answers[sequence.id] = self._by_number[job.number] = answer
        return place

    def of(self, number: int) -> Answer | None:
        """The job of that number, where it runs or waits for its turn."""
        return self._by_number.get(number)

    def __len__(self) -> int:
        return len(self._by_number)

    def running(self) -> list[Answer]:
        """Those that take part in sweeps, in turn."""
        return [self._answers[id] for id in self._scheduler.running]

    def in_turn(self) -> list[Answer]:
        """All of them."""
        return self.running() + [self._answers[id] for id in self._scheduler.waiting]

    def __iter__(self) -> Iterator[Answer]:
        return iter(tuple(self._by_number.values()))

    def places(self) -> dict[int, int]:
        """By job number: how many are before it, itself included; only of jobs that wait."""
        return {self._answers[id].job.number: place for place, id in enumerate(self._scheduler.waiting, 1)}

    def place(self, number: int) -> int:
        """Of that one alone."""
        id = self._by_number[number].sequence.id
        return self._scheduler.waiting.index(id) + 1 if id in self._scheduler.waiting else 0

    def turn(self, number: int) -> int:
        """Which of all jobs here it is, from 1."""
        return 1 + next(at for at, answer in enumerate(self.in_turn()) if answer.job.number == number)

    def set_aside(self, answer: Answer) -> None:
        """It runs no more, and waits for its turn again."""
        self.promises.forget(answer.job.number)
        answer.job.enter(Event.SET_ASIDE, self._now())
        self._diary.write(Changed(answer.job.copy()))

    def make_texts(self, seconds: float) -> bool:
        """Of what jobs said before they were restored, for so long: better while there is no engine than in their first sweep. Whether there is
        more."""
        until = self._clock() + seconds
        for answer in self:
            try:
                while answer.catch_up(_TEXT_TOKENS):
                    if self._clock() > until:
                        return True
                if self._clock() > until:
                    return any(other.behind for other in self)
            except Exception as error:  # a job's top, as in a sweep
                self._job_failed(answer, error, Gain(answer.job.sampled_tokens))
        return False

    def _job_failed(self, answer: Answer, error: Exception, gain: Gain) -> None:
        self._logger.exception("job %s failed", answer.job.id)
        self._fail(answer, Refusal("internal", f"this answer failed: {type(error).__name__}: {first_line(error)}"[:500]), gain)

    def cancel(self, answer: Answer) -> None:
        self._end(answer, Event.CANCEL, "cancelled", Gain(answer.job.sampled_tokens))

    def pause(self, answer: Answer) -> None:
        """It takes part in no sweep until it is begun again; whoever follows it goes on doing so."""
        job = answer.job
        self._leave(answer, Event.PAUSE)
        self._diary.write(Changed(job.copy()), then=partial(self.say, job.number, paused(job)))
        log.event(self._logger, "paused", job=job.id, tokens=job.sampled_tokens)

    def engine_died(self) -> bool:
        """What took part in the sweep under way may be why; the scheduler has not been told yet. Returns whether a job has failed for it."""
        sweep = self._scheduler.in_flight
        suspects = [self._answers[step.sequence] for step in sweep.steps if step.sequence in self._answers] if sweep is not None else []
        for answer in suspects:
            if answer.job.died() >= POISONED_AFTER:
                why = f"the engine has died {POISONED_AFTER} times while it computed this answer's next token; the log says of what"
                self._fail(answer, Refusal("poisoned", why))
            else:
                self._diary.write(Changed(answer.job.copy()))
        self._scheduler.isolate({answer.sequence.id for answer in suspects if answer.job.deaths >= ALONE_AFTER})
        return any(answer.job.state is State.FAILED for answer in suspects)

    # sweeps

    def taken(self, sweep: Sweep) -> None:
        """That sweep is on its way."""
        for step in sweep.steps:
            job = self._answers[step.sequence].job
            if job.state is not State.RUNNING:
                job.enter(Event.TAKEN, self._now())
                self._diary.write(Changed(job.copy()))

    def swept(self, rows: Rows, logits: Callable[[int], NDArray[np.float32]]) -> None:
        """The sweep under way is complete: one token more, or several, for each job that wanted one."""
        sweep = self._scheduler.in_flight
        assert sweep is not None, "rows of a sweep that nobody sent"
        for step in sweep.steps:
            if step.sequence in self._answers:  # else it ended while it was being computed
                self._answers[step.sequence].job.swept(rows.read_bytes)
        if rows.exhausted:
            self._exhausted(rows.number)
            return
        steps = {step.sequence: step for step in sweep.steps}
        for sequence, found in self._scheduler.completed(rows.number, rows.rows):
            answer = self._answers[sequence]
            gain = Gain(answer.job.sampled_tokens)
            try:
                reason = self._advance(answer, gain, steps[sequence], found, logits)
                if gain.ids:
                    self.acceptance.gave(gain.first, len(gain.ids))
                if reason is not None:
                    gain.add(answer.text.finish())
            except Refusal as refusal:
                self._fail(answer, refusal, gain)
            except Exception as error:  # a job's top: its sampler or its text may fail, the daemon lives
                self._job_failed(answer, error, gain)
            else:
                if reason is None:
                    self._gained(answer, gain)
                else:
                    self._end(answer, Event.FINISH, reason, gain)

    def _exhausted(self, number: int) -> None:
        failed = self._scheduler.exhausted(number)
        log.event(self._logger, "the card's memory was too small for a sweep: its texts are computed anew in smaller pieces", level=logging.WARNING)
        if failed is not None:
            self._fail(
                self._answers[failed],
                Refusal("prompt_too_long", "the card's memory does not hold this text beside the others; ask for less, or lower [front] max_sequences"),
            )

    def _advance(
        self, answer: Answer, gain: Gain, step: Step, rows: list[Row], logits: Callable[[int], NDArray[np.float32]]
    ) -> Reason | None:  # fmt: skip
        """Samples as long as what was guessed is what is sampled; returns why the answer is complete, None while it is not."""
        job, tokens, reason = answer.job, answer.sequence.tokens, None
        before = len(tokens)
        at: int | None = 0
        right = -1  # of the tokens that are sampled each but the last one was guessed
        while at is not None and reason is None:
            right += 1
            at, reason = self._sampled(answer, gain, rows[at], logits)
        if len(rows) > 1:
            job.drafted_tokens += len(rows) - 1
            job.accepted_tokens += right
            job.count_guesses(self._scheduler.verified(answer.sequence.id, step, tokens[before : before + right]))
        return reason

    def _sampled(
        self, answer: Answer, gain: Gain, row: Row, logits: Callable[[int], NDArray[np.float32]]
    ) -> tuple[int | None, Reason | None]:  # fmt: skip
        """Which of its rows follows this one's token, None where none does; and why the answer is complete."""
        job, tokens, likely = answer.job, answer.sequence.tokens, list[bytes]()
        if row.logits_row is None:
            assert row.token is not None, "a row is a token or logits"
            token = row.token
        else:
            values, allowed = logits(row.logits_row), answer.allowed()
            if allowed is not None and not allowed.any():
                return None, "stop"
            token = sample(values, tokens, answer.sampling, job.choice, len(tokens), job.prompt_tokens, allowed)
            likely = answer.likelihood(values, token)
        self.tokens += 1
        if token in self._end_ids:
            return None, "stop"
        answer.catch_up(len(tokens))  # before there is one more
        answer.logprobs += likely
        gain.logprobs += likely
        job.sampled(self._now())
        following = self._scheduler.append(answer.sequence.id, token)
        gain.ids.append(token)
        gain.add(answer.push(token))
        if answer.complete:
            return None, "stop"
        return following, "length" if job.full else None

    # what is written, and said once it is

    def _gained(self, answer: Answer, gain: Gain, *more: Write, last: Callable[[], object] | None = None) -> None:
        """``last``: the job's last message, made when everything else has been counted."""
        job, shown = answer.job, gain.shown
        before, job.shown_tokens = job.shown_tokens, job.shown_tokens + len(shown.token_ids)
        likely = answer.logprobs[before : job.shown_tokens]
        added = list(pieces(job.id, before, shown.text, shown.token_ids, shown.reasoning, likely))
        answer.shown.append(shown.text)
        answer.reasoning.append(shown.reasoning)
        said = [Said(job.number, gain.first, tuple(gain.ids), shown.text, shown.reasoning, tuple(gain.logprobs))] if gain.ids or shown else []
        then = partial(self.say, job.number, *added) if last is None else partial(self._say_last, job.number, *added, last())
        self._diary.write(*said, Changed(job.copy()), *more, then=then)

    def say(self, number: int, *messages: object) -> None:
        """To whoever follows that job."""
        for client in self._followers.of(number):
            for message in messages:
                if not self._send(client, message):
                    self._followers.drop(client)  # what it misses it asks for when it is back
                    break

    def _say_last(self, number: int, *messages: object) -> None:
        self.say(number, *messages)
        self._followers.forget(number)

    def _end(self, answer: Answer, event: Event, reason: Reason, gain: Gain) -> None:
        job, limit = answer.job, self._times.disk_limit_bytes_per_s
        job.reason = reason
        if reason == "stop":
            self.lengths.add(job.sampled_tokens)
        if event is Event.FINISH:
            self.promises.over(job.number, self._clock())
        self._leave(answer, event)
        self._gained(answer, gain, Gathered(job.number), last=partial(job.finished, limit))
        log.event(
            self._logger,
            "finished",
            job=job.id,
            reason=reason,
            tokens=job.shown_tokens,
            s_per_token=_rounded(job.s_per_token(self._now())),
            sweeps=job.sweeps,
            disk_bytes=job.read_bytes,
            share_of_disk=_rounded(disk_share(job.disk_bytes_per_s, limit)),
        )

    def _fail(self, answer: Answer, refusal: Refusal, gain: Gain | None = None) -> None:
        job = answer.job
        job.code, job.why = refusal.code, refusal.message
        self._leave(answer, Event.FAIL, keep=False)
        self._gained(answer, gain or Gain(job.sampled_tokens), Gathered(job.number), last=partial(refusal.to, job=job.id))
        log.event(self._logger, "failed", level=logging.WARNING, job=job.id, code=refusal.code, why=refusal.message)

    def _leave(self, answer: Answer, event: Event, keep: bool = True) -> None:
        """``keep``: others may go on from what has been computed for it. Raises :class:`NotNow`."""
        answer.job.enter(event, self._now())
        self._scheduler.remove(answer.sequence.id, keep)
        self.promises.forget(answer.job.number)
        del self._answers[answer.sequence.id], self._by_number[answer.job.number]
        self._changed(answer.job)

def paused(job: Job) -> Progress:
    return Progress(job.id, "paused", prompt_tokens=job.prompt_tokens)


def _drawn(sampling: Sampling, job: Job) -> Drawn:
    return Drawn(
        sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty, sampling.seed, job.choice,
        sampling.frequency_penalty, sampling.presence_penalty, sampling.logit_bias, job.prompt_tokens,
    )  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
