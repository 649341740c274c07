"""The job database alone: what is written is there when it is opened again, and what cannot be is said."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from potatod.errors import ConfigError, Unavailable
from potatod.jobs.database import Added, Changed, Damaged, Database, Deleted, Gathered, Said, Shrunk, Unwritable
from potatod.jobs.job import Ask
from potatod.jobs.logprobs import joined
from potatod.jobs.rows import COLUMNS, Answered, packed_ids, row_of
from potatod.jobs.schema import APPLICATION_ID, MIGRATIONS
from potatod.jobs.states import State
from potatod.sampling.params import Sampling

from .test_jobs import job

ASK = Ask(b"frame", (1, 2, 1 << 31), Sampling(temperature=0.7, top_k=40, seed=(1 << 63) - 1, stop=("a", "é"), logit_bias=((7, -1.5),)), True, "<think>")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "jobs.db"


def reopened(database: Database) -> Database:
    database.close()
    return Database(database.path)


def test_a_job_is_there_with_all_its_fields_when_it_is_opened_again(path: Path) -> None:
    one = job(
        number=7, id="abc", owner="uid:5", key="k", seed=(1 << 63) - 1, state=State.SET_ASIDE, started_at=1.25, first_token_at=2.5, ended_at=3.75,
        sampled_tokens=4, shown_tokens=3, sweeps=9, read_bytes=1 << 40, drafted_tokens=5, accepted_tokens=2, guesses={"draft": (5, 2)}, reason="stop",
        code="c", why="w", deaths=2, died_at=4,
    )  # fmt: skip
    database = Database(path)
    database.commit([Added(one, ASK)])
    database = reopened(database)
    assert list(database.all()) == [one]
    assert database.job(7) == one
    assert database.ask(7) == ASK
    assert database.answered(7) == Answered()
    assert database.job(8) is None


def test_what_was_said_comes_back_in_its_order_and_is_gathered_into_one_row(path: Path) -> None:
    database = Database(path)
    database.commit([Added(job(), ASK), Said(1, 0, (5,), "A", "")])
    database.commit([Said(1, 1, (6, 7), "", "hm"), Said(1, 3, (), "B", "")])
    whole = Answered((5, 6, 7), "AB", "hm")
    assert database.answered(1) == whole
    database.commit([Gathered(1)])
    assert database.answered(1) == whole
    database.commit([Said(1, 3, (8,), "C", "")])
    database = reopened(database)
    assert database.answered(1) == Answered((5, 6, 7, 8), "ABC", "hm")
    assert _rows(database, "tokens") == 2


def test_log_probabilities_lie_beside_their_tokens_and_only_of_jobs_that_asked(path: Path) -> None:
    database = Database(path)
    database.commit([Added(job(), ASK), Added(job(number=2, id="b", state=State.FINISHED), ASK), Said(2, 0, (5, 6), "A", "")])
    database.commit([Said(1, 0, (5,), "A", "", (b"5",)), Said(1, 1, (6, 7), "", "hm", (b"6", b"7" * 1000)), Said(1, 3, (), "B", "")])
    assert database.answered(1) == Answered((5, 6, 7), "AB", "hm", (b"5", b"6", b"7" * 1000))
    without = database.over_bytes
    database.commit([Gathered(1), Changed(job(state=State.FINISHED))])
    database = reopened(database)
    assert database.answered(1) == Answered((5, 6, 7), "AB", "hm", (b"5", b"6", b"7" * 1000))
    assert database.answered(2) == Answered((5, 6), "A", "")
    assert database._connection.execute("SELECT number FROM tokens WHERE logprobs IS NULL").fetchall() == [(2,)]
    assert database.over_bytes > without + 1000, "what is kept is counted"


@pytest.mark.parametrize("row", [joined((b"5",)), joined((b"5",) * 3), b"", b"nonsense", joined((5, 6))])  # type: ignore[arg-type]
def test_log_probabilities_that_are_not_one_a_token_are_damage(path: Path, row: bytes) -> None:
    database = Database(path)
    database.commit([Added(job(), ASK), Said(1, 0, (5, 6), "A", "", (b"5", b"6"))])
    database._connection.execute("UPDATE tokens SET logprobs = ?", (row,))
    with pytest.raises(Damaged, match="potatod jobs repair"):
        database.answered(1)


def test_an_answer_of_the_first_form_is_whole_in_the_present_one(path: Path) -> None:
    path.parent.mkdir()
    older = sqlite3.connect(path)
    older.executescript(MIGRATIONS[0])
    older.execute("PRAGMA user_version = 1")
    older.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    one = job(state=State.FINISHED, sampled_tokens=2)
    older.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * len(COLUMNS))})", row_of(one))
    older.execute("INSERT INTO asks VALUES (1, x'00', ?, ?, 0, '')", (packed_ids((1, 2)), '{"temperature": 0.5, "stop": ["a"]}'))
    older.execute("INSERT INTO tokens VALUES (1, 0, ?, 'A', '')", (packed_ids((5, 6)),))
    older.commit()
    older.close()
    database = Database(path)
    assert database.job(1) == one
    assert database.ask(1) == Ask(b"\0", (1, 2), Sampling(temperature=0.5, stop=("a",)), False, "")
    assert database.answered(1) == Answered((5, 6), "A", "")


def test_a_job_that_said_nothing_is_gathered_and_can_say_something_later(path: Path) -> None:
    database = Database(path)
    database.commit([Added(job(), ASK), Gathered(1)])
    database.commit([Said(1, 0, (5,), "A", "")])
    assert database.answered(1) == Answered((5,), "A", "")


def test_a_change_is_of_everything_that_may_change(path: Path) -> None:
    database = Database(path)
    one = job()
    database.commit([Added(one.copy(), ASK)])
    one.sampled_tokens, one.state, one.guesses = 3, State.RUNNING, {"lookup": (2, 1)}
    database.commit([Changed(one)])
    assert reopened(database).job(1) == one


def test_a_deleted_job_takes_everything_with_it_and_what_comes_for_it_later_is_dropped(path: Path) -> None:
    database = Database(path)
    database.commit([Added(job(), ASK), Said(1, 0, (5,), "A", ""), Deleted(1)])
    assert database.job(1) is not None, "it is not over"
    database.commit([Changed(job(state=State.FAILED)), Deleted(1)])
    database.commit([Said(1, 1, (6,), "B", ""), Changed(job()), Gathered(1)])
    assert [_rows(database, table) for table in ("jobs", "asks", "tokens")] == [0, 0, 0]


def test_a_batch_is_written_whole_or_not_at_all(path: Path) -> None:
    database = Database(path)
    database.commit([Added(job(), ASK)])
    with pytest.raises(Exception, match="UNIQUE"):
        database.commit([Said(1, 0, (5,), "A", ""), Added(job(number=2), ASK)])
    assert database.answered(1) == Answered()
    database.commit([Said(1, 0, (5,), "A", "")])
    assert database.answered(1).ids == (5,)


def test_one_key_of_one_owner_is_one_job(path: Path) -> None:
    database = Database(path)
    database.commit([Added(job(number=1, id="a", key="k"), ASK), Added(job(number=2, id="b", key="k", owner="uid:2"), ASK)])
    database.commit([Added(job(number=3, id="c"), ASK), Added(job(number=4, id="d"), ASK)])
    with pytest.raises(Exception, match="UNIQUE"):
        database.commit([Added(job(number=5, id="e", key="k"), ASK)])


def test_the_newest_of_some_states(path: Path) -> None:
    database = Database(path)
    states = [State.QUEUED, State.FINISHED, State.PAUSED, State.FINISHED]
    database.commit(Added(job(number=n, id=str(n), state=state), ASK) for n, state in enumerate(states, 1))
    assert [each.number for each in database.newest([], 99, 10)] == [4, 3, 2, 1]
    assert [each.number for each in database.newest([], 4, 2)] == [3, 2]
    assert [each.number for each in database.newest([State.FINISHED, State.QUEUED], 99, 10)] == [4, 2, 1]


def test_deleted_jobs_make_it_smaller(path: Path) -> None:
    database = Database(path)
    big = Ask(b"x" * 200_000, (1,), Sampling(), False, "")
    database.commit(Added(job(number=n, id=str(n), state=State.FINISHED), big) for n in range(1, 21))
    assert 4_000_000 < database.over_bytes <= database.size_bytes
    large = database.size_bytes
    assert large > 4_000_000
    database.commit(Deleted(n) for n in range(1, 21))
    assert database.size_bytes < large / 10
    database.commit([Shrunk()])
    database.close()
    assert path.stat().st_size < large / 10


def test_a_second_process_is_kept_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potatod.jobs.database._BUSY_S", 0.1)
    first = Database(path)
    with pytest.raises(Unavailable, match="in use by another process"):
        Database(path)
    first.close()
    Database(path).close()


def test_only_its_owner_can_read_it(path: Path) -> None:
    Database(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE precious (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="something else"):
        Database(path)
    text = tmp_path / "notes.txt"
    text.write_text("dear diary, " * 1000)
    with pytest.raises(Damaged, match=r"notes\.txt is damaged"):
        Database(text)
    assert path.read_bytes()[24:] == before[24:] or sqlite3.connect(path).execute("SELECT count(*) FROM precious").fetchone() == (0,)
    assert text.read_text() == "dear diary, " * 1000


def test_one_that_a_newer_release_made_is_left_alone(path: Path) -> None:
    Database(path).close()
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    newer.close()
    with pytest.raises(ConfigError, match="made by a newer potatod"):
        Database(path)


@pytest.mark.parametrize("form", range(len(MIGRATIONS) + 1))
def test_every_older_form_becomes_the_present_one(path: Path, form: int) -> None:
    path.parent.mkdir()
    older = sqlite3.connect(path)
    for script in MIGRATIONS[:form]:
        older.executescript(script)
    older.execute(f"PRAGMA user_version = {form}")
    older.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    older.close()
    database = Database(path)
    database.commit([Added(job(), ASK)])
    assert reopened(database).job(1) == job()


def test_the_first_form_never_changes() -> None:
    """Whoever needs another one adds a migration: databases of this form are on people's disks."""
    import hashlib

    assert hashlib.sha256(MIGRATIONS[0].encode()).hexdigest()[:16] == FIRST_FORM


