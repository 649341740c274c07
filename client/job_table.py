"""Jobs for people and for programs: the table of `jobs`, the page of `show`, the lines of `export`. Pure."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any, Final

from .job_report import OVER, JobReport
from .protocol import Described
from .units import count, duration, span
from .words import harmless, one_line

#: Of an id that is drawn by chance, so many digits are enough to tell a person's jobs apart.
_ID: Final = 8
_HEAD: Final = ("JOB", "STATE", "PLACE", "TOKENS", "S/TOKEN", "ENDS", "AGE", "QUESTION")


def table(reports: Sequence[JobReport], now: float, width: int) -> str:
    """A row a job; no wider than ``width``."""
    if not reports:
        return "there are no jobs\n"
    rows = [_HEAD, *(_row(report, now) for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=False)) + f"  {row[-1]}" for row in rows]
    return "".join(f"{line[:width].rstrip()}\n" for line in lines)


def _row(report: JobReport, now: float) -> tuple[str, ...]:
    return (
        report.job[:_ID],
        report.state,
        str(report.place) if report.place else "",
        f"{report.completion_tokens}/{report.limit_tokens}" if report.state not in OVER else str(report.completion_tokens),
        "" if report.s_per_token is None else f"{report.s_per_token:.3g}",
        ends(report),
        duration(max(0.0, now - report.accepted_at)),
        harmless(report.title),
    )


def ends(report: JobReport) -> str:
    """When it will be over, or how it was."""
    if report.state == "failed":
        return report.code
    if report.state in OVER:
        return report.reason
    if not report.served:
        return f"waits for {report.model}"
    if report.eta_s is None:
        return ""
    spread = "" if report.eta_least_s is None or report.eta_most_s is None else f" ({span(report.eta_least_s, report.eta_most_s)})"
    return f"in {duration(report.eta_s)}{spread}"


def page(described: Described, text: str, reasoning: str, now: float) -> str:
    """All about one job."""
    report = described.report
    lines = [
        ("job", report.job),
        ("state", report.state + (f", {count(report.place, 'answer')} before it" if report.place else "")),
        ("why", f"{report.code}: {report.why}" if report.code else report.reason),
        ("model", report.model + ("" if report.served else " (another one is served now: it waits)")),
        ("priority", report.priority),
        ("seed", str(described.seed)),
        ("accepted", _time(report.accepted_at)),
        ("started", _time(report.started_at)),
        ("ended", _time(report.ended_at)),
        ("prompt", count(report.prompt_tokens, "token")),
        ("answer", f"{count(report.completion_tokens, 'token')} of at most {report.limit_tokens}"),
        ("speed", "" if report.s_per_token is None else f"{report.s_per_token:.3g} s/token"),
        ("ends", _expected(report)),
    ]
    head = "".join(f"{name:<9} {one_line(value)}\n" for name, value in lines if value)
    asked = "".join(f"\n[{one_line(message.role)}]\n{message.content.rstrip()}\n" for message in described.messages)
    if described.prompt is not None:
        asked = f"\n[prompt]\n{described.prompt.rstrip()}\n"
    thoughts = f"\n[thoughts]\n{reasoning.rstrip()}\n" if reasoning else ""
    return harmless(f"{head}{asked}{thoughts}\n[answer]\n{text.rstrip()}\n")


def _expected(report: JobReport) -> str:
    if report.eta_s is None:
        return ""
    spread = ""
    if report.eta_least_s is not None and report.eta_most_s is not None:
        spread = f" (nine times of ten {duration(report.eta_least_s)} to {duration(report.eta_most_s)})"
    return f"in {duration(report.eta_s)}{spread}"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def as_object(described: Described, text: str, reasoning: str, token_ids: Sequence[int]) -> dict[str, Any]:
    """A line of an export: what was asked, what was answered, and all that is known of it."""
    return {
        **dataclasses.asdict(described.report),
        "seed": described.seed,
        **({"prompt": described.prompt} if described.prompt is not None else {"messages": [dataclasses.asdict(each) for each in described.messages]}),
        **({"tools": [json.loads(tool) for tool in described.tools]} if described.tools else {}),
        "options": {name: value for name, value in dataclasses.asdict(described.options).items() if value not in (None, ())},
        "text": text,
        **({"reasoning": reasoning} if reasoning else {}),
        "token_ids": list(token_ids),
    }
