"""/metrics: each says what the front reports, and docs/OPERATIONS.md names them all."""

from __future__ import annotations

import re
from pathlib import Path

from potato_client.protocol import Report
from potato_client.status import EngineReport, Guesses, ModelReport, QueueReport, StageReport
from potatod.gateway.metrics import Metrics

OPERATIONS = (Path(__file__).parents[2] / "docs" / "OPERATIONS.md").read_text()
#: Each of its numbers is another.
REPORT = Report(
    1, "0.1", "boot", 2.0,
    ModelReport("model", "llama", "bf16", 3, weights_bytes=101, resident_bytes=102, streamed_bytes_per_sweep=103, card_bytes=104),
    EngineReport(
        "up", 4, restarts=105, device="cpu", kernels="invariant", sweeps=106, s_per_sweep=1.07, expected_s_per_sweep=1.08, waited_s_per_sweep=1.09,
        disk_bytes_per_s=110.0, disk_limit_bytes_per_s=440.0,
    ),
    QueueReport(
        running=111, waiting=112, max_running=5, max_waiting=6, kv_running_bytes=113, kv_kept_bytes=114, kv_bytes=115, prompt_tokens=116,
        reused_tokens=117, set_aside=118, guesses=(Guesses("lookup", 119, 120), Guesses("draft", 121, 122)), trouble="full", paused="battery",
        tokens=123, etas=124, etas_kept=125, eta_error_s=12.6,
    ),
    (StageReport("worker", 7, "up", 127, 8.0),),
)  # fmt: skip
SAID = {
    "potato_up": 1.0, "potato_weights_bytes": 101.0, "potato_resident_bytes": 102.0, "potato_streamed_bytes_per_sweep": 103.0,
    "potato_card_bytes": 104.0, "potato_restarts_total": 105.0, "potato_sweeps_total": 106.0, "potato_sweep_seconds": 1.07,
    "potato_sweep_expected_seconds": 1.08, "potato_sweep_waited_seconds": 1.09, "potato_disk_bytes_per_second": 110.0,
    "potato_disk_limit_bytes_per_second": 440.0, "potato_disk_share": 0.25, "potato_jobs_running": 111.0, "potato_jobs_waiting": 112.0,
    "potato_kv_running_bytes": 113.0, "potato_kv_kept_bytes": 114.0, "potato_kv_bytes": 115.0, "potato_prompt_tokens_total": 116.0,
    "potato_prompt_tokens_reused_total": 117.0, "potato_set_aside_total": 118.0, 'potato_drafted_tokens_total{source="lookup"}': 119.0,
    'potato_accepted_tokens_total{source="lookup"}': 120.0, 'potato_drafted_tokens_total{source="draft"}': 121.0,
    'potato_accepted_tokens_total{source="draft"}': 122.0, "potato_storage_trouble": 1.0, "potato_paused": 1.0, "potato_tokens_total": 123.0,
    "potato_etas_total": 124.0, "potato_etas_kept_total": 125.0, "potato_eta_error_seconds_total": 12.6,
    'potato_process_resident_bytes{process="worker"}': 127.0, 'potato_http_requests_total{path="/jobs",status="200"}': 1.0,
    "potato_http_streams": 0.0,
}  # fmt: skip


def read(metrics: Metrics, report: Report | None) -> dict[str, float]:
    rows = [row.rsplit(" ", 1) for row in metrics.page(report).decode().splitlines() if not row.startswith("#")]
    return {name: float(value) for name, value in rows if "_created" not in name}


def test_each_metric_says_what_the_front_reports() -> None:
    metrics = Metrics()
    metrics.answered("/jobs", 200)
    assert read(metrics, REPORT) == SAID


def test_while_the_front_is_away_there_is_what_http_does_and_that_nothing_is_up() -> None:
    assert read(Metrics(), None) == {"potato_up": 0.0, "potato_http_streams": 0.0}


def test_the_document_names_each_metric_and_no_other() -> None:
    assert {name.partition("{")[0] for name in SAID} == set(re.findall(r"`(potato_[a-z_]+)`", OPERATIONS))