FIRST_FORM = "b57c7cc05d2de805"


def test_a_place_where_nothing_can_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use \\[jobs\\] path"):
        Database(tmp_path / "file" / "jobs.db")
    with pytest.raises(ConfigError, match="cannot use"):
        Database(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot use"):
        Database(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_disk_that_is_full_takes_nothing_and_loses_nothing(path: Path) -> None:
    database = Database(path)
    database.commit([Added(job(), ASK)])
    pages = database._one("PRAGMA page_count")
    database._connection.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall()
    with pytest.raises(Unwritable, match="the disk is full"):
        database.commit([Added(job(number=2, id="b"), Ask(b"x" * 100_000, (1,), Sampling(), False, ""))])
    assert database.job(2) is None
    database._connection.execute("PRAGMA max_page_count = 100000").fetchall()
    database.commit([Added(job(number=2, id="b"), ASK)])
    assert reopened(database).job(2) is not None


@pytest.mark.parametrize("column", ["state", "guesses"])
def test_a_row_that_nobody_of_us_wrote_is_damage(path: Path, column: str) -> None:
    database = Database(path)
    database.commit([Added(job(), ASK)])
    database._connection.execute(f"UPDATE jobs SET {column} = 'nonsense'")
    with pytest.raises(Damaged, match="potatod jobs repair"):
        list(database.all())


def _rows(database: Database, table: str) -> int:
    return int(database._one(f"SELECT count(*) FROM {table}"))
