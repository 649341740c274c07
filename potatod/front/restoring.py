"""At the beginning: every job that was not over when the last daemon ended goes on where it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from potatod import log
from potatod.jobs.database import Changed, Damaged, Database
from potatod.jobs.job import Ask, Job
from potatod.jobs.journal import Journal
from potatod.jobs.rows import Answered
from potatod.jobs.states import Event

from .desk import Desk
from .desks import Desks
from .known import Known


def restore(desks: Desks, journal: Journal, known: Known, logger: logging.Logger, now: Callable[[], float] = time.time) -> int:
    """Returns how many; those whose models are not served wait. Waits for the disk. Raises what the database raises."""
    begun: list[tuple[Desk, Job, Ask, Answered]] = []

    def read(database: Database) -> list[Job]:
        jobs = []
        for job in database.all():
            jobs.append(job)
            if job.state.active and (desk := desks.of_model(job.model)) is not None:
                begun.append((desk, job, database.ask(job.number), database.answered(job.number)))
        return jobs

    def found(jobs: list[Job]) -> None:
        for job in jobs:
            known.add(job)
            if job.reason == "stop" and (desk := desks.of_model(job.model)) is not None:
                desk.answers.lengths.add(job.sampled_tokens)

    journal.ask(read, found, _damaged)
    journal.wait()
    for desk, job, ask, answered in begun:
        job.enter(Event.INTERRUPTED, now())
        job.sampled_tokens = len(answered.ids)
        if desk.fits(job):
            desk.begin(job, ask, answered)
        else:
            job.enter(Event.PAUSE, now())
            job.why = desk.too_long(job)
            journal.write(Changed(job.copy()))
            log.event(logger, "paused", level=logging.WARNING, job=job.id, why=job.why)
    return len(begun)


def _damaged(why: str) -> None:
    raise Damaged(why)
