"""The power is cut at any write of the job database: what was acknowledged is there when it is opened again.

SQLite runs on a file system that writes down every write and sync. A cut is replayed into files: what was synced is there, of what was not any part may
be, whole, in pieces of a sector, or not at all. POTATO_CUTS says how many (make torture).
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from counts import portions
from sqlite_disk import Disk, Done

from potatod.errors import PotatoError
from potatod.jobs.database import Added, Changed, Database, Deleted, Gathered, Said, Shrunk, Write
from potatod.jobs.job import Ask, Job
from potatod.jobs.rows import Answered
from potatod.jobs.states import Event
from potatod.sampling.params import Sampling
from tests.unit.test_jobs import job

CUTS = int(os.environ.get("POTATO_CUTS", "500"))
SEED = int(os.environ.get("POTATO_SEED", "1"))
SECTOR = 512


@dataclass(frozen=True)
class State:
    """What the database holds, by job number."""

    jobs: dict[int, tuple[Job, Answered]]


def held(database: Database) -> State:
    return State({one.number: (one, database.answered(one.number)) for one in database.all()})


def batches(chance: random.Random, count: int) -> Iterator[list[Write]]:
    """What a front writes while jobs come, run, end and are deleted."""
    live: dict[int, Job] = {}
    over: list[int] = []
    number = 0
    for _ in range(count):
        batch: list[Write] = []
        if len(live) < 6 or chance.random() < 0.2:
            number += 1
            live[number] = job(number=number, id=f"{number:04}", prompt_tokens=40, limit_tokens=1 << 30)
            ask = Ask(chance.randbytes(chance.choice([200, 9000])), tuple(range(40)), Sampling(seed=number), True, "")
            batch.append(Added(live[number].copy(), ask))
        for one in list(live.values()):
            if one.state.value == "queued":
                one.enter(Event.TAKEN, 11.0)
            ids = tuple(chance.randrange(100_000) for _ in range(chance.randint(1, 4)))
            batch.append(Said(one.number, one.sampled_tokens, ids, " ".join(map(str, ids)), ""))
            one.sampled_tokens += len(ids)
            if chance.random() < 0.1:
                one.reason = "stop"
                one.enter(Event.FINISH, 12.0)
                batch += [Changed(one.copy()), Gathered(one.number)]
                over.append(one.number)
                del live[one.number]
            else:
                batch.append(Changed(one.copy()))
        if over and chance.random() < 0.2:
            batch.append(Deleted(over.pop(0)))
        yield batch


History = tuple[list[Done], list[tuple[int, State]]]


@pytest.fixture(scope="module")
def history() -> History:
    return lived()


def lived(synchronous: str = "FULL") -> History:
    """All that was done to the files, and after how much of it which state was acknowledged."""
    disk = Disk()
    log = disk.log
    with tempfile.TemporaryDirectory() as place, disk.under():
        database = Database(Path(place) / "jobs.db")
        database._connection.execute("PRAGMA wal_autocheckpoint = 20").fetchall()  # often, so that cuts meet checkpoints
        database._connection.execute(f"PRAGMA synchronous = {synchronous}")
        acknowledged = [(len(log), held(database))]
        for batch in batches(random.Random(SEED), 120):
            database.commit(batch)
            acknowledged.append((len(log), held(database)))
        database.commit([Shrunk()])
        acknowledged.append((len(log), held(database)))
        log = log[:]
        database.close()
    assert {done.what for done in log} >= {"write", "sync"}
    return log, acknowledged


def after_cut(log: list[Done], at: int, chance: random.Random) -> dict[str, bytearray]:
    """The files when the power went after so many operations."""
    synced = {done.file: -1 for done in log}
    synced |= {done.file: index for index, done in enumerate(log[:at]) if done.what == "sync"}
    kept = chance.choice([0.0, 0.5, 0.9, 1.0])
    files: dict[str, bytearray] = {}
    for index, done in enumerate(log[:at]):
        file = files.setdefault(done.file, bytearray())
        safe = index < synced[done.file]
        if done.what == "gone":
            files.pop(done.file)
        elif done.what == "size" and (safe or chance.random() < kept):
            del file[done.offset :]
        elif done.what == "write":
            for start in range(0, len(done.data), SECTOR):
                if safe or chance.random() < kept:
                    piece = done.data[start : start + SECTOR]
                    begin = done.offset + start
                    if len(file) < begin + len(piece):
                        file.extend(bytes(begin + len(piece) - len(file)))
                    file[begin : begin + len(piece)] = piece
    return files


def losses(history: History, cuts: int, first: int = 0) -> int:
    """Cuts after which something that was acknowledged is not there, or something that nobody wrote is. ``first``: others have been tried before."""
    log, acknowledged = history
    chance = random.Random(SEED + 1 + first)
    lost = 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for _ in range(cuts):
            at = chance.randint(acknowledged[0][0], len(log))
            for path in place.iterdir():
                path.unlink()
            for file, data in after_cut(log, at, chance).items():
                (place / file).write_bytes(data)
            known = max(index for index, (when, _) in enumerate(acknowledged) if when <= at)
            allowed = [state for _, state in acknowledged[known : known + 2]]
            try:
                database = Database(place / "jobs.db")
                lost += held(database) not in allowed
                database.close()
            except PotatoError:
                lost += 1
    return lost


def test_what_was_acknowledged_is_there_after_any_power_cut(history: History) -> None:
    for first, count in portions("power cuts", CUTS, 500):
        assert losses(history, count, first) == 0


def test_the_measure_notices_a_database_that_does_not_sync_each_commit() -> None:
    assert losses(lived("NORMAL"), 60) > 10
