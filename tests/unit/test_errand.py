"""Short processes that answer with one line: both sides. The process here is a script that takes the interpreter's place."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from potatod import errand
from potatod.errors import DoesNotFit, InternalError

Play = Callable[[str], None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    def play(script: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
        monkeypatch.setattr(errand.sys, "executable", str(program))

    return play


def test_the_last_line_is_the_answer_whatever_a_library_prints_before_it(play):
    play("echo 'a warning'; echo '{\"rate\": 3}'")
    assert errand.run("worker.probe", limit_s=10) == {"rate": 3}


def test_an_error_is_raised_as_what_it_was_there(play):
    play("echo '{\"error\": \"9 bytes are missing\"}'; exit 71")
    with pytest.raises(DoesNotFit, match="9 bytes are missing"):
        errand.run("worker.probe", limit_s=10)


@pytest.mark.parametrize(("script", "says"), [("exit 0", "exit code 0"), ("echo no json; exit 3", "exit code 3"), ("kill -9 $$", "SIGKILL")])
def test_one_that_says_nothing_is_told_by_its_end(play, script, says):
    play(script)
    with pytest.raises(InternalError, match=f"the probe .*{says}"):
        errand.run("worker.probe", limit_s=10)


def test_one_that_does_not_end_is_ended(play, tmp_path):
    play(f"echo $$ > {tmp_path}/pid; exec sleep 600")
    with pytest.raises(InternalError, match="the probe did not end within 1 s"):
        errand.run("worker.probe", limit_s=1)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_it_ends_soon_after_nobody_wants_it_any_more(play):
    play("exec sleep 600")
    began = time.monotonic()
    with pytest.raises(errand.Cancelled):
        errand.run("worker.probe", limit_s=600, cancelled=lambda: time.monotonic() - began > 0.1)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [(DoesNotFit("9 bytes are missing"), 71, "9 bytes are missing"), (ZeroDivisionError("one\ntwo"), 70, "ZeroDivisionError: one")],
)
def test_what_goes_wrong_is_said_in_one_sentence_with_its_code(monkeypatch, capsys, error, code, says):
    def find() -> dict[str, int]:
        raise error

    monkeypatch.setattr(errand, "die_with_parent", lambda: None)
    assert errand.answer(find) == code
    assert json.loads(capsys.readouterr().out) == {"error": says}


def test_what_was_found_is_said(monkeypatch, capsys):
    monkeypatch.setattr(errand, "die_with_parent", lambda: None)
    assert errand.answer(lambda: {"rate": 3}) == 0
    assert json.loads(capsys.readouterr().out) == {"rate": 3}
