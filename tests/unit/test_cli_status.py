"""`potatod status`: which daemon is asked, and what is printed."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from potato_client.paths import default_socket
from potato_client.protocol import Report
from potato_client.status import EngineReport, ModelReport, QueueReport, StageReport
from potatod import cli, status

REPORT = Report(
    request=1, daemon="potatod 0.1.0", boot="b", uptime_s=200.4,
    model=ModelReport("smollm2", "LlamaForCausalLM", "bfloat16", 30, 269_000_000, 94_000_000, 175_000_000),
    engine=EngineReport("up", 2, 1, "cpu", "invariant", 120, "", 0.2104, 830_000_000.0, 1_000_000_000.0),
    queue=QueueReport(1, 3, 4, 64),
    stages=(StageReport("worker", 4711, "up", 480_000_000, 7300.0),),
)  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sockets that were asked for a report."""
    sockets: list[str] = []

    def ask(socket: str) -> Report:
        sockets.append(socket)
        return REPORT

    monkeypatch.setattr(status, "ask", ask)
    for variable in ("POTATO_SOCKET", "POTATO_FRONT__SOCKET"):
        monkeypatch.delenv(variable, raising=False)
    return sockets


def test_the_socket_is_the_options_then_the_variables_then_the_configurations(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "cfg.toml"
    file.write_text('[front]\nsocket = "ipc:///run/file.sock"\n')
    assert cli.main(["status"]) == cli.main(["status", "--config", str(file)]) == 0
    monkeypatch.setenv("POTATO_SOCKET", "ipc:///run/variable.sock")
    assert cli.main(["status", "--config", str(file)]) == 0
    assert cli.main(["status", "--socket", "ipc:///run/option.sock"]) == 0
    assert asked == [default_socket(), "ipc:///run/file.sock", "ipc:///run/variable.sock", "ipc:///run/option.sock"]


def test_a_socket_that_is_none_is_a_usage_error(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--socket", "tcp://127.0.0.1:1"]) == 64
    assert "is refused" in capsys.readouterr().err
    assert not asked


def test_the_report_is_printed_in_words_or_as_json(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["status"])
    assert capsys.readouterr().out == status.as_text(REPORT)
    cli.main(["status", "--json"])
    assert json.loads(capsys.readouterr().out)["daemon"] == "potatod 0.1.0"
    assert len(asked) == 2


def test_the_columns_of_the_stages_never_touch() -> None:
    seconds = (22 * 60 + 18, 86400 * 999 + 3600 * 23, 59)
    stages = tuple(StageReport("supervisor", 4194304, "stopped", 888_800_000, float(s)) for s in seconds)
    lines = status.as_text(dataclasses.replace(REPORT, stages=stages)).splitlines()[-3:]
    assert [re.split(r"\s{2,}", line.strip()) for line in lines] == [
        ["supervisor", "4194304", "stopped", "889MB", uptime] for uptime in ("22 min 18 s", "999 d 23 h", "59 s")
    ]
    assert len({len(line) for line in lines}) == 1


def test_the_first_line_is_the_state_now_and_the_age_of_the_whole_daemon() -> None:
    """Neither of them is how long it has been in that state."""
    stages = (StageReport("supervisor", 1, "up", 0, 3 * 3600.0), StageReport("front", 2, "up", 0, 17.0))
    engine = dataclasses.replace(REPORT.engine, state="degraded", why="the worker died")
    text = status.as_text(dataclasses.replace(REPORT, uptime_s=17.0, engine=engine, stages=stages))
    assert text.startswith("potatod 0.1.0  degraded; running for 3 h\n")


def test_where_no_daemon_is_the_exit_code_says_unavailable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--socket", f"ipc://{tmp_path}/none.sock"]) == 69
    said = capsys.readouterr().err
    assert said.startswith("potatod: ")
    assert said.count("\n") == 1


def test_jobs_that_cannot_be_written_are_said() -> None:
    queue = dataclasses.replace(REPORT.queue, trouble="the disk is full")
    assert "nothing is accepted or computed now: the disk is full" in status.as_text(dataclasses.replace(REPORT, queue=queue))
    assert "trouble" not in status.as_text(REPORT)


def test_that_no_job_is_computed_for_the_machines_sake_is_said() -> None:
    queue = dataclasses.replace(REPORT.queue, paused="this machine runs on battery")
    assert "no job is computed now: this machine runs on battery" in status.as_text(dataclasses.replace(REPORT, queue=queue))
    assert "paused" not in status.as_text(REPORT)
