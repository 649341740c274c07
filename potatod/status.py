"""`potatod status`: what the daemon is and does, asked from its front like any client would. Rendering is pure."""

from __future__ import annotations

import dataclasses
import json
from typing import Final

from potato_client import Client, ClientError
from potato_client.protocol import EngineReport, ModelReport, Report, StageReport

from .errors import by_exit_code
from .sizes import human_size

_COLUMNS: Final = "  {:<12}{:>8}  {:<12}{:>8}{:>12}\n"


def ask(socket: str) -> Report:
    """Raises :class:`Unavailable` where no daemon answers."""
    try:
        with Client(socket) as client:
            return client.status()
    except ClientError as error:
        raise by_exit_code(error.exit_code)(str(error)) from None


def as_json(report: Report) -> str:
    return json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False) + "\n"


def as_text(report: Report) -> str:
    queue = report.queue
    text = (
        f"{report.daemon}  {report.engine.state} for {duration(report.uptime_s)}\n"
        f"  model   {_model(report.model)}\n"
        f"  engine  {_engine(report.engine)}\n"
        f"  speed   {_speed(report.engine)}\n"
        f"  queue   {queue.running} of {queue.max_running} running, {queue.waiting} of {queue.max_waiting} waiting\n"
    )
    if report.engine.why:
        text += f"  why     {report.engine.why}\n"
    return text + _COLUMNS.format("stage", "pid", "state", "memory", "uptime") + "".join(map(_stage, report.stages))


def _model(model: ModelReport) -> str:
    return (
        f"{model.name}: {model.architecture}, {model.dtype}, {model.layers} layers; "
        f"{human_size(model.weights_bytes)}, of which {human_size(model.resident_bytes)} resident and "
        f"{human_size(model.streamed_bytes_per_sweep)} read for every sweep"
    )


def _engine(engine: EngineReport) -> str:
    return (
        f"{engine.device}, {engine.kernels} kernels; epoch {engine.epoch}, {_count(engine.restarts, 'restart')}, "
        f"{_count(engine.sweeps, 'sweep')}"
    )


def _speed(engine: EngineReport) -> str:
    if engine.s_per_sweep is None:
        return "nothing has been computed yet"
    said = f"{engine.s_per_sweep:.3g} s/token now"
    if engine.disk_bytes_per_s:
        said += f", reading at {human_size(engine.disk_bytes_per_s)}/s"
        if engine.disk_limit_bytes_per_s:
            share = engine.disk_bytes_per_s / engine.disk_limit_bytes_per_s
            said += f", {share:.0%} of the disk's {human_size(engine.disk_limit_bytes_per_s)}/s"
    return said


def _stage(stage: StageReport) -> str:
    return _COLUMNS.format(stage.name, stage.pid, stage.state, human_size(stage.rss_bytes), duration(stage.uptime_s))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """In its two largest units: "3 min 20 s"."""
    whole = int(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"
