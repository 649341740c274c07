"""When systemd is told that the daemon is well, and what else it is told."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from potatod import notify, stages, unit_file
from potatod.messages import Counted, Queued, State
from potatod.watchdog import Seen, Watchdog, well

FRONT, WORKER, READER = 1, 2, 3
EVERYBODY = {FRONT, WORKER, READER}
BUSY = Queued(FRONT, 1, 0, False, 0.5)
IDLE = Queued(FRONT, 0, 0, False, 0.5)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (Seen("up", moved=True), True),
        (Seen("up", moved=True, idle=False, all_heard=True), True),
        (Seen("up", idle=True, all_heard=True), True),
        (Seen("up", idle=False, all_heard=True), False),  # something runs or waits, all say that they live, and nothing comes further
        (Seen("up", idle=True, all_heard=False), False),  # nothing is asked for, and somebody is silent
        (Seen("up", idle=None, all_heard=False), False),
        (Seen("starting", away_s=0.0), True),
        (Seen("starting", away_s=780.0), True),
        (Seen("starting", away_s=781.0), False),
        (Seen("restarting", away_s=100.0), True),
        (Seen("restarting", away_s=100.0, idle=False), True),
        (Seen("restarting", away_s=781.0, moved=True, idle=True, all_heard=True), False),
        (Seen("degraded", idle=True, all_heard=True), True),
        (Seen("degraded", idle=False), True),  # jobs wait for a daemon that can compute them
        (Seen("degraded", idle=None), False),  # nobody answers from what is stored
        (Seen("stopping", moved=True, idle=True, all_heard=True), False),
    ],
)
def test_well_is_who_comes_further_or_has_nothing_to_do(seen: Seen, verdict: bool) -> None:
    assert well(seen, 780.0) is verdict


class Told:
    """A watchdog of eight seconds, which is told of every two, and what it was told when."""

    def __init__(self) -> None:
        self.dog = Watchdog(8.0, 100.0)
        self.now = 0.0

    def hear(self, *messages: Counted | Queued) -> None:
        for message in messages:
            self.dog.heard(message)

    def after(self, seconds: float, state: State = "up", pids: set[int] = EVERYBODY) -> bool:
        self.now += seconds
        return self.dog.due(self.now, state, pids)


def counted(pid: int, sweeps: int = 0, read_bytes: int = 0, layers: int = 0) -> Counted:
    return Counted("stage", pid, sweeps, read_bytes, layers)


@pytest.mark.parametrize("further", [counted(WORKER, sweeps=1), counted(WORKER, layers=1), counted(READER, read_bytes=4096)])
def test_each_kind_of_progress_counts_once(further: Counted) -> None:
    told = Told()
    told.hear(BUSY, further)
    assert told.after(2)
    told.hear(BUSY, further)
    assert not told.after(2) and not told.after(100)
    told.hear(counted(further.pid, further.sweeps * 2, further.read_bytes * 2, further.layers * 2))
    assert told.after(0.1)


def test_it_is_told_no_oftener_than_four_times_in_its_time_and_at_least_twice() -> None:
    told, at = Told(), []
    for second in range(1, 41):
        told.hear(BUSY, counted(WORKER, layers=second))
        if told.after(1):
            at.append(second)
    between = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert set(between) == {2} and len(at) == 20


def test_an_engine_that_begins_anew_counts_from_nothing() -> None:
    told = Told()
    told.hear(counted(WORKER, sweeps=100))
    assert told.after(2)
    told.hear(BUSY, counted(9, sweeps=1))
    assert told.after(2, pids={FRONT, 9, READER})


def test_idle_is_what_the_front_said_last_and_since_the_last_time() -> None:
    told = Told()
    told.hear(IDLE, counted(WORKER), counted(READER))
    assert told.after(2)
    assert not told.after(2)
    told.hear(IDLE, BUSY, counted(WORKER), counted(READER))
    assert not told.after(2)
    told.hear(IDLE)
    assert told.after(0.1)


def test_jobs_that_cannot_be_written_are_nothing_to_be_done() -> None:
    told = Told()
    told.hear(Queued(FRONT, 1, 3, True, None), counted(WORKER), counted(READER))
    assert told.after(2)


def test_jobs_that_are_to_wait_for_the_machines_sake_are_nothing_to_be_done() -> None:
    told = Told()
    told.hear(Queued(FRONT, 1, 3, False, 0.5, "this machine runs on battery"), counted(WORKER), counted(READER))
    assert told.after(2)
    told.hear(Queued(FRONT, 1, 3, False, 0.5), counted(WORKER), counted(READER))
    assert not told.after(2)


def test_a_silent_stage_is_not_idle() -> None:
    told = Told()
    told.hear(IDLE, counted(READER))
    assert not told.after(2)
    assert told.after(0, pids={FRONT, READER})


def test_restarting_has_an_end_and_begins_anew_after_an_engine_was_up() -> None:
    told = Told()
    assert told.after(50, "starting") and told.after(100, "starting")
    assert not told.after(1, "starting")
    told.hear(counted(WORKER, sweeps=1))
    assert told.after(2, "up")
    assert told.after(50, "restarting") and told.after(99, "restarting")
    assert not told.after(3, "restarting")


def test_what_the_supervisor_mends_itself_takes_less_than_the_watchdog_of_the_unit() -> None:
    assert "\nWatchdogSec=10min\n" in unit_file.text(unit_file.Service())
    assert stages.SILENT_S + stages.READY_S < 600


# what is sent


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Gives all that was sent since the last call, datagram by datagram."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(str(tmp_path / "notify"))
        ours.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.delenv("WATCHDOG_PID", raising=False)

        def said() -> list[str]:
            found = []
            while True:
                try:
                    found.append(ours.recv(4096).decode())
                except BlockingIOError:
                    return found

        yield said


def test_ready_is_said_once_over_all_engines(listening: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    systemd = notify.Systemd("llama", 100.0)
    states: list[State] = ["starting", "up", "up", "restarting", "up", "degraded"]
    for second, state in enumerate(states):
        systemd.look(float(second), state, "the worker died\nREADY=1" if state == "restarting" else "", EVERYBODY)
    systemd.stopping()
    assert listening() == [
        "STATUS=starting: llama", "READY=1", "STATUS=serving llama", "STATUS=restarting: llama, the worker died READY=1", "STATUS=serving llama",
        "STATUS=degraded: llama", "STOPPING=1\nSTATUS=stopping: llama",
    ]  # fmt: skip


def test_the_line_follows_what_is_done_but_not_every_second(listening: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "8000000")
    systemd = notify.Systemd("llama", 100.0)
    for second in range(31):
        systemd.heard(Queued(FRONT, 1, second, False, 0.123456))
        systemd.look(float(second), "up", "", EVERYBODY)
    said = [line for line in listening() if line.startswith("STATUS=")]
    assert said == [f"STATUS=serving llama: 1 running, {second} waiting, 0.123 s/token" for second in (0, 10, 20, 30)]


def test_a_pause_and_its_end_are_said_at_once(listening: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    systemd = notify.Systemd("llama", 100.0)
    for second, why in enumerate(("", "on battery", "on battery", "")):
        systemd.heard(Queued(FRONT, 1, 0, False, None, why))
        systemd.look(float(second), "up", "", EVERYBODY)
    assert listening() == [
        "READY=1", "STATUS=serving llama: 1 running, 0 waiting", "STATUS=paused: llama, on battery: 1 running, 0 waiting",
        "STATUS=serving llama: 1 running, 0 waiting",
    ]  # fmt: skip


def test_the_line_says_what_matters() -> None:
    assert notify.status_line("llama", "up", "", IDLE) == "serving llama: nothing to do, 0.5 s/token"
    paused = Queued(FRONT, 1, 2, False, 0.5, "this machine runs on battery")
    assert notify.status_line("llama", "up", "", paused) == "paused: llama, this machine runs on battery: 1 running, 2 waiting"
    assert notify.status_line("llama", "up", "", Queued(FRONT, 0, 2, True, None)) == "serving llama: 0 running, 2 waiting; jobs cannot be written"


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None), ({"WATCHDOG_USEC": "3000000"}, 3.0), ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, None), ({"WATCHDOG_USEC": "0"}, None), ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)  # fmt: skip
def test_the_watchdog_is_whose_it_is(environment: dict[str, str], seconds: float | None) -> None:
    assert notify.watchdog_s(environment, 7) == seconds


def test_nobody_is_told_where_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for where in ("", str(tmp_path / "nobody"), "@nobody-there"):
        monkeypatch.setenv("NOTIFY_SOCKET", where)
        notify.notify(READY="1")
