"""What is said of the end of jobs, held against what came."""

from __future__ import annotations

import pytest

from potatod.front.eta import Eta
from potatod.front.promises import Promises


def eta(s: float) -> Eta:
    return Eta(s, 0.8 * s, 1.2 * s)


def test_what_is_said_half_way_is_what_counts() -> None:
    promises = Promises()
    for now in range(11):
        promises.said({1: eta(10 - now)}, float(now))
    promises.over(1, 11.0)  # half-way, at 5, it was to be over at 10
    assert (promises.count, promises.kept, promises.error_s) == (1, 1, pytest.approx(1.0))
    for now in range(6):
        promises.said({2: eta(10 - now)}, float(now))
    promises.over(2, 20.0)
    assert (promises.count, promises.kept, promises.error_s) == (2, 1, pytest.approx(11.0))


def test_what_was_never_half_way_or_did_not_come_to_its_own_end_says_nothing() -> None:
    promises = Promises()
    promises.said({1: eta(10), 2: eta(0.1)}, 0.0)
    promises.over(1, 3.0)
    promises.over(2, 0.1)
    promises.over(3, 0.1)
    promises.said({4: eta(10)}, 0.0)
    promises.said({4: eta(5)}, 5.0)
    promises.forget(4)
    promises.over(4, 10.0)
    assert (promises.count, promises.kept, promises.error_s) == (0, 0, 0.0)
