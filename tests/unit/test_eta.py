"""When jobs will be over."""

from __future__ import annotations

import pytest

from potatod.front.eta import Acceptance, Eta, Left, Lengths, Work, ends, later, work_of


def work(number: int, s: float, running: bool = False) -> Work:
    return Work(number, running, s, s / 2, 2 * s)


def test_an_answer_whose_limit_was_asked_for_is_taken_to_go_on_to_it() -> None:
    assert Lengths().left(10, 100, True) == Left(90, 0, 90)
    assert Lengths().left(10, 100, False) is None, "the context is no limit that anybody meant"


def test_answers_that_became_as_long_say_how_much_longer_they_became() -> None:
    lengths = Lengths()
    for length in (10, 50, 60, 70, 80, 90):
        lengths.add(length)
    assert lengths.left(40, 1000, False) == Left(30, 10, 50)
    assert lengths.left(40, 75, True) == Left(30, 10, 35), "no longer than its limit"
    assert lengths.left(85, 1000, False) is None, "one is few"
    assert lengths.left(85, 1000, True) == Left(915, 5, 915)


def test_where_nothing_was_guessed_right_a_token_takes_a_sweep() -> None:
    assert Acceptance().sweeps_left(0, 0, 100) == 100
    assert Acceptance().sweeps_left(1000, 0, 1.5) == pytest.approx(1.5)


def test_sweeps_give_what_they_gave_answers_that_were_as_long() -> None:
    acceptance = Acceptance()
    for said in range(64):  # nothing is guessed in the first 64 tokens, and then half of them
        acceptance.gave(said, 1)
    for said in range(64, 100_000, 2):
        acceptance.gave(said, 2)
    assert acceptance.sweeps_left(0, 0, 64) == pytest.approx(64)
    assert acceptance.sweeps_left(0, 0, 64 + 20_000) == pytest.approx(64 + 10_000, rel=0.01)
    assert acceptance.sweeps_left(64, 0, 1000) == pytest.approx(500, rel=0.05), "though it has seen none of that yet"


def test_an_answer_that_took_more_sweeps_than_others_goes_on_to_take_more() -> None:
    acceptance = Acceptance()
    for said in range(0, 100_000, 2):
        acceptance.gave(said, 2)
    as_usual, worse = acceptance.sweeps_left(2000, 1000, 500), acceptance.sweeps_left(2000, 0, 500)
    assert as_usual == pytest.approx(250, rel=0.05)
    assert worse == pytest.approx(500, rel=0.05)
    assert as_usual < acceptance.sweeps_left(20, 0, 500) < 1.25 * as_usual, "ten sweeps say little"


@pytest.mark.parametrize("said", [100, 700, 1500, 5000])
@pytest.mark.parametrize("sweeps", [0, 10, 50, 400])
def test_an_answer_that_goes_on_after_a_restart_counts_what_it_was_given_once(said: int, sweeps: int) -> None:
    """Nobody is remembered who was shorter."""
    acceptance, now = Acceptance(), said
    for _ in range(sweeps):
        acceptance.gave(now, 5)
        now += 5
    assert acceptance.sweeps_left(now, now * 4 // 5, 1000) == pytest.approx(200, rel=0.1 if said >= 700 or sweeps > 10 else 0.5)


def test_a_token_takes_one_sweep_at_most() -> None:
    acceptance = Acceptance()
    for said in range(0, 256, 4):  # a text that repeats the prompt, and then none of it
        acceptance.gave(said, 4)
    for said in range(256, 2000):
        acceptance.gave(said, 1)
    assert acceptance.sweeps_left(300, 0, 1000) == 1000
    assert acceptance.sweeps_left(250, 10, 1000) == 1000


def test_a_young_answer_may_be_given_nothing_and_an_old_one_goes_on_as_it_does() -> None:
    acceptance = Acceptance()
    for said in range(0, 100_000, 2):
        acceptance.gave(said, 2)
    assert acceptance.most_sweeps_left(0, 0, 500) == 500
    assert 375 < acceptance.most_sweeps_left(40, 20, 500) < 450
    assert acceptance.most_sweeps_left(20_000, 10_000, 500) == pytest.approx(250, rel=0.02)


def test_what_is_long_ago_is_forgotten() -> None:
    acceptance = Acceptance()
    for tokens in (2, 1):
        for _ in range(50_000):
            acceptance.gave(100, tokens)
    assert acceptance.sweeps_left(100, 0, 20) == pytest.approx(20, rel=0.01)


def test_work_is_reading_and_saying_and_may_take_less_or_more() -> None:
    found = work_of(7, False, Left(100, 50, 200), 2.0, 10.0, 0.0)
    assert (found.number, found.s, found.least_s, found.most_s) == (7, 210.0, pytest.approx(0.85 * 110), pytest.approx(1.15 * 410))


def test_what_has_passed_of_the_sweep_under_way_is_not_to_come() -> None:
    found = work_of(7, True, Left(10, 1, 20), 2.0, 0.0, 1.5)
    assert (found.s, found.least_s, found.most_s) == (18.5, pytest.approx(0.2), pytest.approx(44.5))
    assert work_of(7, True, Left(1, 0, 1), 2.0, 0.0, 2.0).least_s == 0.0


def test_what_is_said_later_is_sooner() -> None:
    assert later({3: Eta(5.0, 1.0, 9.0)}, 2.0) == {3: Eta(3.0, 0.0, 7.0)}


def test_who_runs_needs_its_own_time_and_who_waits_a_place() -> None:
    found = ends([work(1, 10, True), work(2, 30, True), work(3, 5), work(4, 50), work(5, 1)], places=2)
    assert {number: eta.s for number, eta in found.items()} == {1: 10, 2: 30, 3: 15, 4: 65, 5: 31}
    assert found[1] == Eta(10, 5, 20)


def test_places_that_are_free_are_taken_at_once() -> None:
    assert {n: eta.s for n, eta in ends([work(1, 10, True), work(2, 3), work(3, 4)], places=4).items()} == {1: 10, 2: 3, 3: 4}


def test_where_nobody_knows_how_long_one_takes_who_waits_is_not_known_either() -> None:
    assert set(ends([work(1, 10, True), None, work(3, 4)], places=2)) == {1}
    assert ends([], places=1) == {}
