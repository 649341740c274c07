"""What sweeps were to take beside what they take."""

from __future__ import annotations

import pytest

from potatod.front.beside import EVERY_S, FOR_MINUTES, FOR_MINUTES_FAR, Beside, planned
from potatod.front.sweep_times import SweepTimes
from potatod.messages import Row, Rows


def swept(times: SweepTimes, seconds: float, tokens: int = 1, waited_s: float = 0.0) -> None:
    rows = tuple(Row(number, token=1) for number in range(tokens))
    times.add(seconds, decode=True, rows=Rows(1, times.sweeps + 1, rows, seconds, 1000, 500.0, waited_s))


def minutes(beside: Beside, times: SweepTimes, seconds: float, count: int) -> list[bool]:
    """Of so many minutes with sweeps like that: whether the supervisor was told."""
    told = []
    for _ in range(count):
        for _ in range(40):
            swept(times, seconds)
        minute = beside.look(beside._next)
        assert minute is not None
        told.append(minute.parted)
    return told


def test_what_is_expected_follows_from_the_plan_and_the_rates():
    rates = {"disk": 500.0, "compute": [[1, 3000.0], [4, 1000.0]], "layer_s": 0.1}
    load = {"weights_bytes": 3000, "streamed_bytes": 1000, "uploaded_bytes": 0, "slots": 0, "layers": 10}
    expected = planned({"load": load, "rates": rates})
    assert expected(1).sweep_s == pytest.approx(2.0)  # the disk
    assert expected(4).sweep_s == pytest.approx(4.0)  # computing


def test_a_minute_is_told_when_it_is_over_and_something_was_computed_in_it():
    times = SweepTimes(lambda rows: 2.0)
    beside = Beside(times, now=0.0)
    assert beside.look(EVERY_S) is None
    swept(times, 2.2, waited_s=1.5)
    assert beside.look(EVERY_S + 1) is None
    minute = beside.look(2 * EVERY_S)
    assert minute is not None and not minute.parted
    assert (minute.sweeps, minute.real_s, minute.expected_s, minute.waited_s, round(minute.read)) == (1, 2.2, 2.0, 1.5, 455)
    assert beside.look(3 * EVERY_S) is None


def test_what_has_parted_for_long_is_told_once():
    times = SweepTimes(lambda rows: 2.0)
    beside = Beside(times, now=0.0)
    assert minutes(beside, times, 2.5, FOR_MINUTES) == [*[False] * (FOR_MINUTES - 1), True]
    assert not any(minutes(beside, times, 2.5, 2 * FOR_MINUTES))


def test_what_is_many_times_what_was_expected_is_told_sooner():
    for seconds in (20.0, 0.2):
        times = SweepTimes(lambda rows: 2.0)
        beside = Beside(times, now=0.0)
        assert not any(minutes(beside, times, 2.0, FOR_MINUTES))
        assert minutes(beside, times, seconds, FOR_MINUTES_FAR + 1) == [*[False] * (FOR_MINUTES_FAR - 1), True, False]


def test_a_minute_is_judged_by_its_own_sweeps():
    times = SweepTimes(lambda rows: 2.0)
    beside = Beside(times, now=0.0)
    for _ in range(40):
        swept(times, 2.0)
    assert beside.look(EVERY_S) is not None
    for minute in range(1, 1 + FOR_MINUTES_FAR):  # three sweeps a minute are enough to see that a disk has become slow
        for _ in range(3):
            swept(times, 20.0)
        seen = beside.look(beside._next)
        assert seen is not None and seen.real_s == 20.0 and seen.parted == (minute == FOR_MINUTES_FAR)


def test_what_parts_now_and_then_is_not():
    times = SweepTimes(lambda rows: 2.0)
    beside = Beside(times, now=0.0)
    for _ in range(4):
        assert not any(minutes(beside, times, 2.6, FOR_MINUTES - 1))
        assert not any(minutes(beside, times, 2.1, 1))
    assert not any(minutes(beside, times, 1.7, 3 * FOR_MINUTES))


def test_sweeps_of_several_tokens_are_compared_with_what_is_expected_of_those():
    times = SweepTimes(float)
    for tokens in (1, 4, 4):
        swept(times, 4.0, tokens)
    assert times.expected_s_per_sweep == 4.0


def test_sweeps_of_prompts_are_not_compared():
    times = SweepTimes(lambda rows: 2.0)
    times.add(60.0, decode=False, rows=Rows(1, 1, (), 60.0, 0, None))
    assert times.expected_s_per_sweep is None and times.waited_s_per_sweep is None
