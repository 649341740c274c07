"""The job database: SQLite, one connection, nobody else's while we have it. Every commit is on disk when it returns.

NOTE [ what holds a commit ]
WAL with ``synchronous=FULL`` syncs the log at each commit: over simulated power cuts FULL lost none and NORMAL thousands. The exclusive
locking mode keeps a second daemon out, needs no shared-memory file, and frees itself with the process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potatod.errors import ConfigError, InternalError, ModelDataError, PotatoError, TryAgain, Unavailable

from .job import Ask, Job
from .logprobs import joined
from .rows import COLUMNS, SELECT, Answered, answer_of, ask_of, job_from, job_of, packed_ids, row_of
from .schema import APPLICATION_ID, MIGRATIONS
from .states import State

_OVER: Final = ", ".join(f"'{state.value}'" for state in State if state.over)
#: A front that has just been killed may hold the lock for a moment.
_BUSY_S: Final = 5.0
#: The log is cut back to this when it has grown beyond.
_LOG_BYTES: Final = 8 << 20


class Unwritable(TryAgain):
    """The disk does not take it: full, a quota, an error of the device, or read-only."""


class Damaged(ModelDataError):
    """The file is no sound database of jobs."""


@dataclass(frozen=True, slots=True)
class Added:
    job: Job
    ask: Ask


@dataclass(frozen=True, slots=True)
class Changed:
    """All of a job but question and answer."""

    job: Job


@dataclass(frozen=True, slots=True)
class Said:
    """What one sweep added to an answer."""

    number: int
    #: sampled before these
    first: int
    ids: tuple[int, ...]
    text: str
    reasoning: str
    #: one for each id where the job asked for them, packed as in logprobs.py
    logprobs: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Gathered:
    """The job is over: what it said becomes one row."""

    number: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """Does nothing to a job that is not over."""

    number: int


@dataclass(frozen=True, slots=True)
class Shrunk:
    """Free pages are given back to the disk, so many at most."""

    pages: int = 4096


Write = Added | Changed | Said | Gathered | Deleted | Shrunk


class Database:
    """Raises :class:`Damaged`, :class:`Unwritable`, :class:`Unavailable` where another process has it, :class:`ConfigError` where it cannot be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _make_place(path)
        with self._explained():
            self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, cached_statements=64)
        try:
            with self._explained():
                self._open()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        with self._explained():
            self._connection.close()

    # writing

    def commit(self, writes: Iterable[Write]) -> None:
        """All of them or, where it raises, none. A write about a job that has been deleted does nothing."""
        with self._transaction():
            for write in writes:
                self._write(write)

    def _write(self, write: Write) -> None:
        run = self._connection.execute
        match write:
            case Added(job, ask):
                marks = ", ".join("?" * len(COLUMNS))
                run(f"INSERT INTO jobs ({', '.join(COLUMNS)}) VALUES ({marks})", row_of(job))
                sampling = json.dumps(dataclasses.asdict(ask.sampling))
                run("INSERT INTO asks VALUES (?, ?, ?, ?, ?, ?)", (job.number, ask.frame, packed_ids(ask.prompt_ids), sampling, ask.chat, ask.tail))
            case Changed(job):
                run(f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in COLUMNS)} WHERE number = ?", (*row_of(job), job.number))
            case Said(number, first, ids, text, reasoning, logprobs):
                there = "WHERE EXISTS (SELECT 1 FROM jobs WHERE number = ?)"
                values = number, first, packed_ids(ids), text, reasoning, joined(logprobs)
                run(f"INSERT INTO tokens SELECT ?, ?, ?, ?, ?, ? {there}", (*values, number))
            case Gathered(number):
                whole = self.answered(number)
                run("DELETE FROM tokens WHERE number = ?", (number,))
                if whole != Answered():
                    self._write(Said(number, 0, whole.ids, whole.text, whole.reasoning, whole.logprobs))
            case Deleted(number):
                run(f"DELETE FROM jobs WHERE number = ? AND state IN ({_OVER})", (number,))
            case Shrunk(pages):
                for _ in range(min(pages, self._one("PRAGMA freelist_count"))):
                    run("PRAGMA incremental_vacuum(1)")  # execute takes one step only, and a step is a page

    # reading

    def all(self) -> Iterator[Job]:
        """In the order of their arrival."""
        return self._jobs(f"{SELECT} ORDER BY number", ())

    def newest(self, states: Sequence[State], before: int, limit: int, owner: str | None = None) -> list[Job]:
        """The last ones that arrived before number ``before``; of these states, or of all where none is named; of this owner, or of all."""
        marks = ", ".join("?" * len(states))
        among = f"AND state IN ({marks})" if states else ""
        whose, owners = ("", ()) if owner is None else ("AND owner = ?", (owner,))
        query = f"{SELECT} WHERE number < ? {among} {whose} ORDER BY number DESC LIMIT ?"
        return list(self._jobs(query, (before, *(state.value for state in states), *owners, limit)))

    def job(self, number: int) -> Job | None:
        with self._read():
            return job_of(self._connection, number)

    def ask(self, number: int) -> Ask:
        with self._read():
            return ask_of(self._connection, number)

    def answered(self, number: int) -> Answered:
        with self._read():
            return answer_of(self._connection, number)

    @property
    def size_bytes(self) -> int:
        """Of what is in it; free pages do not count."""
        with self._read():
            pages, free, page = (int(self._one(f"PRAGMA {name}")) for name in ("page_count", "freelist_count", "page_size"))
        return (pages - free) * page

    @property
    def over_bytes(self) -> int:
        """About what jobs that are over take of it."""
        of = f"WHERE number IN (SELECT number FROM jobs WHERE state IN ({_OVER}))"
        with self._read():
            asked = int(self._one(f"SELECT coalesce(sum(length(frame) + length(prompt_ids)), 0) FROM asks {of}"))
            of_row = "length(ids) + length(text) + length(reasoning) + coalesce(length(logprobs), 0)"
            said = int(self._one(f"SELECT coalesce(sum({of_row}), 0) FROM tokens {of}"))
        return asked + said

    # means

    def _open(self) -> None:
        run = self._connection.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA auto_vacuum = INCREMENTAL")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run("PRAGMA foreign_keys = ON")
        run(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        form = self._one("PRAGMA user_version")
        if (found := self._one("PRAGMA application_id")) != APPLICATION_ID and (found or form or self._one("SELECT count(*) FROM sqlite_master")):
            raise ConfigError(f"{self.path} is a database of something else: give [jobs] path another name")
        if form > len(MIGRATIONS):
            newer = f"{self.path} was made by a newer potatod (form {form}, this one knows {len(MIGRATIONS)})"
            raise ConfigError(f"{newer}: install that, or move the file away")
        if (found := self._one("PRAGMA quick_check(1)")) != "ok":
            raise self._damaged(str(found))
        if form < len(MIGRATIONS):  # else nothing is written: a disk that is full keeps nobody from reading
            self._migrate(form)
        sync_directory(self.path.parent)

    def _migrate(self, form: int) -> None:
        run = self._connection.execute
        with self._transaction():
            for number, script in enumerate(MIGRATIONS[form:], form + 1):
                for statement in script.split(";"):
                    run(statement)
                run(f"PRAGMA user_version = {number}")
            run(f"PRAGMA application_id = {APPLICATION_ID}")

    def _one(self, query: str) -> Any:
        return self._connection.execute(query).fetchone()[0]

    def _jobs(self, query: str, values: tuple[object, ...]) -> Iterator[Job]:
        with self._read(), closing(self._connection.execute(query, values)) as rows:
            for row in rows:
                yield job_from(row)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # some errors have rolled it back already
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._as_ours(error) from error

    @contextmanager
    def _read(self) -> Iterator[None]:
        """As ``_explained``, and for rows that we did not write."""
        try:
            with self._explained():
                yield
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error

    def _as_ours(self, error: sqlite3.DatabaseError) -> PotatoError:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return Unavailable(f"the job database {self.path} is in use by another process; stop that daemon, or give this one its own [jobs] path")
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")):
            return Unwritable(f"the job database {self.path} cannot be written: {_PLAINLY.get(name, str(error))}")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")):  # the last: a table or a column is missing
            return self._damaged(str(error))
        return InternalError(f"the job database {self.path}: {name} {error}")

    def _damaged(self, what: str) -> Damaged:
        return Damaged(
            f"the job database {self.path} is damaged ({what}): `potatod jobs repair` saves what can be saved and keeps the old file, "
            "`potatod jobs export` shows what can be read"
        )


_PLAINLY: Final = {"SQLITE_FULL": "the disk is full"}


def _make_place(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise ConfigError(f"cannot use [jobs] path {path}: {error.strerror}") from error


def sync_directory(directory: Path) -> None:
    """So that a file's name survives a power cut, too."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
