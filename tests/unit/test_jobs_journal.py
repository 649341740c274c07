"""The journal's thread: what waits for the disk, in which order it is told, and a disk that takes nothing for a while."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from potatod.errors import InternalError
from potatod.jobs import journal as journal_module
from potatod.jobs.database import Added, Changed, Damaged, Database, Said, Unwritable, Write
from potatod.jobs.journal import Journal
from potatod.jobs.rows import Answered

from .test_jobs import job
from .test_jobs_database import ASK


class Disk(Database):
    """One that is full, or breaks, when the test says so."""

    full = False
    broken: Exception | None = None
    commits = 0

    def commit(self, writes: object) -> None:
        listed: list[Write] = list(writes)  # type: ignore[call-overload]
        if Disk.broken is not None:
            raise Disk.broken
        if Disk.full:
            raise Unwritable("the disk is full")
        Disk.commits += 1
        super().commit(listed)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setattr(journal_module, "Database", Disk)
    Disk.full, Disk.broken, Disk.commits = False, None, 0
    made = Journal(tmp_path / "jobs.db", again_s=0.02)
    yield made
    made.close()


def until(journal: Journal, true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        poller = select.poll()
        poller.register(journal.fd, select.POLLIN)
        poller.poll(50)
        journal.settle()


def test_what_waits_is_told_in_order_and_only_when_it_is_on_disk(journal: Journal, tmp_path: Path) -> None:
    told: list[object] = []
    journal.write(Added(job(), ASK), then=lambda: told.append(1))
    journal.then(lambda: told.append(2))
    journal.settle()
    assert told == [], "nothing has been handed over"
    journal.flush()
    journal.write(Said(1, 0, (5,), "A", ""), then=lambda: told.append(3))
    journal.ask(lambda database: database.answered(1), told.append, told.append)
    until(journal, lambda: len(told) == 4)
    assert told == [1, 2, 3, Answered((5,), "A", "")]


def test_what_waits_for_nothing_is_done_at_once(journal: Journal) -> None:
    told: list[int] = []
    journal.then(lambda: told.append(1))
    assert told == [1]


def test_what_is_written_together_is_one_commit(journal: Journal) -> None:
    done: list[int] = []
    for number in range(1, 101):
        journal.write(Added(job(number=number, id=str(number)), ASK), then=lambda: done.append(1))
    journal.flush()
    until(journal, lambda: len(done) == 100)
    assert Disk.commits == 1


def test_a_full_disk_refuses_what_may_be_refused_and_keeps_the_rest_until_there_is_room(journal: Journal) -> None:
    told: list[object] = []
    journal.write(Added(job(), ASK), then=lambda: told.append("added"))
    journal.flush()
    until(journal, lambda: told)
    Disk.full = True
    journal.write(Added(job(number=2, id="b"), ASK), then=lambda: told.append("never"), otherwise=told.append)
    journal.write(Said(1, 0, (5,), "A", ""), then=lambda: told.append("said"))
    journal.flush()
    until(journal, lambda: journal.trouble)
    assert told == ["added", "the disk is full"]
    assert journal.trouble == "the disk is full"
    journal.ask(lambda database: database.job(1) is not None, told.append, told.append)
    until(journal, lambda: len(told) == 3)
    assert told[2] is True, "who asks is answered meanwhile"
    time.sleep(0.1)
    journal.settle()
    assert "said" not in told
    Disk.full = False
    until(journal, lambda: not journal.trouble and "said" in told)
    journal.ask(lambda database: (database.answered(1).ids, database.job(2)), told.append, told.append)
    until(journal, lambda: len(told) == 5)
    assert told[3:] == ["said", ((5,), None)]


def test_where_all_that_failed_could_be_refused_there_is_no_trouble_left(journal: Journal) -> None:
    Disk.full = True
    told: list[str] = []
    journal.write(Added(job(), ASK), otherwise=told.append)
    journal.flush()
    until(journal, lambda: told)
    until(journal, lambda: not journal.trouble)
    Disk.full = False
    done: list[int] = []
    journal.write(Added(job(), ASK), then=lambda: done.append(1))
    journal.flush()
    until(journal, lambda: done)


def test_closing_writes_what_is_left(tmp_path: Path) -> None:
    made = Journal(tmp_path / "jobs.db")
    made.write(Added(job(), ASK))
    made.close()
    assert Database(tmp_path / "jobs.db").job(1) == job()


def test_closing_waits_for_no_full_disk(journal: Journal) -> None:
    journal.write(Added(job(), ASK))
    journal.flush()
    Disk.full = True
    journal.write(Changed(job()))
    began = time.monotonic()
    journal.close()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("error", [Damaged("it is damaged"), ZeroDivisionError("a bug")])
def test_a_thread_that_breaks_is_heard_of(journal: Journal, error: Exception) -> None:
    Disk.broken = error
    journal.write(Added(job(), ASK))
    journal.flush()
    with pytest.raises(type(error) if isinstance(error, Damaged) else InternalError, match=r"damaged|ZeroDivisionError: a bug"):
        until(journal, lambda: False)


def test_a_question_that_the_disk_does_not_answer_is_said_to_whoever_asked_and_the_journal_lives(journal: Journal) -> None:
    def fails(database: Database) -> None:
        raise Unwritable("the disk cannot be read")

    told: list[object] = []
    journal.ask(fails, told.append, told.append)
    journal.ask(lambda database: "fine", told.append, told.append)
    until(journal, lambda: len(told) == 2)
    assert told == ["the disk cannot be read", "fine"]


def test_trouble_is_over_however_late_the_loop_hears_of_it(journal: Journal) -> None:
    told: list[object] = []
    journal.write(Added(job(), ASK), then=lambda: told.append("added"))
    journal.flush()
    until(journal, lambda: told)
    Disk.full = True
    journal.write(Said(1, 0, (5,), "A", ""), then=lambda: told.append("said"))
    journal.flush()
    time.sleep(0.1)
    Disk.full = False
    time.sleep(0.1)
    until(journal, lambda: "said" in told)
    assert journal.trouble == ""


def test_what_cannot_be_opened_is_said_by_whoever_makes_it(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"no database, by any means, at all" * 100)
    with pytest.raises(Damaged):
        Journal(tmp_path / "jobs.db")
