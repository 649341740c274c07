"""Sizes, shares and durations, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potato_client import units
from potatod.sizes import (
    Auto,
    Percent,
    format_amount,
    format_duration,
    format_size,
    human_size,
    parse_amount,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4GiB", 4 << 30), ("500MB", 500_000_000), ("8MiB", 8 << 20), ("96 MiB", 96 << 20), ("1.5GiB", 3 << 29),
        ("123", 123), ("123B", 123), ("1kB", 1000), ("2TB", 2 * 10**12), ("1tib", 1 << 40), (" 7KiB ", 7168), ("0", 0),
        ("0.1GB", 100_000_000),
    ],
)  # fmt: skip
def test_a_size_means_what_it_says(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "4 apples", "-1MiB", "1e3", "4GiBs", "1,5GiB", "٤GiB", "0x10", "inf", "1.GB"]
)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_a_truth_value_or_a_negative_number_is_no_size() -> None:
    for value in (True, -1):
        with pytest.raises(ValueError, match="is not a size"):
            parse_size(value)


@given(st.integers(0, 1 << 60))
def test_a_formatted_size_parses_to_itself(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize("text", ["0B", "1B", "4KiB", "96MiB", "4GiB", "500MB", "512MB", "3TB", "1234567B"])
def test_a_size_is_spelt_as_short_as_it_can_be(text: str) -> None:
    assert format_size(parse_size(text)) == text


def test_sizes_for_people_have_two_digits_or_more() -> None:
    assert human_size is units.human_size, "the client and the daemon say sizes alike"
    said = [human_size(n) for n in (0, 999, 1000, 99_940, 99_950, 269_000_000, 3_090_000_000, 10**15)]
    assert said == ["0B", "999B", "1.0kB", "99.9kB", "100kB", "269MB", "3.1GB", "1000TB"]


@given(st.one_of(st.just(Auto()), st.floats(1e-9, 100).map(Percent), st.integers(0, 1 << 60)))
def test_a_formatted_amount_parses_to_itself(amount: int | Percent | Auto) -> None:
    assert parse_amount(format_amount(amount)) == amount


@pytest.mark.parametrize(
    ("text", "amount"),
    [("auto", Auto()), ("50%", Percent(50)), ("12.5 %", Percent(12.5)), ("100%", Percent(100)), ("4GiB", 4 << 30)],
)
def test_an_amount_is_auto_a_share_or_a_size(text: str, amount: object) -> None:
    assert parse_amount(text) == amount


@pytest.mark.parametrize("text", ["0%", "101%", "500%"])
def test_a_share_of_nothing_or_of_more_than_all_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a share lies above 0%"):
        parse_amount(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10min", 600), ("30s", 30), ("250ms", 0.25), ("1.5h", 5400), ("1d", 86400), ("45", 45), (45, 45), (0.5, 0.5)],
)
def test_a_duration_means_what_it_says(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "min", "10 minutes", "-3s", True, float("nan"), float("inf")])
def test_what_is_no_duration_is_refused_by_name(text: str | float) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.one_of(st.integers(0, 10**6).map(float), st.floats(1e-3, 86400)))
def test_a_formatted_duration_parses_to_itself(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds
