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


def test_one_that_hangs_at_each_start_is_not_started_for_ever() -> None:
    """As each takes three minutes until it is given up, five such deaths are never within ten minutes."""
    restarts = Restarts(5, 600.0)
    assert [restarts.died(180.0 * n, lost_s=180.0) for n in range(1, 6)] == [True, True, True, True, False]


def test_an_engine_that_was_ready_for_long_counts_as_one_death() -> None:
    restarts = Restarts(2, 600.0)
    assert [restarts.died(700.0 * n) for n in range(1, 6)] == [True] * 5
