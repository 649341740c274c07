"""What clients ask about jobs: one method a message, from the message to what is said to it.

A job that runs or waits lies on its model's desk; every other one is only in the database, which is asked without waiting. While it is, other messages
are handled, so whoever gets an answer looks again whether the job has begun or is gone.
"""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from potato_client.job_report import JobReport
from potato_client.protocol import (
    FROM_CLIENT,
    MAX_FOLLOWED,
    Accepted,
    Attach,
    Described,
    Detach,
    Finished,
    Generate,
    List,
    Listed,
    Manage,
    Managed,
    Progress,
    Show,
)
from potatod import log
from potatod.errors import PotatoError, first_line
from potatod.jobs.database import Changed, Database, Deleted
from potatod.jobs.job import Ask, Job
from potatod.jobs.journal import Journal
from potatod.jobs.report import report_of
from potatod.jobs.rows import Answered
from potatod.jobs.states import Event, NotNow, State

from .admission import frame_of
from .answer import Answer
from .answers import paused
from .arrivals import Arrivals
from .desk import Desk
from .desks import Desks
from .eta import Eta
from .followers import Followers
from .known import Known, sees_all
from .pieces import pieces
from .refusal import Refusal

#: More than the largest number.
_NEWEST = 1 << 62
#: Of one job, waiting until what was wanted before has been done.
_MOST_WISHES = 64


