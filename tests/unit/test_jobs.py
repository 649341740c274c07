"""A job's states, timings and last message."""

from __future__ import annotations

from itertools import product

import pytest

from potatod.front.jobs import Job, Jobs, State
from potatod.sampling.params import Sampling


def job(job_id: str = "a", sequence: int = 1, owner: bytes = b"me", limit_tokens: int = 3) -> Job:
    return Job(
        job_id,
        sequence,
        owner,
        1,
        prompt_tokens=5,
        sampling=Sampling(seed=3),
        limit_tokens=limit_tokens,
        accepted_at=10.0,
    )


ALLOWED = {
    (State.QUEUED, State.RUNNING), (State.QUEUED, State.FAILED), (State.QUEUED, State.CANCELLED),
    (State.RUNNING, State.FINISHED), (State.RUNNING, State.FAILED), (State.RUNNING, State.CANCELLED),
}  # fmt: skip
WAY_TO = {
    State.QUEUED: (), State.RUNNING: (State.RUNNING,), State.FINISHED: (State.RUNNING, State.FINISHED),
    State.FAILED: (State.FAILED,), State.CANCELLED: (State.CANCELLED,),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), list(product(State, State)))
def test_a_job_moves_only_along_the_drawn_arrows(before: State, after: State) -> None:
    one = job()
    for state in WAY_TO[before]:
        one.enter(state, 11.0)
    if (before, after) in ALLOWED:
        one.enter(after, 12.0)
        assert one.state is after
    else:
        with pytest.raises(AssertionError, match="does not become"):
            one.enter(after, 12.0)
        assert one.state is before


@pytest.mark.parametrize("state", State)
def test_a_job_is_over_exactly_where_no_arrow_leaves(state: State) -> None:
    assert state.over == (state not in {before for before, _ in ALLOWED})


def test_timings_are_queued_prefill_decode_and_add_up() -> None:
    one = job()
    one.enter(State.RUNNING, 12.0)
    for now in (15.0, 16.0, 18.0):
        one.sampled(now)
    one.shown_tokens = 3
    assert one.full
    one.enter(State.FINISHED, 18.5)
    last = one.finished("length", None)
    assert (last.queued_s, last.prefill_s, last.decode_s) == (2.0, 3.0, 3.5)
    assert (last.reason, last.prompt_tokens, last.completion_tokens) == ("length", 5, 3)
    assert one.s_per_token == 1.75


def test_a_job_cancelled_in_the_queue_has_only_waited() -> None:
    one = job()
    one.enter(State.CANCELLED, 14.0)
    last = one.finished("cancelled", 5e8)
    assert (last.queued_s, last.prefill_s, last.decode_s, last.sweeps) == (4.0, 0.0, 0.0, 0)
    assert last.disk_limit_bytes_per_s is None, "it read nothing, so there is no share to speak of"


def test_an_answer_of_nothing_but_the_end_was_prefilled_and_not_decoded() -> None:
    one = job()
    one.enter(State.RUNNING, 11.0)
    one.enter(State.FINISHED, 13.0)
    last = one.finished("stop", None)
    assert (last.prefill_s, last.decode_s, last.completion_tokens) == (2.0, 0.0, 0)


def test_the_disk_rate_is_bytes_over_the_whole_time_in_which_sweeps_ran() -> None:
    one = job()
    one.enter(State.RUNNING, 12.0)
    one.disk.add(1000)
    one.disk.add(3000)
    one.enter(State.FINISHED, 20.0)
    last = one.finished("length", 1000.0)
    assert (last.sweeps, last.disk_bytes, last.disk_bytes_per_s, last.disk_limit_bytes_per_s) == (2, 4000, 500.0, 1000.0)
    assert last.disk_bytes_per_s == last.disk_bytes / (last.prefill_s + last.decode_s)


def test_an_answer_for_which_nothing_was_read_has_no_disk_rate() -> None:
    one = job()
    one.enter(State.RUNNING, 12.0)
    one.disk.add(0)
    one.enter(State.FINISHED, 20.0)
    last = one.finished("length", 1000.0)
    assert (last.sweeps, last.disk_bytes_per_s, last.disk_limit_bytes_per_s) == (1, None, None)


def test_nobody_finds_the_job_of_another() -> None:
    jobs = Jobs()
    mine, theirs = job("a", 1, b"me"), job("b", 2, b"them")
    jobs.add(mine)
    jobs.add(theirs)
    assert jobs.owned("a", b"me") is mine
    assert jobs.owned("b", b"me") is None
    assert jobs.of_owner(b"them") == (theirs,)
    jobs.forget(mine)
    assert (jobs.owned("a", b"me"), len(jobs), list(jobs)) == (None, 1, [theirs])
