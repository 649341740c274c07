"""What the front keeps of jobs in memory: which there are, who follows them, which are to be deleted."""

from __future__ import annotations

from typing import Any

import pytest

from potatod.front.followers import Followers
from potatod.front.known import Known
from potatod.front.refusal import Refusal
from potatod.front.retention import Taken, outdated
from potatod.jobs.states import Event, State

from .test_jobs import job


def test_jobs_are_found_by_id_by_its_beginning_and_by_key() -> None:
    known = Known()
    for number, id in enumerate(("abc1", "abd2", "x3"), 1):
        known.add(job(number=number, id=id, key="k" if number == 2 else ""))
    assert (known.find("abc1", "uid:1"), known.find("abd", "uid:1"), known.find("x", "uid:1")) == (1, 2, 3)
    assert (known.by_key("uid:1", "k"), known.by_key("uid:2", "k"), known.by_key("uid:1", "")) == (2, None, None)
    with pytest.raises(Refusal, match="begins the ids of 2 jobs: abc1, abd2") as refusal:
        known.find("ab", "uid:1")
    assert refusal.value.code == "ambiguous_job"
    for nothing in ("", "z", "abc12"):
        with pytest.raises(Refusal, match="there is no job"):
            known.find(nothing, "uid:1")
    known.forget(2)
    assert known.find("ab", "uid:1") == 1
    assert known.by_key("uid:1", "k") is None
    assert 2 not in known
    known.forget(2)


def test_who_comes_from_another_machine_finds_what_is_theirs() -> None:
    known = Known()
    known.add(job(number=1, id="ab1", owner="key:phone"))
    known.add(job(number=2, id="ab2", owner="uid:1"))
    assert (known.find("ab", "key:phone"), known.find("ab1", "key:phone"), known.find("ab1", "uid:0")) == (1, 1, 1)
    for id, owner in (("ab2", "key:phone"), ("ab1", "key:laptop"), ("ab", "key:laptop")):
        with pytest.raises(Refusal, match="there is no job"):
            known.find(id, owner)
    assert known.is_open(1)
    assert not known.is_open(9)


def test_a_whole_id_is_found_where_it_also_begins_another() -> None:
    known = Known()
    known.add(job(number=1, id="ab"))
    known.add(job(number=2, id="abc"))
    assert known.find("ab", "uid:1") == 1


def test_numbers_go_on_behind_the_highest() -> None:
    known = Known()
    known.add(job(number=7, id="a"))
    known.add(job(number=3, id="b"))
    assert [known.next_number(), known.next_number()] == [8, 9]


def test_jobs_that_are_not_over_are_counted_by_owner() -> None:
    known = Known()
    mine, done, theirs = job(number=1, id="a"), job(number=2, id="b", state=State.FINISHED), job(number=3, id="c", owner="uid:2")
    for one in (mine, done, theirs):
        known.add(one)
    assert (known.open_of("uid:1"), known.open_of("uid:2"), known.open_of("uid:3")) == (1, 1, 0)
    mine.enter(Event.CANCEL, 1.0)
    known.changed(mine)
    known.changed(mine)
    assert known.open_of("uid:1") == 0
    mine.enter(Event.RETRY, 1.0)
    known.changed(mine)
    assert known.open_of("uid:1") == 1
    known.forget(1)
    assert known.open_of("uid:1") == 0


def test_followers_come_and_go() -> None:
    followers = Followers()
    followers.add(1, b"a")
    followers.add(1, b"b")
    followers.add(1, b"a")
    followers.add(2, b"a")
    assert (followers.of(1), followers.count(b"a")) == ((b"a", b"b"), 2)
    followers.remove(1, b"c")
    followers.remove(9, b"a")
    assert followers.numbers() == (1, 2)
    assert followers.drop_where(lambda client: client == b"a") == {b"a"}
    assert (followers.of(1), followers.of(2), followers.count(b"a")) == ((b"b",), (), 0)
    assert followers.forget(1) == (b"b",)
    assert followers.forget(1) == ()


def over(number: int, ended_at: float, **changes: Any) -> Any:
    return job(number=number, id=str(number), state=State.FINISHED, ended_at=ended_at, **changes)


def test_only_what_is_over_for_long_is_deleted() -> None:
    jobs = [over(1, 100.0), over(2, 900.0), job(number=3, id="3", accepted_at=1.0), job(number=4, id="4", state=State.PAUSED, accepted_at=1.0)]
    assert [each.number for each in outdated(jobs, 1000.0, 500.0, Taken(0, 0), 100)] == [1]


def test_where_it_is_too_large_a_tenth_of_what_is_over_goes_the_oldest_first() -> None:
    jobs = [over(number, 1000.0 - number) for number in range(1, 31)] + [job(number=99, id="99", accepted_at=1.0)]
    full, now = Taken(101, 60), 9000.0
    assert [each.number for each in outdated(jobs, now, 1e6, full, 100)] == [30, 29, 28]
    assert [each.number for each in outdated(jobs[:3], now, 1e6, full, 100)] == [3]
    assert outdated(jobs[-1:], now, 1e6, full, 100) == []
    assert outdated(jobs, now, 1e6, Taken(101, 5), 100) == [], "what is not over is why it is large"
    assert outdated(jobs, 1001.0, 1e6, full, 100) == [], "somebody may be about to fetch it"
