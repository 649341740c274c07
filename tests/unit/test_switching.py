"""Which model has the engine: few changes, nobody starves, and what goes first goes first."""

from __future__ import annotations

import random

import pytest

from potatod.front.switching import HOLD, Demand, in_turn, next_model

CHANGE_S, PATIENCE_S = 5.0, 600.0


def chosen(rank: int | None, *waiting: Demand, had_s: float = 1e6) -> int | None:
    return next_model(rank, waiting, had_s, CHANGE_S, PATIENCE_S)


def test_a_model_keeps_the_engine_while_it_has_jobs():
    assert chosen(0, Demand(1, 0, 10.0)) is None
    assert chosen(1, Demand(1, 1, PATIENCE_S - 1)) is None
    assert chosen(0) is None
    assert chosen(None) is None


def test_one_without_jobs_gives_it_to_whoever_waits_longest_of_those_that_go_first():
    assert chosen(None, Demand(1, 0, 1.0), Demand(2, 0, 2.0), Demand(3, 1, 99.0), had_s=0.0) == 2


def test_nobody_waits_longer_than_may_be():
    assert chosen(0, Demand(1, 1, PATIENCE_S), Demand(2, 0, 3.0)) == 1


def test_what_goes_first_need_not_wait_for_what_goes_last():
    assert chosen(1, Demand(1, 0, 0.0)) == 1
    assert chosen(0, Demand(1, 1, 0.0)) is None


@pytest.mark.parametrize("demand", [Demand(1, 0, 0.0), Demand(1, 1, 10 * PATIENCE_S)])
def test_whoever_has_it_and_work_keeps_it_for_some_time(demand):
    assert chosen(1, demand, had_s=HOLD * CHANGE_S - 0.1) is None
    assert chosen(1, demand, had_s=HOLD * CHANGE_S) == 1


def test_their_order_is_the_one_in_which_they_get_it():
    demands = [Demand(1, 1, 50.0), Demand(2, 0, 1.0), Demand(3, 0, 9.0)]
    assert in_turn(demands) == [3, 2, 1]
    assert chosen(None, *demands) == 3


@pytest.mark.parametrize("seed", range(20))
def test_with_jobs_for_all_of_them_all_the_time_each_waits_a_bounded_time_and_little_goes_into_changes(seed):
    """Three models that always have work; ranks change at random."""
    random_ = random.Random(seed)
    now, had_since, current, changes, longest = 0.0, 0.0, 0, 0, 0.0
    since = {1: 0.0, 2: 0.0}
    while now < 40 * PATIENCE_S:
        now += random_.uniform(0.1, 20.0)
        waiting = [Demand(model, random_.choice([0, 1, 1, 1]), now - then) for model, then in since.items()]
        if (model := next_model(random_.choice([0, 0, 0, 1]), waiting, now - had_since, CHANGE_S, PATIENCE_S)) is not None:
            longest = max(longest, now - since.pop(model))
            since[current] = now
            now += CHANGE_S
            current, had_since, changes = model, now, changes + 1
    assert longest <= 2 * (PATIENCE_S + (HOLD + 1) * CHANGE_S + 20.0)
    assert changes * CHANGE_S <= now / HOLD
    assert changes > 3
