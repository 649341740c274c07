"""What ``status`` shows: the daemon, its model, its engine, its queue, its stages."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psutil

from potato_client.protocol import Report
from potato_client.status import EngineReport, Guesses, ModelReport, QueueReport, StageReport, ToolUse
from potatod.messages import Engine, StageProcess
from potatod.stage import Boot

from .answers import Answers
from .scheduler import Scheduler
from .speculation import Speculation
from .sweep_times import SweepTimes


class Reporter:
    def __init__(
        self, boot: Boot, boot_id: str, daemon: str, *, tools: ToolUse, scheduler: Scheduler, answers: Answers, times: SweepTimes,
        speculation: Speculation,
    ) -> None:  # fmt: skip
        verdict = boot.verdict
        self._scheduler = scheduler
        self._answers = answers
        self._times = times
        self._speculation = speculation
        self._boot_id = boot_id
        self._daemon = daemon
        self._started = time.time()
        self._device = str(verdict["device"])
        self._kernels = str(verdict["kernels"])
        self._max_running = boot.settings.front.max_sequences
        self._max_waiting = boot.settings.front.max_queue
        self._model = _model(Path(boot.model).name, verdict, tools)

    def report(self, request: int, engine: Engine, trouble: str) -> Report:
        """``trouble``: why jobs cannot be written; empty where they can."""
        return Report(
            request=request,
            daemon=self._daemon,
            boot=self._boot_id,
            uptime_s=time.time() - self._started,
            model=self._model,
            engine=self._engine(engine),
            queue=self._queue(trouble),
            stages=tuple(_stage(process) for process in self._processes(engine)),
        )

    def _queue(self, trouble: str) -> QueueReport:
        scheduler, speculation, promises = self._scheduler, self._speculation, self._answers.promises
        ledger, reuse = scheduler.ledger, scheduler.reuse
        return QueueReport(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            max_running=self._max_running,
            max_waiting=self._max_waiting,
            kv_running_bytes=ledger.running_bytes,
            kv_kept_bytes=ledger.used_bytes - ledger.running_bytes,
            kv_bytes=ledger.budget_bytes,
            kept=ledger.kept,
            prompt_tokens=reuse.prompt_tokens,
            reused_tokens=reuse.reused_tokens,
            set_aside=reuse.set_aside,
            drafted_tokens=speculation.counts.drafted,
            accepted_tokens=speculation.counts.accepted,
            guesses=tuple(
                Guesses(source, counts.drafted, counts.accepted) for source, counts in speculation.by_source.items() if counts.drafted
            ),
            draft_failed=speculation.failed,
            trouble=trouble,
            tokens=self._answers.tokens,
            etas=promises.count,
            etas_kept=promises.kept,
            eta_error_s=promises.error_s,
        )

    def _engine(self, engine: Engine) -> EngineReport:
        times = self._times
        return EngineReport(
            state=engine.state,
            epoch=engine.epoch,
            restarts=engine.restarts,
            device=self._device,
            kernels=self._kernels,
            sweeps=times.sweeps,
            why=engine.why,
            s_per_sweep=times.s_per_sweep,
            expected_s_per_sweep=times.expected_s_per_sweep,
            waited_s_per_sweep=times.waited_s_per_sweep,
            disk_bytes_per_s=times.disk_bytes_per_s,
            disk_limit_bytes_per_s=times.disk_limit_bytes_per_s if times.disk_bytes_per_s else None,
        )

    def _processes(self, engine: Engine) -> list[StageProcess]:
        """The supervisor's list, and in any case the supervisor and this process."""
        known = {process.pid for process in engine.stages}
        own = [("supervisor", os.getppid()), ("front", os.getpid())]
        return [*(StageProcess(name, pid, 0.0) for name, pid in own if pid not in known), *engine.stages]


def _model(name: str, verdict: dict[str, Any], tools: ToolUse) -> ModelReport:
    return ModelReport(
        name=name,
        architecture=str(verdict["architecture"]),
        dtype=str(verdict["dtype"]),
        layers=int(verdict["layers"]),
        weights_bytes=int(verdict["load"]["weights_bytes"]),
        resident_bytes=int(verdict["resident_bytes"]),
        streamed_bytes_per_sweep=int(verdict["load"]["streamed_bytes"]),
        card_bytes=int(verdict["card_bytes"]),
        tools=tools,
    )


def _stage(stage: StageProcess) -> StageReport:
    """A process may end between two lines of this; then it is reported as gone."""
    try:
        process = psutil.Process(stage.pid)
        with process.oneshot():
            started = stage.started or process.create_time()
            state = {psutil.STATUS_ZOMBIE: "dead", psutil.STATUS_STOPPED: "stopped"}.get(process.status(), "up")
            return StageReport(stage.name, stage.pid, state, process.memory_info().rss, time.time() - started)
    except psutil.Error:
        return StageReport(stage.name, stage.pid, "gone", 0, 0.0)
