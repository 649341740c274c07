"""The disk under the job database fails at each of its operations in turn: what was acknowledged stays, what failed can be done again."""

from __future__ import annotations

import random
from pathlib import Path

import apsw
import pytest
from sqlite_disk import Disk, Done

from potatod.errors import PotatoError
from potatod.jobs.database import Database, Unwritable

from .test_power_cuts import batches, held

#: SQLite says of a quota that is used up what it says of any error of the device.
ERRORS = {"full": apsw.FullError, "input/output error or quota": apsw.IOError, "read-only": apsw.ReadOnlyError}


class Fails:
    """Every operation from the ``at``-th on, until it is mended."""

    def __init__(self, disk: Disk, at: int, error: type[Exception]) -> None:
        self._left, self._error = at, error
        self.met: Done | None = None
        disk.before = self

    def __call__(self, done: Done) -> None:
        self._left -= 1
        if self._left < 0:
            self.met = self.met or done
            raise self._error("the test wants it")


@pytest.mark.parametrize("what", sorted(ERRORS))
def test_a_disk_that_fails_anywhere_in_a_commit_loses_nothing(tmp_path: Path, what: str) -> None:
    written = list(batches(random.Random(5), 20))
    met: set[tuple[str, str]] = set()
    for at in range(200):
        disk = Disk(f"failing {what} {at}")
        with disk.under():
            database = Database(tmp_path / f"{at}" / "jobs.db")
            database._connection.execute("PRAGMA wal_autocheckpoint = 8").fetchall()
            for batch in written[:10]:
                database.commit(batch)
            before = held(database)
            fails = Fails(disk, at, ERRORS[what])
            for batch in written[10:16]:
                try:
                    database.commit(batch)
                except Unwritable:
                    assert held(database) == before, f"half a batch is there, the disk failed at {fails.met}"
                    disk.before = lambda done: None
                    database.commit(batch)
                before = held(database)
            disk.before = lambda done: None
            database.close()
            again = Database(tmp_path / f"{at}" / "jobs.db")
            assert held(again) == before
            again.close()
        if fails.met is None:
            break
        met.add((fails.met.what, fails.met.file))
    assert met >= {("write", "jobs.db-wal"), ("sync", "jobs.db-wal")}, met
    assert fails.met is None, "every operation of these batches was tried"


def test_a_disk_that_fails_while_it_is_opened_is_said(tmp_path: Path) -> None:
    for at in range(100):
        disk = Disk(f"opening {at}")
        fails = Fails(disk, at, apsw.FullError)
        path = tmp_path / f"{at}" / "jobs.db"
        with disk.under():
            said = ""
            try:
                Database(path).close()
            except PotatoError as error:
                said = str(error)
            assert str(path) in said or not said
            disk.before = lambda done: None
            database = Database(path)
            database.commit(next(batches(random.Random(1), 1)))
            database.close()
        if fails.met is None:
            break
    assert fails.met is None
    assert at > 5
