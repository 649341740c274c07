"""What sweeps cost: medians, and what the disk was put to use."""

from __future__ import annotations

import pytest

from potatod.front.sweep_times import SweepTimes
from potatod.messages import Rows


def swept(times: SweepTimes, seconds: float, read_bytes: int, rate: float | None, *, decode: bool = True) -> None:
    times.add(seconds, decode=decode, rows=Rows(1, times.sweeps + 1, (), seconds, read_bytes, rate))


def test_before_the_first_sweep_nothing_is_known() -> None:
    times = SweepTimes()
    assert (times.s_per_sweep, times.disk_bytes_per_s, times.disk_limit_bytes_per_s) == (None, None, None)


def test_the_rate_of_the_disk_is_over_wall_time_and_its_limit_the_most_while_reading() -> None:
    """A disk that reads at 1000 bytes/s for a tenth of the time is used to a tenth, not to the full."""
    times = SweepTimes()
    swept(times, 2.0, 200, 900.0)
    swept(times, 1.0, 100, 1000.0)
    swept(times, 1.0, 100, 800.0)
    assert (times.disk_bytes_per_s, times.disk_limit_bytes_per_s) == (100.0, 1000.0)


def test_where_everything_stays_in_memory_there_is_no_rate_after_the_first_pass() -> None:
    times = SweepTimes()
    swept(times, 2.0, 500, None, decode=False)
    for _ in range(32):
        swept(times, 1.0, 0, None)
    assert (times.disk_bytes_per_s, times.disk_limit_bytes_per_s, times.read_bytes) == (None, None, 500)


def test_the_speed_is_the_median_of_sweeps_that_only_decoded_as_soon_as_there_is_one() -> None:
    times = SweepTimes()
    swept(times, 9.0, 0, None, decode=False)
    assert times.s_per_sweep == 9.0
    for seconds in (1.0, 2.0, 30.0):
        swept(times, seconds, 0, None)
    assert times.s_per_sweep == pytest.approx(2.0)
