"""Deletes jobs that are over, by age and by what the database takes on the disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from potatod import log
from potatod.jobs.database import Database, Deleted
from potatod.jobs.job import Job
from potatod.jobs.journal import Journal

from .known import Known

#: Between two looks.
_EVERY_S: Final = 600.0
#: Where the database is too large, this share of the jobs that are over goes, and at the next look as many again.
_SHARE: Final = 0.1
_SOON_S: Final = 1.0


class Retention:
    def __init__(
        self, journal: Journal, known: Known, keep_s: float, size_bytes: int, logger: logging.Logger,
        clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._journal = journal
        self._known = known
        self._keep_s = keep_s
        self._size_bytes = size_bytes
        self._logger = logger
        self._clock = clock
        self._now = now
        self._next = 0.0

    def look(self) -> None:
        """Called now and then; does something now and then."""
        if self._clock() < self._next:
            return
        self._next = self._clock() + _EVERY_S
        self._journal.ask(self._outdated, self._delete)

    def _outdated(self, database: Database) -> list[Job]:
        return outdated(list(database.all()), self._now(), self._keep_s, database.size_bytes, self._size_bytes)

    def _delete(self, found: Sequence[Job]) -> None:
        if not found:
            return
        self._next = self._clock() + _SOON_S
        for job in found:
            self._journal.write(Deleted(job.number))
            self._known.forget(job.number)
        self._journal.ask(Database.shrink, lambda _: None)
        log.event(self._logger, "deleted jobs that were over", jobs=len(found))


def outdated(jobs: Sequence[Job], now: float, keep_s: float, size_bytes: int, most_bytes: int) -> list[Job]:
    """Those that are over for longer than ``keep_s``; where the database is larger than it may be, the tenth that has been over for longest."""
    over = sorted((job for job in jobs if job.state.over), key=lambda job: job.ended_at or job.accepted_at)
    old = [job for job in over if (job.ended_at or job.accepted_at) < now - keep_s]
    if size_bytes > most_bytes:
        return over[: max(len(old), 1, int(_SHARE * len(over)))]
    return old
