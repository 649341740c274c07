"""Long counts of `make torture`: each run tries others, and nothing counts that was not tried to its end."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from counts import portions


def test_a_run_goes_on_where_the_one_before_it_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTATO_STATE", str(tmp_path / "state.json"))
    assert list(islice(portions("cuts", 1000, 300), 3)) == [(0, 300), (300, 300), (600, 300)]
    assert list(portions("frames", 7, 10)) == [(0, 7)]
    assert list(portions("cuts", 1000, 300)) == [(600, 300), (900, 100)], "the last portion of the first run did not come to its end"
    with pytest.raises(pytest.skip.Exception, match=r"1000 cuts have been tried"):
        list(portions("cuts", 1000, 300))
    assert list(portions("cuts", 1100, 300)) == [(1000, 100)]


def test_a_portion_in_which_something_is_wrong_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTATO_STATE", str(tmp_path / "state.json"))
    with pytest.raises(ZeroDivisionError):
        [1 // (300 - first) for first, _ in portions("cuts", 1000, 300)]
    assert next(portions("cuts", 1000, 300)) == (300, 300)


def test_without_a_file_each_run_begins_at_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POTATO_STATE", raising=False)
    for _ in range(2):
        assert list(portions("cuts", 500, 300)) == [(0, 300), (300, 200)]