class Handlers:
    def __init__(
        self, *, desks: Desks, arrivals: Arrivals, journal: Journal, known: Known, followers: Followers, send: Callable[[bytes, object], bool],
        logger: logging.Logger, down: Callable[[Desk | None], Refusal | None], now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """``down``: why nothing is computed of that model now and until the daemon is started again; see Front."""
        self._desks = desks
        self._arrivals = arrivals
        self._journal = journal
        self._known = known
        self._followers = followers
        self._send = send
        self._logger = logger
        self._down = down
        #: by number of a job that does not run and is being read, since somebody wants something done to it: who wants more, in turn
        self._wishes: dict[int, collections.deque[tuple[bytes, Manage]]] = {}
        self._now = now

    # new ones

    def generate(self, client: bytes, owner: str, message: Generate) -> None:
        """Raises :class:`Refusal`."""
        desk = self._desks.asked(message.model)
        if (refusal := self._down(desk)) is not None:
            raise refusal
        if message.follow:
            self._may_follow(client)
        if (number := self._known.by_key(owner, message.key)) is not None:
            self._generate_again(client, message, number, desk)
        else:
            self._arrivals.take(client, owner, message, desk, self._known_by_now)

    def _known_by_now(self, client: bytes, message: Generate, number: int) -> None:
        self.safely(client, message.request, lambda: self._generate_again(client, message, number, self._desks.asked(message.model)))

    def _generate_again(self, client: bytes, message: Generate, number: int, desk: Desk) -> None:
        """There is a job with that key already."""

        def found(job_and_ask: tuple[Job, Ask]) -> None:
            job, ask = job_and_ask
            if job.model_name != desk.name or not _alike(FROM_CLIENT.decode(ask.frame), message):
                raise Refusal("key_used", f"the key {message.key[:40]!r} is that of another request: take a new one for each")
            if message.follow:
                self._attach(client, message.request, number)
            else:
                self._tell_again(client, message.request, number)

        self._ask(client, message.request, number, lambda database: (_job_of(database, number), database.ask(number)), found)

    def _tell_again(self, client: bytes, request: int, number: int) -> None:
        def found(job: Job) -> None:
            self._send(client, Accepted(request, job.id, job.seed, job.prompt_tokens, self._desks.place(number), known=True))

        self._ask(client, request, number, partial(_job_of, number=number), found)

    # old ones

    def attach(self, client: bytes, owner: str, message: Attach) -> None:
        """Raises :class:`Refusal`."""
        self._may_follow(client)
        number = self._known.find(message.job, owner)
        self._attach(client, message.request, number, message)

    def _attach(self, client: bytes, request: int, number: int, has: Attach | None = None) -> None:
        """``has``: what the client has of it already. While the disk takes nothing it is told what there is on it, and the rest when that is there,
        too."""
        found_here, held = self._desks.find(number), bool(self._journal.trouble)
        if found_here is not None and not held:
            _, answer = found_here
            shown = Answered(answer.shown_ids, "".join(answer.shown), "".join(answer.reasoning), tuple(answer.logprobs))
            self._journal.then(partial(self._catch_up, client, request, answer.job.copy(), shown, has))
            return

        def found(job_and_answered: tuple[Job, Answered]) -> None:
            job, answered = job_and_answered
            if self._desks.find(number) is not None and not held:  # it has begun meanwhile
                self._attach(client, request, number, has)
                return
            self._catch_up(client, request, job, replace(answered, ids=answered.ids[: job.shown_tokens]), has)

        self._ask(client, request, number, lambda database: (_job_of(database, number), database.answered(number)), found)

    def _catch_up(self, client: bytes, request: int, job: Job, shown: Answered, has: Attach | None) -> None:
        desk, place = self._desks.of_model(job.model), self._desks.place(job.number)
        self._send(client, Accepted(request, job.id, job.seed, job.prompt_tokens, place, known=True))
        tokens, chars, reasoning = (has.tokens, has.text_chars, has.reasoning_chars) if has is not None else (0, 0, 0)
        likely = shown.logprobs[tokens : len(shown.ids)]
        for piece in pieces(job.id, tokens, shown.text[chars:], shown.ids[tokens:], shown.reasoning[reasoning:], likely):
            self._send(client, piece)
        if job.state is State.FAILED:
            self._send(client, Refusal(job.code, job.why).to(job=job.id))  # type: ignore[arg-type]  # one of the protocol's, as it was written
        elif job.state.over:
            self._send(client, job.finished(None))
        elif (refusal := self._down(desk)) is not None:
            self._send(client, goes_on(refusal, job.id).to(job=job.id))
        else:
            self._followers.add(job.number, client)
            if (here := self._desks.find(job.number)) is not None:
                here[1].said = None
            if job.state is State.PAUSED:
                self._send(client, paused(job))
            elif desk is None:
                self._send(client, Progress(job.id, "queued", prompt_tokens=job.prompt_tokens))

    def detach(self, client: bytes, owner: str, message: Detach) -> None:
        """Raises :class:`Refusal`."""
        self._followers.remove(self._known.find(message.job, owner), client)

    def manage(self, client: bytes, owner: str, message: Manage) -> None:
        """One after the other for each job, so that each sees what the one before has done. Raises :class:`Refusal`."""
        number = self._known.find(message.job, owner)
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

        self.safely(client, message.request, fulfil)
        self._next_wish(number)

    def _not_wished(self, client: bytes, message: Manage, number: int, why: str) -> None:
        self._unreadable(client, message.request, why)
        self._next_wish(number)

    def _next_wish(self, number: int) -> None:
        waiting = self._wishes.pop(number)
        while waiting:
            client, message = waiting.popleft()
            self.safely(client, message.request, partial(self._wish, client, message, number))
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
            self._send(client, message)

    def _managed(self, client: bytes, message: Manage, job: Job) -> None:
        self._known.changed(job)
        log.event(self._logger, f"{message.action} asked for", job=job.id, state=job.state.value)
        if message.request:
            self._journal.then(partial(self._say, client, Managed(message.request, self._report(job.copy()))))

    def list(self, client: bytes, owner: str, message: List) -> None:
        states = [State(state) for state in message.states]

        def found(jobs: list[Job]) -> None:
            self.safely(client, message.request, partial(tell, jobs))

        def tell(jobs: list[Job]) -> None:
            places, etas = self._desks.places(), self._desks.etas()
            reports = tuple(self._reported(job, places, etas) for job in jobs[: message.limit])
            self._send(client, Listed(message.request, reports, len(jobs) > message.limit))

        only = None if sees_all(owner) else owner
        newest = partial(_newest, states=states, before=message.before or _NEWEST, limit=message.limit + 1, owner=only)
        self._journal.ask(newest, found, partial(self._unreadable, client, message.request))

    def show(self, client: bytes, owner: str, message: Show) -> None:
        """Raises :class:`Refusal`."""
        number = self._known.find(message.job, owner)

        def found(job_and_ask: tuple[Job, Ask]) -> None:
            job, ask = job_and_ask
            asked = FROM_CLIENT.decode(ask.frame)
            self._send(client, Described(message.request, self._report(job), job.seed, asked.messages, asked.prompt, asked.options, asked.tools))

        self._ask(client, message.request, number, lambda database: (_job_of(database, number), database.ask(number)), found)

    def part(self, refusal: Refusal, desk: Desk | None) -> None:
        """Tells who follows a job why nothing comes of it for now; of that model, and of all without one. The jobs stay as they are."""
        for number in self._followers.numbers():
            found = self._desks.find(number)
            if desk is not None and len(self._desks) > 1 and (found is None or found[0] is not desk):
                continue
            for client in self._followers.forget(number):
                self._send(client, goes_on(refusal, self._known.id_of(number)).to(job=self._known.id_of(number)))

    # means

    def _may_follow(self, client: bytes) -> None:
        if self._followers.count(client) >= MAX_FOLLOWED:
            raise Refusal("queue_full", f"you follow {MAX_FOLLOWED} answers already; wait for one to end, or submit without following")

    def _ask(self, client: bytes, request: int, number: int, query: Callable[[Database], Any], found: Callable[[Any], None]) -> None:
        """``found`` may raise :class:`Refusal`; a job that has been deleted meanwhile is refused."""

        def look(database: Database) -> Any:
            return query(database) if database.job(number) is not None else None

        def then(value: Any) -> None:
            if value is None or number not in self._known:
                self._refuse(client, request, Refusal("unknown_job", "that job has just been deleted"))
            else:
                self.safely(client, request, partial(found, value))

        self._journal.ask(look, then, partial(self._unreadable, client, request))

    def safely(self, client: bytes, request: int, do: Callable[[], None]) -> None:
        """A request's top, when it comes and when the disk has answered: whatever is wrong with it ends the request and not the front. ``request``: 0
        where no answer is wanted."""
        try:
            do()
        except Refusal as refusal:
            self._refuse(client, request, refusal)
        except PotatoError:
            raise
        except Exception as error:  # a prompt may break a tokenizer or a template
            self._logger.exception("a request failed")
            self._refuse(client, request, Refusal("internal", f"this request failed: {type(error).__name__}: {first_line(error)}"[:500]))

    def _unreadable(self, client: bytes, request: int, why: str) -> None:
        self._refuse(client, request, Refusal("storage", why))

    def _refuse(self, client: bytes, request: int, refusal: Refusal) -> None:
        """Nobody hears of it who wanted no answer."""
        log.event(self._logger, "refused", level=logging.WARNING, code=refusal.code, why=refusal.message)
        if request:
            self._send(client, refusal.to(request=request))

    def _refuse_in_trouble(self) -> None:
        if self._journal.trouble:
            raise Refusal("storage", f"not now: {self._journal.trouble}")

    def _say(self, client: bytes, message: object) -> None:
        self._send(client, message)

    def _report(self, job: Job) -> JobReport:
        return self._reported(job, {job.number: self._desks.place(job.number)}, self._desks.etas())

    def _reported(self, job: Job, places: Mapping[int, int], etas: Mapping[int, Eta]) -> JobReport:
        found = self._desks.find(job.number)
        served = self._desks.of_model(job.model) is not None
        report = report_of(job if found is None else found[1].job, places.get(job.number, 0), served, self._now())
        eta = etas.get(job.number) if found is not None else None
        return report if eta is None else replace(report, eta_s=eta.s, eta_least_s=eta.least_s, eta_most_s=eta.most_s)


def _alike(before: Generate, now: Generate) -> bool:
    """Whether the same is asked, of whichever model: an older release wrote fewer fields."""
    return frame_of(replace(before, model="")) == frame_of(replace(now, model=""))


def _everything(database: Database, number: int) -> tuple[Job, Ask, Answered] | None:
    job = database.job(number)
    return None if job is None else (job, database.ask(number), database.answered(number))


def _job_of(database: Database, number: int) -> Job:
    job = database.job(number)
    assert job is not None, "whoever asks has looked"
    return job


def goes_on(refusal: Refusal, id: str) -> Refusal:
    """To whoever follows a job of which nothing comes for now."""
    return Refusal(refusal.code, f"{refusal.message}; the job goes on when it is back: potato-client attach {id}")


def _newest(database: Database, states: list[State], before: int, limit: int, owner: str | None) -> list[Job]:
    return database.newest(states, before, limit, owner)


def _not_now(job: Job, action: str) -> Refusal:
    return Refusal("not_now", f"job {job.id} is {job.state.value}: there is nothing to {action}")
