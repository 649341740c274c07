"""What is wanted of a job: cancel, pause, resume, retry, delete. One after the other for each job, so that each sees what the one before has done."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable
from functools import partial

from potato_client.protocol import Finished, Manage, Managed, Progress
from potatod import log
from potatod.jobs.database import Changed, Database, Deleted
from potatod.jobs.job import Ask, Job
from potatod.jobs.journal import Journal
from potatod.jobs.rows import Answered
from potatod.jobs.states import Event, NotNow, State

from .answer import Answer
from .answers import paused
from .desk import Desk
from .desks import Desks
from .followers import Followers
from .known import Known
from .refusal import Refusal
from .replies import Replies

#: Of one job, waiting until what was wanted before has been done.
_MOST_WISHES = 64


class Wishes:
    def __init__(
        self, *, desks: Desks, journal: Journal, known: Known, followers: Followers, replies: Replies, logger: logging.Logger,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._desks = desks
        self._journal = journal
        self._known = known
        self._followers = followers
        self._replies = replies
        self._logger = logger
        #: by number of a job that does not run and is being read, since somebody wants something done to it: who wants more, in turn
        self._wishes: dict[int, collections.deque[tuple[bytes, Manage]]] = {}
        self._now = now

    def want(self, client: bytes, number: int, message: Manage) -> None:
        """Raises :class:`Refusal`."""
        waiting = self._wishes.get(number)
        if waiting is None:
            self._wish(client, message, number)
        elif len(waiting) < _MOST_WISHES:
            waiting.append((client, message))
        else:
            raise Refusal("queue_full", "too much is wanted of this job at once; ask again")

    def _wish(self, client: bytes, message: Manage, number: int) -> None:
        self._refuse_in_trouble()
        if number not in self._known:
            raise Refusal("unknown_job", "that job has just been deleted")
        found = self._desks.find(number)
        if found is not None:
            self._manage_running(client, message, *found)
            return
        self._wishes[number] = collections.deque()
        read, wished = partial(_everything, number=number), partial(self._wished, client, message, number)
        self._journal.ask(read, wished, partial(self._not_wished, client, message, number))

    def _wished(self, client: bytes, message: Manage, number: int, everything: tuple[Job, Ask, Answered] | None) -> None:
        def fulfil() -> None:
            self._refuse_in_trouble()
            if everything is None:
                raise Refusal("unknown_job", "that job has just been deleted")
            self._manage_resting(client, message, *everything)

        self._replies.safely(client, message.request, fulfil)
        self._next_wish(number)

    def _not_wished(self, client: bytes, message: Manage, number: int, why: str) -> None:
        self._replies.unreadable(client, message.request, why)
        self._next_wish(number)

    def _next_wish(self, number: int) -> None:
        waiting = self._wishes.pop(number)
        while waiting:
            client, message = waiting.popleft()
            self._replies.safely(client, message.request, partial(self._wish, client, message, number))
            if number in self._wishes:
                self._wishes[number].extend(waiting)
                return

    def _manage_running(self, client: bytes, message: Manage, desk: Desk, answer: Answer) -> None:
        job = answer.job
        if message.action == "cancel":
            desk.answers.cancel(answer)
        elif message.action == "pause":
            desk.answers.pause(answer)
        else:
            raise _not_now(job, message.action)
        self._managed(client, message, job)

    def _manage_resting(self, client: bytes, message: Manage, job: Job, ask: Ask, answered: Answered) -> None:
        if message.action == "delete":
            if not job.state.over:
                raise Refusal("not_now", f"job {job.id} is {job.state.value}: cancel it before it is deleted")
            self._journal.write(Deleted(job.number))
            self._known.forget(job.number)
            self._managed(client, message, job)
            return
        desk = self._desks.of_model(job.model)
        if message.action in ("resume", "retry"):
            if desk is None:
                asked, verb = f"{job.model_name} ({job.model[:8]})", "is" if len(self._desks) == 1 else "are"
                raise Refusal("other_model", f"job {job.id} was asked of the model {asked}, and {self._desks.title()} {verb} served")
            if not desk.fits(job):
                raise Refusal("prompt_too_long", desk.too_long(job))
        try:
            job.enter(Event(message.action), self._now())
        except NotNow:
            raise _not_now(job, message.action) from None
        if job.state is State.QUEUED:
            assert desk is not None, "it was resumed or retried"
            job.why = ""
            job.sampled_tokens = len(answered.ids)
            desk.begin(job, ask, answered)
        elif job.state is State.CANCELLED:
            job.reason = "cancelled"
        if job.state.active:
            self._journal.write(Changed(job.copy()))
        else:
            said = paused(job) if job.state is State.PAUSED else job.finished(None)
            self._journal.write(Changed(job.copy()), then=partial(self._say_of_resting, job.number, said))
        self._managed(client, message, job)

    def _say_of_resting(self, number: int, message: Finished | Progress) -> None:
        for client in self._followers.forget(number) if isinstance(message, Finished) else self._followers.of(number):
            self._replies.send(client, message)

    def _managed(self, client: bytes, message: Manage, job: Job) -> None:
        self._known.changed(job)
        log.event(self._logger, f"{message.action} asked for", job=job.id, state=job.state.value)
        if message.request:
            self._journal.then(partial(self._say, client, Managed(message.request, self._replies.report(job.copy()))))

    def _say(self, client: bytes, message: Managed) -> None:
        self._replies.send(client, message)

    def _refuse_in_trouble(self) -> None:
        if self._journal.trouble:
            raise Refusal("storage", f"not now: {self._journal.trouble}")


def _everything(database: Database, number: int) -> tuple[Job, Ask, Answered] | None:
    job = database.job(number)
    return None if job is None else (job, database.ask(number), database.answered(number))


def _not_now(job: Job, action: str) -> Refusal:
    return Refusal("not_now", f"job {job.id} is {job.state.value}: there is nothing to {action}")
