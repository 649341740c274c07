"""A damaged job database: what can be read is saved, what is lost is said, and the old file stays."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sqlite3
from pathlib import Path

import pytest

from potato_client.protocol import FROM_CLIENT, Generate
from potatod import cli
from potatod.errors import NoSuchModel, Unavailable
from potatod.jobs import salvage
from potatod.jobs.database import Added, Changed, Damaged, Database, Gathered, Said
from potatod.jobs.job import Ask, Job
from potatod.jobs.rows import Answered
from potatod.jobs.states import State
from potatod.sampling.params import Sampling

from .test_jobs import job


def asked(number: int) -> Ask:
    return Ask(FROM_CLIENT.encode(Generate(0, prompt=f"question {number} " + "x" * 500)), tuple(range(100)), Sampling(seed=number), False, "")


def answered(number: int) -> Answered:
    likely = tuple(b"%d" % token for token in range(20)) if number % 3 == 0 else ()
    return Answered(tuple(range(number, number + 20)), f"answer {number} ", "", likely)


def a_job(number: int) -> Job:
    state = State.FINISHED if number % 2 else State.QUEUED
    return job(number=number, id=f"{number:04}", state=state, sampled_tokens=20, shown_tokens=20, reason="stop" if number % 2 else "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.db"
    database = Database(path)
    for number in range(1, 201):
        whole = answered(number)
        said = Said(number, 0, whole.ids, whole.text, "", whole.logprobs)
        database.commit([Added(a_job(number), asked(number)), said, Changed(a_job(number)), Gathered(number)])
    database.close()
    return path


def test_a_database_of_the_first_form_is_saved_with_its_answers(path: Path) -> None:
    older = sqlite3.connect(path)
    older.execute("ALTER TABLE tokens DROP COLUMN logprobs")
    older.execute("PRAGMA user_version = 1")
    older.close()
    found, _ = salvage.repair(path)
    assert not found.lost and not found.shortened
    assert Database(path).answered(3) == dataclasses.replace(answered(3), logprobs=())


def damage(path: Path, pages: int, seed: int) -> None:
    data = bytearray(path.read_bytes())
    chance = random.Random(seed)
    for page in chance.sample(range(1, len(data) // 4096), pages):
        data[page * 4096 : (page + 1) * 4096] = chance.randbytes(4096)
    path.write_bytes(data)


def test_everything_is_read_of_a_database_that_is_sound(path: Path) -> None:
    before = path.read_bytes()
    found = salvage.read(path)
    assert [each.job for each in found.saved] == [a_job(number) for number in range(1, 201)]
    assert all(each.ask == asked(each.job.number) and each.answered == answered(each.job.number) for each in found.saved)
    assert (found.lost, found.shortened) == ([], [])
    assert path.read_bytes() == before


def test_what_is_saved_is_what_was_there(path: Path) -> None:
    sound, saved = path.read_bytes(), []
    for seed in range(20):
        path.write_bytes(sound)
        damage(path, 3, seed)
        found = salvage.read(path)
        for each in found.saved:
            number = each.job.number
            assert each.ask == asked(number)
            assert each.answered == answered(number) or number in found.shortened
            assert each.job == a_job(number) or number in found.shortened
        saved.append(len(found.saved))
    assert sorted(saved)[len(saved) // 2] > 120, "three pages of more than sixty; only where they are the first of a table all of it is gone"


def test_a_repaired_database_is_sound_and_the_old_one_is_kept(path: Path) -> None:
    damage(path, 4, 1)
    with pytest.raises(Damaged):
        Database(path)
    broken = path.read_bytes()
    found, aside = salvage.repair(path)
    assert aside.read_bytes() == broken
    database = Database(path)
    assert len(list(database.all())) == len(found.saved) > 50
    for each in found.saved:
        assert database.answered(each.job.number) == each.answered
    database.close()


def test_what_lies_in_the_log_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    database = Database(path)
    database.commit([Added(a_job(1), asked(1))])
    copy = tmp_path / "killed.db"
    for ending in ("", "-wal"):
        copy.with_name(copy.name + ending).write_bytes(path.with_name(path.name + ending).read_bytes())
    database.close()
    assert [each.job.id for each in salvage.read(copy).saved] == ["0001"]


def test_a_file_that_is_no_database_gives_nothing(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(os.urandom(20_000))
    found = salvage.read(path)
    assert (found.saved, found.lost) == ([], [])


def test_one_that_a_daemon_uses_is_left_alone(path: Path) -> None:
    pid = os.fork()  # locks of one process do not keep it out itself
    if pid == 0:
        database = Database(path)
        os.write(1, b"")
        (path.parent / "ready").touch()
        while not (path.parent / "done").exists():
            pass
        database.close()
        os._exit(0)
    while not (path.parent / "ready").exists():
        pass
    try:
        with pytest.raises(Unavailable, match="a daemon uses"):
            salvage.read(path)
    finally:
        (path.parent / "done").touch()
        os.waitpid(pid, 0)


def test_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoSuchModel, match="no job database at"):
        salvage.read(tmp_path / "jobs.db")


def test_the_commands(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["jobs", "export", "--path", str(path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["job"] for line in lines] == [f"{number:04}" for number in range(1, 201)]
    assert lines[0]["prompt"].startswith("question 1 ")
    assert (lines[0]["text"], lines[0]["token_ids"]) == ("answer 1 ", list(range(1, 21)))
    damage(path, 4, 1)
    assert cli.main(["jobs", "repair", "--path", str(path)]) == 0
    said = capsys.readouterr().err
    assert "saved in" in said
    assert "jobs.db.damaged-" in said
    assert cli.main(["jobs", "export", "--path", str(path.parent / "none.db")]) == 66
    assert "there is no job database" in capsys.readouterr().err
