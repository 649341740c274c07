"""When jobs will be over."""

from __future__ import annotations

import pytest

from potatod.front.eta import Acceptance, Eta, Lengths, Tokens, Work, ends, work_of


def work(number: int, s: float, running: bool = False) -> Work:
    return Work(number, running, s, s / 2, 2 * s)


def test_an_answer_whose_limit_was_asked_for_is_taken_to_go_on_to_it() -> None:
    assert Lengths().left(10, 100, True) == Tokens(90, 0, 90)
    assert Lengths().left(10, 100, False) is None, "the context is no limit that anybody meant"


def test_answers_that_became_as_long_say_how_much_longer_they_became() -> None:
    lengths = Lengths()
    for length in (10, 50, 60, 70, 80, 90):
        lengths.add(length)
    assert lengths.left(40, 1000, False) == Tokens(30, 10, 50)
    assert lengths.left(40, 75, True) == Tokens(30, 10, 35), "no longer than its limit"
    assert lengths.left(85, 1000, False) is None, "one is few"
    assert lengths.left(85, 1000, True) == Tokens(915, 5, 915)


def test_a_sweep_gives_what_it_gave_and_to_a_young_answer_what_it_gave_others() -> None:
    acceptance = Acceptance()
    assert acceptance.tokens_per_sweep(0, 0) == 1.0
    assert acceptance.tokens_per_sweep(96, 48) == pytest.approx((96 + 32) / (48 + 32)), "half of its tokens were guessed"
    acceptance.add(300, 200)
    assert acceptance.tokens_per_sweep(0, 0) == 3.0, "a third of its sweeps, and nothing of its own"
    assert acceptance.tokens_per_sweep(32, 0) == 2.0
    assert acceptance.tokens_per_sweep(10**6, 0) == pytest.approx(1.0, rel=1e-3), "of its own it knows best"
    for _ in range(200):
        acceptance.add(100, 0)
    assert acceptance.tokens_per_sweep(0, 0) == pytest.approx(1.0, rel=1e-3), "what was is forgotten"


def test_work_is_reading_and_saying_and_may_take_less_or_more() -> None:
    found = work_of(7, False, Tokens(100, 50, 200), 2.0, 10.0)
    assert (found.number, found.s, found.least_s, found.most_s) == (7, 210.0, pytest.approx(0.85 * 110), pytest.approx(1.15 * 410))


def test_who_runs_needs_its_own_time_and_who_waits_a_place() -> None:
    found = ends([work(1, 10, True), work(2, 30, True), work(3, 5), work(4, 50), work(5, 1)], places=2)
    assert {number: eta.s for number, eta in found.items()} == {1: 10, 2: 30, 3: 15, 4: 65, 5: 31}
    assert found[1] == Eta(10, 5, 20)


def test_places_that_are_free_are_taken_at_once() -> None:
    assert {n: eta.s for n, eta in ends([work(1, 10, True), work(2, 3), work(3, 4)], places=4).items()} == {1: 10, 2: 3, 3: 4}


def test_where_nobody_knows_how_long_one_takes_who_waits_is_not_known_either() -> None:
    assert set(ends([work(1, 10, True), None, work(3, 4)], places=2)) == {1}
    assert ends([], places=1) == {}
