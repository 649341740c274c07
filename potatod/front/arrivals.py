"""Jobs on their way to the disk: from a request to Accepted, or to the sentence that says why not."""

from __future__ import annotations

import collections
import logging
import secrets
import time
from collections.abc import Callable
from functools import partial

from potato_client.protocol import Accepted, Generate
from potatod import log
from potatod.jobs.database import Added
from potatod.jobs.job import Ask, Job
from potatod.jobs.journal import Journal
from potatod.sections import Jobs as JobSettings

from .admission import Admitted
from .desk import Desk
from .desks import Desks
from .followers import Followers
from .known import Known
from .refusal import Refusal

_TITLE_CHARS = 80
#: What is done for a client that asked for a job which is there by now, with its number.
Again = Callable[[bytes, Generate, int], None]


class Arrivals:
    def __init__(
        self, *, desks: Desks, journal: Journal, known: Known, followers: Followers, limits: JobSettings, send: Callable[[bytes, object], bool],
        logger: logging.Logger, full: Callable[[], bool], now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """``full``: whether jobs that are not over take all that the database may have."""
        self._desks = desks
        self._journal = journal
        self._known = known
        self._followers = followers
        self.limits = limits
        self._send = send
        self._logger = logger
        self._full = full
        self._now = now
        self._of_owner: collections.Counter[str] = collections.Counter()
        #: by owner and key: who else has asked for the same meanwhile
        self._waiting: dict[tuple[str, str], list[tuple[bytes, Generate]]] = {}

    def take(self, client: bytes, owner: str, message: Generate, desk: Desk, again: Again) -> None:
        """The job begins, and Accepted is said, when it is on disk. Raises :class:`Refusal`."""
        same = self._waiting.get((owner, message.key)) if message.key else None
        if same is not None:
            same.append((client, message))
            return
        self._refuse_what_is_too_much(owner, desk)
        admitted = desk.admission.admit(message)
        job = self._job(owner, message, desk, admitted)
        self._of_owner[owner] += 1
        if message.key:
            self._waiting[owner, message.key] = []
        self._journal.write(
            Added(job.copy(), admitted.ask),
            then=partial(self._accepted, client, message, desk, job, admitted.ask, again),
            otherwise=partial(self._not_accepted, client, message, owner),
        )

    def _refuse_what_is_too_much(self, owner: str, desk: Desk) -> None:
        if self._journal.trouble:
            raise Refusal("storage", f"nothing can be accepted now: {self._journal.trouble}")
        if self._full():
            raise Refusal("storage", "jobs that are not over take all that [jobs] size allows; wait for one to end, or cancel and delete some")
        if not desk.scheduler.room_for(1 + self._of_owner.total()):
            raise Refusal("queue_full", f"the queue is full: {len(desk.scheduler.waiting)} answers wait; ask again later")
        if self._known.open_of(owner) + self._of_owner[owner] >= self.limits.per_user:
            raise Refusal("queue_full", f"{self.limits.per_user} of your jobs are not over ([jobs] per_user); wait for one to end, or cancel one")

    def _job(self, owner: str, message: Generate, desk: Desk, admitted: Admitted) -> Job:
        return Job(
            number=self._known.next_number(),
            id=secrets.token_hex(8),
            owner=owner,
            key=message.key,
            model=desk.checksum,
            model_name=desk.name,
            title=_title(message),
            rank=admitted.rank,
            seed=admitted.ask.sampling.seed,
            choice=admitted.choice,
            prompt_tokens=len(admitted.ask.prompt_ids),
            limit_tokens=admitted.limit_tokens,
            accepted_at=self._now(),
        )

    def _accepted(self, client: bytes, message: Generate, desk: Desk, job: Job, ask: Ask, again: Again) -> None:
        """It is on disk."""
        self._of_owner[job.owner] -= 1
        self._known.add(job)
        desk.begin(job, ask)
        place = self._desks.place(job.number)
        log.event(self._logger, "accepted", job=job.id, prompt_tokens=job.prompt_tokens, place=place)
        if message.follow:
            self._followers.add(job.number, client)
        self._send(client, Accepted(message.request, job.id, job.seed, job.prompt_tokens, place))
        for other, same in self._waiting.pop((job.owner, job.key), []):
            again(other, same, job.number)

    def _not_accepted(self, client: bytes, message: Generate, owner: str, why: str) -> None:
        self._of_owner[owner] -= 1
        refusal = Refusal("storage", f"this was not accepted: {why}")
        log.event(self._logger, "refused", level=logging.WARNING, code=refusal.code, why=refusal.message)
        for other, same in [(client, message), *self._waiting.pop((owner, message.key), [])]:
            self._send(other, refusal.to(request=same.request))


def _title(message: Generate) -> str:
    text = message.prompt if message.prompt is not None else message.messages[-1].content
    return " ".join(text[: 4 * _TITLE_CHARS].split())[:_TITLE_CHARS]

