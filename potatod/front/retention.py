"""Deletes jobs that are over, by age and by what the database takes on the disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from potatod import log
from potatod.jobs.database import Database, Deleted, Shrunk
from potatod.jobs.job import Job
from potatod.jobs.journal import Journal

from .known import Known

#: Between two looks.
_EVERY_S: Final = 600.0
#: Where the database is too large, this share of the jobs that are over goes, and at the next look as many again.
_SHARE: Final = 0.1
_SOON_S: Final = 1.0
#: Where jobs that are not over take all there is, it is looked again whether they still do.
_FULL_S: Final = 10.0
#: What has been over for less than this is not deleted for its size: somebody may be about to fetch it.
_GRACE_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What the database takes on the disk, and about how much of it jobs take that are over."""

    size_bytes: int
    over_bytes: int


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
        #: whether jobs that are not over take all that there may be
        self.full = False

    def limit(self, keep_s: float, size_bytes: int) -> None:
        """Other limits from now on."""
        self._keep_s, self._size_bytes, self._next = keep_s, size_bytes, 0.0

    def look(self) -> None:
        """Called now and then; does something now and then."""
        if self._clock() >= self._next and not self._journal.trouble:
            self._next = self._clock() + _EVERY_S
            self._journal.ask(self._outdated, self._delete, lambda why: None)

    def _outdated(self, database: Database) -> tuple[list[Job], Taken]:
        size_bytes = database.size_bytes
        taken = Taken(size_bytes, database.over_bytes if size_bytes > self._size_bytes else 0)
        return outdated(list(database.all()), self._now(), self._keep_s, taken, self._size_bytes), taken

    def _delete(self, found: tuple[list[Job], Taken]) -> None:
        jobs, taken = found
        self.full = taken.size_bytes - taken.over_bytes > self._size_bytes
        if self.full:
            self._next = self._clock() + _FULL_S
        gone = [job for job in jobs if not self._known.is_open(job.number)]  # else it has been tried again meanwhile
        if not gone:
            return
        self._next = self._clock() + _SOON_S
        for job in gone:
            self._known.forget(job.number)
        self._journal.write(*(Deleted(job.number) for job in gone))
        self._journal.write(Shrunk(), otherwise=lambda why: None)
        log.event(self._logger, "deleted jobs that were over", jobs=len(gone))


def outdated(jobs: Sequence[Job], now: float, keep_s: float, taken: Taken, most_bytes: int) -> list[Job]:
    """Those that are over for longer than ``keep_s``. Where the database is larger than it may be, and what is over has a part in that, a tenth of it
    too, what has been over for longest first."""
    over = sorted((job for job in jobs if job.state.over), key=_since)
    old = [job for job in over if _since(job) < now - keep_s]
    if taken.size_bytes <= most_bytes or taken.over_bytes < _SHARE * taken.size_bytes:
        return old
    some = over[: max(len(old), 1, int(_SHARE * len(over)))]
    return [job for job in some if job in old or _since(job) < now - _GRACE_S]


def _since(job: Job) -> float:
    return job.ended_at or job.accepted_at
