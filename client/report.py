"""What ``status`` shows: a Report in words and as JSON. Pure."""

from __future__ import annotations

import dataclasses
import json
from typing import Final

from .protocol import Report
from .status import EngineReport, ModelReport, QueueReport, ServedReport, StageReport
from .units import count, duration, human_size
from .words import by_source, harmless, of_the_disk

#: The longest duration is "22 min 18 s", or days and hours.
#: A share of a sweep that is worth a word.
_WORTH: Final = 0.05
_SERVED: Final = {"up": "loaded", "loading": "being loaded", "waiting": "not loaded", "down": "stays down until the daemon is restarted"}
_COLUMNS: Final = "  {:<12}{:>8}  {:<8}{:>8}  {:>12}\n"


def as_json(report: Report) -> str:
    return json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False) + "\n"


def as_text(report: Report) -> str:
    queue = report.queue
    text = (
        f"{report.daemon}  {report.engine.state}; running for {duration(_running_s(report))}\n"
        f"  model   {_model(report.model)}\n"
        f"  engine  {_engine(report.engine)}\n"
        f"  speed   {_speed(report.engine)}\n"
        f"  queue   {queue.running} of {queue.max_running} running, {queue.waiting} of {queue.max_waiting} waiting\n"
        f"  kv      {_kv(queue)}\n"
        f"  guesses {_guesses(queue)}\n"
    )
    if len(report.models) > 1:
        text += "".join(f"  {'models' if number == 0 else '':<7} {_served(model)}\n" for number, model in enumerate(report.models))
    if report.engine.why:
        text += f"  why     {report.engine.why}\n"
    if queue.trouble:
        text += f"  trouble nothing is accepted or computed now: {queue.trouble}\n"
    if queue.paused:
        text += f"  paused  no job is computed now: {queue.paused}\n"
    text += _COLUMNS.format("stage", "pid", "state", "memory", "uptime")
    return harmless(text + "".join(map(_stage, report.stages)))


def _running_s(report: Report) -> float:
    """Of the whole daemon: a front may have been started anew meanwhile."""
    return max([report.uptime_s, *(stage.uptime_s for stage in report.stages if stage.name == "supervisor")])


def _kv(queue: QueueReport) -> str:
    """The memory of what has been read and said, and what it spared."""
    said = f"{human_size(queue.kv_running_bytes)} of {human_size(queue.kv_bytes)} for answers under way"
    if queue.kept:
        said += f", {human_size(queue.kv_kept_bytes)} with {count(queue.kept, 'text')} to go on from"
    if queue.reused_tokens:
        said += f"; {queue.reused_tokens / queue.prompt_tokens:.0%} of the prompts' tokens were there already"
    return said


def _guesses(queue: QueueReport) -> str:
    said = "none yet"
    if queue.drafted_tokens:
        said = f"{queue.accepted_tokens} of {count(queue.drafted_tokens, 'token')} were right ({queue.accepted_tokens / queue.drafted_tokens:.0%})"
    if len(queue.guesses) > 1:
        said += f": {by_source(queue.guesses)}"
    return f"{said}; the draft model has failed: {harmless(queue.draft_failed)}" if queue.draft_failed else said


def _model(model: ModelReport) -> str:
    on_card = f"{human_size(model.card_bytes)} in the card, " if model.card_bytes else ""
    return (
        f"{model.name}: {model.architecture}, {model.dtype}, {model.layers} layers; "
        f"{human_size(model.weights_bytes)}, of which {on_card}{human_size(model.resident_bytes)} resident and "
        f"{human_size(model.streamed_bytes_per_sweep)} read for every sweep"
    )


def _served(model: ServedReport) -> str:
    jobs = f", {model.running} running, {model.waiting} waiting" if model.running or model.waiting else ""
    return f"{model.name}: {_SERVED[model.state]}{jobs}" + (f"; {model.why}" if model.why else "")


def _engine(engine: EngineReport) -> str:
    return (
        f"{engine.device}, {engine.kernels} kernels; epoch {engine.epoch}, {count(engine.restarts, 'restart')}, "
        f"{count(engine.sweeps, 'sweep')}"
    )


def _speed(engine: EngineReport) -> str:
    if engine.s_per_sweep is None:
        return "nothing has been computed yet"
    said = f"{engine.s_per_sweep:.3g} s/token now"
    if engine.expected_s_per_sweep is not None:
        said += f" ({engine.expected_s_per_sweep:.3g} s planned)"
    if engine.waited_s_per_sweep is not None and engine.waited_s_per_sweep >= _WORTH * engine.s_per_sweep:
        said += f", {engine.waited_s_per_sweep:.3g} s of it waiting for weights"
    if engine.disk_bytes_per_s:
        said += f", {human_size(engine.disk_bytes_per_s)}/s read"
        if share := of_the_disk(engine.disk_bytes_per_s, engine.disk_limit_bytes_per_s):
            said += f", {share}"
    return said


def _stage(stage: StageReport) -> str:
    return _COLUMNS.format(stage.name, stage.pid, stage.state, human_size(stage.rss_bytes), duration(stage.uptime_s))
