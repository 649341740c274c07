"""The log: one event, one line, whatever is in it and whatever becomes of stderr."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potatod import log

LOGGER = logging.getLogger("potatod.test")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("potatod")
    before = (root.handlers[:], root.level, ours.level)
    yield
    logging.captureWarnings(False)
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What has been written to stderr since the last call."""
    return lambda: capsys.readouterr().err


def test_an_event_is_a_line_with_clock_stage_words_and_fields(stderr: Callable[[], str]) -> None:
    log.configure("reader")
    log.event(LOGGER, "first pass read", read_bytes=1_200_000_000, s=2.1234567, parts=12, file="layer 1", ok=True)
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d reader      first pass read  read_bytes=1\.2GB s=2\.123 parts=12 file="layer 1" ok=True\n',
        stderr(),
    )


def test_an_event_without_fields_ends_with_its_words(stderr: Callable[[], str]) -> None:
    log.configure("front")
    log.event(LOGGER, "stopping")
    assert stderr().endswith(" front       stopping\n")


def test_warnings_and_errors_say_so(stderr: Callable[[], str]) -> None:
    log.configure("front")
    log.event(LOGGER, "slow", level=logging.WARNING)
    LOGGER.error("gone")
    assert [line.split("  ")[-1].strip() for line in stderr().splitlines()] == ["warning: slow", "error: gone"]


def test_as_json_an_event_is_an_object_with_plain_numbers(stderr: Callable[[], str]) -> None:
    log.configure("worker", "info", "json")
    log.event(LOGGER, "swept", read_bytes=1_200_000_000, s=2.5, stage="x")
    page = json.loads(stderr())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", page.pop("time"))
    assert page == {
        "level": "info", "stage": "worker", "event": "swept", "read_bytes": 1_200_000_000, "s": 2.5, "stage_": "x",
    }  # fmt: skip


def test_events_below_the_level_are_not_written(stderr: Callable[[], str]) -> None:
    log.configure("front", "warning")
    log.event(LOGGER, "no")
    log.configure("front", "debug")
    LOGGER.debug("yes")
    assert [line.split()[-1] for line in stderr().splitlines()] == ["yes"]


def test_other_packages_are_heard_from_warning_up(stderr: Callable[[], str]) -> None:
    log.configure("worker", "debug")
    logging.getLogger("somebody").info("chatter")
    logging.getLogger("somebody").warning("trouble")
    said = stderr()
    assert "trouble" in said
    assert "chatter" not in said


def test_at_level_error_other_packages_warnings_are_silent_too(stderr: Callable[[], str]) -> None:
    log.configure("worker", "error")
    logging.getLogger("somebody").warning("trouble")
    assert stderr() == ""


def test_configuring_again_replaces_and_does_not_double(stderr: Callable[[], str]) -> None:
    for stage in ("front", "worker"):
        log.configure(stage)
    log.event(LOGGER, "once")
    said = stderr()
    assert said.count("once") == 1
    assert " worker " in said


def test_python_warnings_are_events(stderr: Callable[[], str]) -> None:
    log.configure("worker")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("old habits", UserWarning, stacklevel=1)
    said = stderr()
    assert "warning: " in said
    assert "old habits" in said


@pytest.mark.parametrize("format", ["text", "json"])
@given(text=st.text(st.characters(codec=None), max_size=40), value=st.text(st.characters(codec=None), max_size=40))
def test_nobody_but_us_begins_a_line_of_the_log(format: str, text: str, value: str) -> None:
    """Lines that are not an event's own are indented with a bar in text; in JSON there are none."""
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        log.configure("front", "info", format)  # type: ignore[arg-type]
        log.event(LOGGER, text, said=value)
    first, *rest = stream.getvalue().removesuffix("\n").splitlines()
    assert (json.loads(first)["said"] == value) if format == "json" else re.match(r"\d\d:\d\d:\d\d front ", first)
    assert all(format == "text" and re.match(r" {19}  \| ", line) for line in rest)


def test_a_traceback_follows_its_event_indented(stderr: Callable[[], str]) -> None:
    log.configure("worker")
    try:
        raise RuntimeError("odd")
    except RuntimeError:
        LOGGER.exception("failed")
    first, *rest = stderr().splitlines()
    assert first.endswith("error: failed")
    assert rest[0].strip() == "| Traceback (most recent call last):"
    assert rest[-1].strip() == "| RuntimeError: odd"


def test_a_closed_full_or_missing_stderr_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log.configure("front")
    closed = io.StringIO()
    closed.close()
    with open("/dev/full", "w") as full:
        for stream in (closed, full, None):
            monkeypatch.setattr(sys, "stderr", stream)
            log.event(LOGGER, "into nothing")
        monkeypatch.undo()
        os.dup2(os.open("/dev/null", os.O_WRONLY), full.fileno())  # so that closing it can flush


def test_a_reader_that_went_away_stops_nothing() -> None:
    """The pipe behind stderr is closed while a process logs: it goes on and ends by itself."""
    program = (
        "import logging, sys; from potatod import log; log.configure('front'); sys.stdin.readline();"
        "[log.event(logging.getLogger('potatod'), 'into nothing') for _ in range(9)]; sys.stdout.write('went on')"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    child.stderr.close()
    child.stdin.write(b"\n")
    child.stdin.close()
    with child.stdout:
        assert child.stdout.read() == b"went on"
    child.wait(30)
