"""What can still be read of a job database that is damaged: job by job, each as far as its rows go."""

from __future__ import annotations

import dataclasses
import fcntl
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from potatod.errors import NoSuchModel, PotatoError, Unavailable

from .database import Added, Answered, Database, Said, answer_of, ask_of, job_of
from .job import Ask, Job

#: Where both ends of a table can be read and its middle cannot, so many numbers are tried one by one.
_TRIED: Final = 200_000
#: https://sqlite.org/fileformat.html, "The lock-byte page"
_LOCKED_AT, _LOCKED_BYTES = 0x40000000, 512


@dataclass(slots=True)
class Saved:
    job: Job
    ask: Ask
    answered: Answered


@dataclass(slots=True)
class Salvage:
    saved: list[Saved] = field(default_factory=list)
    #: numbers of jobs that were there and whose question cannot be read
    lost: list[int] = field(default_factory=list)
    #: numbers of jobs whose answer is shorter than it was
    shortened: list[int] = field(default_factory=list)


def read(path: Path) -> Salvage:
    """Reads a copy, since SQLite writes whatever it opens. Raises :class:`NoSuchModel` where there is no file, :class:`Unavailable` where a daemon
    uses it."""
    if not path.is_file():
        raise NoSuchModel(f"there is no job database at {path}")
    _refuse_what_is_in_use(path)
    found = Salvage()
    with tempfile.TemporaryDirectory(prefix="potato-jobs-") as place:
        copy = Path(place) / "jobs.db"
        for ending in ("", "-wal"):
            if (part := path.with_name(path.name + ending)).is_file():
                shutil.copyfile(part, copy.with_name(copy.name + ending))
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            connection.text_factory = lambda raw: raw.decode(errors="replace")
            for number in _numbers(connection):
                _take(connection, number, found)
    return found


def repair(path: Path) -> tuple[Salvage, Path]:
    """Puts what can be read into a new database in its place; returns where the old one lies now. Raises what :func:`read` raises."""
    found = read(path)
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    fresh = path.with_name(f"{path.name}.repaired")
    fresh.unlink(missing_ok=True)
    database = Database(fresh)
    try:
        for each in found.saved:
            said = [] if each.answered == Answered() else [Said(each.job.number, 0, each.answered.ids, each.answered.text, each.answered.reasoning)]
            database.commit([Added(each.job, each.ask), *said])
    finally:
        database.close()
    for ending in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(aside.with_name(aside.name + ending))
    fresh.rename(path)
    return found, aside


def _refuse_what_is_in_use(path: Path) -> None:
    """By the bytes that SQLite locks."""
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKED_BYTES, _LOCKED_AT)
        except OSError:
            raise Unavailable(f"a daemon uses {path}: ask it, with `potato-client export`, or stop it first") from None


def _numbers(connection: sqlite3.Connection) -> Iterator[int]:
    """Of all jobs that may be there: from both ends, and one by one between them where the table cannot be walked through."""
    first, whole = _walk(connection, "SELECT number FROM jobs ORDER BY number")
    yield from first
    if whole:
        return
    last, _ = _walk(connection, "SELECT number FROM jobs ORDER BY number DESC")
    also, _ = _walk(connection, "SELECT DISTINCT number FROM asks ORDER BY number")
    seen = set(first)
    highest = max([0, *last, *also])
    between = range(max(first, default=0) + 1, min(highest, max(first, default=0) + _TRIED) + 1)
    yield from sorted((set(last) | set(also) | set(between)) - seen)


def _walk(connection: sqlite3.Connection, query: str) -> tuple[list[int], bool]:
    """Numbers up to where the table cannot be read, and whether that is its end."""
    found: list[int] = []
    try:
        for (number,) in connection.execute(query):
            if isinstance(number, int):
                found.append(number)
    except sqlite3.DatabaseError:
        return found, False
    return found, True


def _take(connection: sqlite3.Connection, number: int, found: Salvage) -> None:
    try:
        job = job_of(connection, number)
        if job is None:
            return
        ask = ask_of(connection, number)
    except (sqlite3.DatabaseError, PotatoError, ValueError, KeyError, TypeError):
        found.lost.append(number)
        return
    answered = answer_of(connection, number, as_far_as_it_goes=True)
    if len(answered.ids) < job.sampled_tokens:
        found.shortened.append(number)
        job = _shortened(job, answered)
    found.saved.append(Saved(job, ask, answered))


def _shortened(job: Job, answered: Answered) -> Job:
    """What is missing of its answer is computed again, the same, where the job was not over; else it ends where it ends."""
    return dataclasses.replace(job, sampled_tokens=len(answered.ids), shown_tokens=min(job.shown_tokens, len(answered.ids)))
