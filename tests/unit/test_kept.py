"""What was found out is kept, and what cannot be kept stops nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from potatod.kept import Kept


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_an_answer_belongs_to_all_that_it_depends_on():
    Kept("disk", ["8:0", 4]).put({"bytes_per_s": 5e8})
    assert Kept("disk", ["8:0", 4]).get() == {"bytes_per_s": 5e8}
    assert Kept("disk", ["8:0", 8]).get() is None
    assert Kept("compute", ["8:0", 4]).get() is None


def test_an_answer_is_of_the_code_that_found_it(monkeypatch: pytest.MonkeyPatch):
    Kept("disk", "here").put({"bytes_per_s": 5e8})
    monkeypatch.setattr("potatod.kept._code", lambda: "another")
    assert Kept("disk", "here").get() is None


@pytest.mark.parametrize("content", ["", "{", "[1]", "7", '{"rate": 1}'])
def test_a_page_that_is_none_of_ours_is_as_if_nobody_had_asked(content: str):
    kept = Kept("disk", "here")
    kept.path.parent.mkdir(parents=True)
    kept.path.write_text(content)
    assert kept.get("bytes_per_s") is None


def test_an_answer_that_cannot_be_written_leaves_nothing_and_stops_nothing(monkeypatch: pytest.MonkeyPatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = Kept("probe", "here")
    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", full)
        kept.put({"device": "cpu"})
    assert list(kept.path.parent.iterdir()) == []
    kept.put({"device": "cpu"})
    assert kept.get() == {"device": "cpu"}
