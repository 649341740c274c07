"""What is said to a client about a request, now or when the disk has answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from potato_client.job_report import JobReport
from potatod import log
from potatod.errors import PotatoError, first_line
from potatod.jobs.database import Database
from potatod.jobs.job import Job
from potatod.jobs.journal import Journal
from potatod.jobs.report import report_of

from .desks import Desks
from .eta import Eta
from .known import Known
from .refusal import Refusal


class Replies:
    """Of a request; its number is 0 where the client wants no answer."""

    def __init__(
        self, *, desks: Desks, journal: Journal, known: Known, send: Callable[[bytes, object], bool], logger: logging.Logger,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._desks = desks
        self._journal = journal
        self._known = known
        self._logger = logger
        self._now = now
        self.send = send

    def ask(self, client: bytes, request: int, number: int, query: Callable[[Database], Any], found: Callable[[Any], None]) -> None:
        """``found`` may raise :class:`Refusal`; a job that has been deleted meanwhile is refused."""

        def look(database: Database) -> Any:
            return query(database) if database.job(number) is not None else None

        def then(value: Any) -> None:
            if value is None or number not in self._known:
                self.refuse(client, request, Refusal("unknown_job", "that job has just been deleted"))
            else:
                self.safely(client, request, partial(found, value))

        self._journal.ask(look, then, partial(self.unreadable, client, request))

    def safely(self, client: bytes, request: int, do: Callable[[], None]) -> None:
        """A request's top, when it comes and when the disk has answered: whatever is wrong with it ends the request and not the front."""
        try:
            do()
        except Refusal as refusal:
            self.refuse(client, request, refusal)
        except PotatoError:
            raise
        except Exception as error:  # a prompt may break a tokenizer or a template
            self._logger.exception("a request failed")
            self.refuse(client, request, Refusal("internal", f"this request failed: {type(error).__name__}: {first_line(error)}"[:500]))

    def unreadable(self, client: bytes, request: int, why: str) -> None:
        self.refuse(client, request, Refusal("storage", why))

    def refuse(self, client: bytes, request: int, refusal: Refusal) -> None:
        """Nobody hears of it who wanted no answer."""
        log.event(self._logger, "refused", level=logging.WARNING, code=refusal.code, why=refusal.message)
        if request:
            self.send(client, refusal.to(request=request))

    def report(self, job: Job) -> JobReport:
        return self.reported(job, {job.number: self._desks.place(job.number)}, self._desks.etas(job.number))

    def reported(self, job: Job, places: Mapping[int, int], etas: Mapping[int, Eta]) -> JobReport:
        found = self._desks.find(job.number)
        served = self._desks.of_model(job.model) is not None
        report = report_of(job if found is None else found[1].job, places.get(job.number, 0), served, self._now())
        eta = etas.get(job.number) if found is not None else None
        return report if eta is None else replace(report, eta_s=eta.s, eta_least_s=eta.least_s, eta_most_s=eta.most_s)
