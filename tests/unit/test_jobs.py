"""A job's states, timings and last message."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from potatod.jobs.job import Job
from potatod.jobs.states import TABLE, Event, NotNow, State, after


def job(**changes: Any) -> Job:
    about = {"number": 1, "id": "a", "owner": "uid:1", "key": "", "model": "m", "model_name": "tiny", "title": "Why?"}
    about |= {"rank": 0, "seed": 3, "choice": 0}
    return Job(**{**about, "prompt_tokens": 5, "limit_tokens": 3, "accepted_at": 10.0, **changes})  # type: ignore[arg-type]


#: the arrows of the drawing in states.py, once more by hand
ALLOWED = {
    State.QUEUED: {Event.TAKEN: State.RUNNING, Event.INTERRUPTED: State.QUEUED, Event.PAUSE: State.PAUSED, Event.FAIL: State.FAILED,
                   Event.CANCEL: State.CANCELLED},
    State.RUNNING: {Event.SET_ASIDE: State.SET_ASIDE, Event.INTERRUPTED: State.QUEUED, Event.PAUSE: State.PAUSED, Event.FAIL: State.FAILED,
                    Event.CANCEL: State.CANCELLED, Event.FINISH: State.FINISHED},
    State.SET_ASIDE: {Event.TAKEN: State.RUNNING, Event.INTERRUPTED: State.QUEUED, Event.PAUSE: State.PAUSED, Event.FAIL: State.FAILED,
                      Event.CANCEL: State.CANCELLED},
    State.PAUSED: {Event.RESUME: State.QUEUED, Event.CANCEL: State.CANCELLED},
    State.FINISHED: {},
    State.FAILED: {Event.RETRY: State.QUEUED},
    State.CANCELLED: {Event.RETRY: State.QUEUED},
}  # fmt: skip


@pytest.mark.parametrize(("before", "event"), list(product(State, Event)))
def test_what_can_happen_to_a_job_in_each_state(before: State, event: Event) -> None:
    one = job(state=before)
    expected = ALLOWED[before].get(event)
    if expected is None:
        with pytest.raises(NotNow, match=f"{before.value} cannot {event.value}"):
            one.enter(event, 12.0)
        assert one.state is before
    else:
        one.enter(event, 12.0)
        assert one.state is expected
        assert after(before, event) is expected


def test_every_state_can_be_left_but_finished_and_every_state_is_reached() -> None:
    assert {before for before, _ in TABLE} == set(State) - {State.FINISHED}
    assert set(TABLE.values()) == set(State)


@pytest.mark.parametrize("state", State)
def test_a_job_is_over_active_or_paused(state: State) -> None:
    assert state.over + state.active + (state is State.PAUSED) == 1


def test_timings_are_queued_prefill_decode_and_add_up() -> None:
    one = job()
    one.enter(Event.TAKEN, 12.0)
    for now in (15.0, 16.0, 18.0):
        one.sampled(now)
    one.shown_tokens = 3
    one.reason = "length"
    one.enter(Event.FINISH, 18.5)
    last = one.finished(None)
    assert (last.queued_s, last.prefill_s, last.decode_s) == (2.0, 3.0, 3.5)
    assert (last.reason, last.completion_tokens, last.prompt_tokens) == ("length", 3, 5)
    assert one.s_per_token(99.0) == 1.75


def test_a_clock_that_is_set_back_makes_no_duration_negative() -> None:
    one = job()
    one.enter(Event.TAKEN, 5.0)
    one.sampled(4.0)
    one.reason = "stop"
    one.enter(Event.FINISH, 3.0)
    last = one.finished(None)
    assert (last.queued_s, last.prefill_s, last.decode_s) == (0.0, 0.0, 0.0)


def test_a_job_that_never_ran_waited_all_its_life() -> None:
    one = job()
    one.reason = "cancelled"
    one.enter(Event.CANCEL, 14.0)
    last = one.finished(None)
    assert (last.queued_s, last.prefill_s, last.decode_s, last.sweeps) == (4.0, 0.0, 0.0, 0)


def test_where_nothing_was_read_there_is_no_share_of_the_disk() -> None:
    one = job()
    one.enter(Event.TAKEN, 11.0)
    one.swept(0)
    one.reason = "stop"
    one.enter(Event.FINISH, 12.0)
    last = one.finished(80.0)
    assert (last.sweeps, last.disk_bytes, last.disk_bytes_per_s, last.disk_limit_bytes_per_s) == (1, 0, None, None)


def test_bytes_are_of_the_time_in_which_sweeps_ran() -> None:
    one = job()
    one.enter(Event.TAKEN, 20.0)
    one.swept(60)
    one.swept(40)
    one.reason = "stop"
    one.enter(Event.FINISH, 22.0)
    assert one.finished(80.0).disk_bytes_per_s == 50.0


def test_guesses_add_up_by_source() -> None:
    one = job()
    one.count_guesses({"lookup": (3, 1)})
    one.count_guesses({"lookup": (2, 2), "draft": (4, 0)})
    assert one.guesses == {"lookup": (5, 3), "draft": (4, 0)}


def test_engines_that_die_at_one_token_are_counted_and_a_token_forgets_them() -> None:
    one = job()
    assert [one.died(), one.died()] == [1, 2]
    one.sampled(1.0)
    assert [one.died(), one.died(), one.died()] == [1, 2, 3]


def test_a_job_that_is_tried_again_is_as_if_it_had_not_ended() -> None:
    one = job(state=State.FAILED, code="poisoned", why="…", deaths=3, died_at=0, ended_at=3.0)
    one.enter(Event.RETRY, 20.0)
    assert (one.code, one.why, one.deaths, one.ended_at) == ("", "", 0, None)
    assert one.died() == 1


def test_a_copy_does_not_change_with_the_job() -> None:
    one = job()
    twin = one.copy()
    one.count_guesses({"lookup": (1, 1)})
    one.sampled(1.0)
    assert (twin.guesses, twin.sampled_tokens) == ({}, 0)
