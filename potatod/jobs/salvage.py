"""What can still be read of a job database that is damaged: job by job, each as far as its rows go."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from potatod.errors import ConfigError, InternalError, NoSuchModel, PotatoError, Unavailable

from .database import Added, Database, Said, sync_directory
from .job import Ask, Job
from .rows import Answered, answer_of, ask_of, job_of
from .schema import APPLICATION_ID, MIGRATIONS

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
            _refuse_another_s(connection, path)
            connection.text_factory = lambda raw: raw.decode(errors="replace")
            for number in _numbers(connection):
                _take(connection, number, found)
    return found


def repair(path: Path) -> tuple[Salvage, Path]:
    """Puts what can be read into a new database in its place; returns where the old one lies now. Raises what :func:`read` raises."""
    found = read(path)
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    fresh = path.with_name(f"{path.name}.repaired")
    for ending in ("", "-wal"):
        fresh.with_name(fresh.name + ending).unlink(missing_ok=True)
    database = Database(fresh)
    try:
        for each in list(found.saved):
            whole = each.answered
            said = [] if whole == Answered() else [Said(each.job.number, 0, whole.ids, whole.text, whole.reasoning, whole.logprobs)]
            try:
                database.commit([Added(each.job, each.ask), *said])
            except InternalError:  # its id or its key is that of another by now
                found.saved.remove(each)
                found.lost.append(each.job.number)
    finally:
        database.close()
    os.link(path, aside)  # there is a file of this name at every moment: a daemon that starts meanwhile makes no empty one
    log = path.with_name(f"{path.name}-wal")
    if log.exists():
        log.rename(aside.with_name(f"{aside.name}-wal"))
    fresh.replace(path)
    sync_directory(path.parent)
    return found, aside


def _refuse_what_is_in_use(path: Path) -> None:
    """By the bytes that SQLite locks."""
    try:
        file = path.open("r+b")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKED_BYTES, _LOCKED_AT)
        except OSError:
            raise Unavailable(f"a daemon uses {path}: ask it, with `potato-client export`, or stop it first") from None


def _refuse_another_s(connection: sqlite3.Connection, path: Path) -> None:
    """A database that can be read so far and is none of ours, or of a newer release."""
    try:
        (id,), (form,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
    except sqlite3.DatabaseError:
        return
    if id not in (0, APPLICATION_ID) or form > len(MIGRATIONS) or (id == 0 and form):
        raise ConfigError(f"{path} is a database of something else, or of a newer potatod")


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
        job, answered = _shortened(job, answered), answered if job.state.over else Answered()
    found.saved.append(Saved(job, ask, answered))


def _shortened(job: Job, answered: Answered) -> Job:
    """A job that is over ends where it can be read to. Any other begins anew, since nobody knows how much of what is left had been shown; its text
    becomes the same."""
    if job.state.over:
        return dataclasses.replace(job, sampled_tokens=len(answered.ids), shown_tokens=min(job.shown_tokens, len(answered.ids)))
    return dataclasses.replace(job, sampled_tokens=0, shown_tokens=0, first_token_at=None)
