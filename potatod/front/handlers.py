"""What clients ask about jobs: one method a message, from the message to what is said to it.

A job that runs or waits lies on its model's desk; every other one is only in the database, which is asked without waiting. While it is, other messages
are handled, so whoever gets an answer looks again whether the job has begun or is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from potato_client.protocol import (
    FROM_CLIENT,
    MAX_FOLLOWED,
    Accepted,
    Attach,
    Described,
    Detach,
    Generate,
    List,
    Listed,
    Manage,
    Progress,
    Show,
)
from potatod.jobs.database import Database
from potatod.jobs.job import Ask, Job
from potatod.jobs.journal import Journal
from potatod.jobs.rows import Answered
from potatod.jobs.states import State

from .admission import frame_of
from .answers import paused
from .arrivals import Arrivals
from .desk import Desk
from .desks import Desks
from .followers import Followers
from .known import Known, sees_all
from .pieces import pieces
from .refusal import Refusal
from .replies import Replies
from .wishes import Wishes

#: More than the largest number.
_NEWEST = 1 << 62


class Handlers:
    def __init__(
        self, *, desks: Desks, arrivals: Arrivals, journal: Journal, known: Known, followers: Followers, replies: Replies, wishes: Wishes,
        down: Callable[[Desk | None], Refusal | None],
    ) -> None:  # fmt: skip
        """``down``: why nothing is computed of that model now and until the daemon is started again; see Front."""
        self._desks = desks
        self._arrivals = arrivals
        self._journal = journal
        self._known = known
        self._followers = followers
        self._replies = replies
        self._wishes = wishes
        self._down = down

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
        self._replies.safely(client, message.request, lambda: self._generate_again(client, message, number, self._desks.asked(message.model)))

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

        self._replies.ask(client, message.request, number, lambda database: (_job_of(database, number), database.ask(number)), found)

    def _tell_again(self, client: bytes, request: int, number: int) -> None:
        def found(job: Job) -> None:
            self._replies.send(client, Accepted(request, job.id, job.seed, job.prompt_tokens, self._desks.place(number), known=True))

        self._replies.ask(client, request, number, partial(_job_of, number=number), found)

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

        self._replies.ask(client, request, number, lambda database: (_job_of(database, number), database.answered(number)), found)

    def _catch_up(self, client: bytes, request: int, job: Job, shown: Answered, has: Attach | None) -> None:
        desk, place = self._desks.of_model(job.model), self._desks.place(job.number)
        self._replies.send(client, Accepted(request, job.id, job.seed, job.prompt_tokens, place, known=True))
        tokens, chars, reasoning = (has.tokens, has.text_chars, has.reasoning_chars) if has is not None else (0, 0, 0)
        likely = shown.logprobs[tokens : len(shown.ids)]
        for piece in pieces(job.id, tokens, shown.text[chars:], shown.ids[tokens:], shown.reasoning[reasoning:], likely):
            self._replies.send(client, piece)
        if job.state is State.FAILED:
            self._replies.send(client, Refusal(job.code, job.why).to(job=job.id))  # type: ignore[arg-type]  # one of the protocol's, as it was written
        elif job.state.over:
            self._replies.send(client, job.finished(None))
        elif (refusal := self._down(desk)) is not None:
            self._replies.send(client, goes_on(refusal, job.id).to(job=job.id))
        else:
            self._followers.add(job.number, client)
            if (here := self._desks.find(job.number)) is not None:
                here[1].said = None
            if job.state is State.PAUSED:
                self._replies.send(client, paused(job))
            elif desk is None:
                self._replies.send(client, Progress(job.id, "queued", prompt_tokens=job.prompt_tokens))

    def detach(self, client: bytes, owner: str, message: Detach) -> None:
        """Raises :class:`Refusal`."""
        self._followers.remove(self._known.find(message.job, owner), client)

    def manage(self, client: bytes, owner: str, message: Manage) -> None:
        """Raises :class:`Refusal`."""
        self._wishes.want(client, self._known.find(message.job, owner), message)

    def list(self, client: bytes, owner: str, message: List) -> None:
        states = [State(state) for state in message.states]

        def found(jobs: list[Job]) -> None:
            self._replies.safely(client, message.request, partial(tell, jobs))

        def tell(jobs: list[Job]) -> None:
            places, etas = self._desks.places(), self._desks.etas()
            reports = tuple(self._replies.reported(job, places, etas) for job in jobs[: message.limit])
            self._replies.send(client, Listed(message.request, reports, len(jobs) > message.limit))

        only = None if sees_all(owner) else owner
        newest = partial(_newest, states=states, before=message.before or _NEWEST, limit=message.limit + 1, owner=only)
        self._journal.ask(newest, found, partial(self._replies.unreadable, client, message.request))

    def show(self, client: bytes, owner: str, message: Show) -> None:
        """Raises :class:`Refusal`."""
        number = self._known.find(message.job, owner)

        def found(job_and_ask: tuple[Job, Ask]) -> None:
            job, ask = job_and_ask
            asked = FROM_CLIENT.decode(ask.frame)
            report = self._replies.report(job)
            self._replies.send(client, Described(message.request, report, job.seed, asked.messages, asked.prompt, asked.options, asked.tools))

        self._replies.ask(client, message.request, number, lambda database: (_job_of(database, number), database.ask(number)), found)

    def part(self, refusal: Refusal, desk: Desk | None) -> None:
        """Tells who follows a job why nothing comes of it for now; of that model, and of all without one. The jobs stay as they are."""
        for number in self._followers.numbers():
            found = self._desks.find(number)
            if desk is not None and len(self._desks) > 1 and (found is None or found[0] is not desk):
                continue
            for client in self._followers.forget(number):
                self._replies.send(client, goes_on(refusal, self._known.id_of(number)).to(job=self._known.id_of(number)))

    def _may_follow(self, client: bytes) -> None:
        if self._followers.count(client) >= MAX_FOLLOWED:
            raise Refusal("queue_full", f"you follow {MAX_FOLLOWED} answers already; wait for one to end, or submit without following")


def _alike(before: Generate, now: Generate) -> bool:
    """Whether the same is asked, of whichever model: an older release wrote fewer fields."""
    return frame_of(replace(before, model="")) == frame_of(replace(now, model=""))


def _job_of(database: Database, number: int) -> Job:
    job = database.job(number)
    assert job is not None, "whoever asks has looked"
    return job


def goes_on(refusal: Refusal, id: str) -> Refusal:
    """To whoever follows a job of which nothing comes for now."""
    return Refusal(refusal.code, f"{refusal.message}; the job goes on when it is back: potato-client attach {id}")


def _newest(database: Database, states: list[State], before: int, limit: int, owner: str | None) -> list[Job]:
    return database.newest(states, before, limit, owner)
