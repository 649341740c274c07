"""When the supervisor stops starting an engine again."""

from __future__ import annotations

from potatod.restarts import Restarts


def test_deaths_inside_the_window_without_a_sweep_end_it():
    restarts = Restarts(limit=5, window_s=600)
    assert [restarts.died(now) for now in range(5)] == [True] * 4 + [False]
    assert restarts.total == 4


def test_a_completed_sweep_between_deaths_forgives_them():
    restarts = Restarts(limit=2, window_s=600)
    for now in range(50):
        assert restarts.died(now)
        restarts.swept()


def test_deaths_further_apart_than_the_window_are_not_counted_together():
    restarts = Restarts(limit=2, window_s=10)
    assert all(restarts.died(now) for now in range(0, 200, 11))
