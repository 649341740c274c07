"""What ``status`` shows: the daemon, its model, its engine, its queue, its stages."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence

import psutil

from potato_client.protocol import Report
from potato_client.status import EngineReport, Guesses, ModelReport, QueueReport, ServedReport, StageReport
from potatod.messages import Engine, StageProcess
from potatod.sections import Front as Limits

from .desk import Desk
from .desks import Desks


class Reporter:
    def __init__(self, limits: Limits, boot_id: str, daemon: str, desks: Desks) -> None:
        self._desks = desks
        self._boot_id = boot_id
        self._daemon = daemon
        self._started = time.time()
        self._limits = limits

    def report(self, request: int, engine: Engine, trouble: str) -> Report:
        """``trouble``: why jobs cannot be written; empty where they can."""
        return Report(
            request=request,
            daemon=self._daemon,
            boot=self._boot_id,
            uptime_s=time.time() - self._started,
            model=_model(self._desks.current),
            engine=self._engine(engine),
            queue=self._queue(trouble, engine.paused),
            stages=tuple(_stage(process) for process in self._processes(engine)),
            models=tuple(self._served(desk, engine) for desk in self._desks),
        )

    def _served(self, desk: Desk, engine: Engine) -> ServedReport:
        has = desk is self._desks.current
        running = len(desk.scheduler.running) if has else 0
        return ServedReport(
            name=desk.name,
            state="down" if desk.why else "waiting" if not has else "up" if engine.state == "up" else "loading",
            running=running,
            waiting=len(desk.answers) - running,
            max_context_tokens=desk.admission.max_context,
            tools=desk.admission.tool_use,
            why=desk.why,
        )

    def _queue(self, trouble: str, paused: str) -> QueueReport:
        """Memory is the engine's; what is counted is counted over all models."""
        current, desks = self._desks.current, tuple(self._desks)
        ledger, running = current.scheduler.ledger, len(current.scheduler.running)
        reuse = [desk.scheduler.reuse for desk in desks]
        promises = [desk.answers.promises for desk in desks]
        return QueueReport(
            running=running,
            waiting=sum(len(desk.answers) for desk in desks) - running,
            max_running=self._limits.max_sequences,
            max_waiting=self._limits.max_queue * len(desks),
            kv_running_bytes=ledger.running_bytes,
            kv_kept_bytes=ledger.used_bytes - ledger.running_bytes,
            kv_bytes=ledger.budget_bytes,
            kept=ledger.kept,
            prompt_tokens=sum(each.prompt_tokens for each in reuse),
            reused_tokens=sum(each.reused_tokens for each in reuse),
            set_aside=sum(each.set_aside for each in reuse),
            drafted_tokens=sum(desk.speculation.counts.drafted for desk in desks),
            accepted_tokens=sum(desk.speculation.counts.accepted for desk in desks),
            guesses=_guesses(desks),
            draft_failed=current.speculation.failed,
            trouble=trouble,
            paused=paused,
            tokens=sum(desk.answers.tokens for desk in desks),
            etas=sum(each.count for each in promises),
            etas_kept=sum(each.kept for each in promises),
            eta_error_s=sum(each.error_s for each in promises),
        )

    def _engine(self, engine: Engine) -> EngineReport:
        current = self._desks.current
        times = current.times
        return EngineReport(
            state=engine.state,
            epoch=engine.epoch,
            restarts=engine.restarts,
            device=str(current.verdict["device"]),
            kernels=str(current.verdict["kernels"]),
            sweeps=sum(desk.times.sweeps for desk in self._desks),
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


def _guesses(desks: Sequence[Desk]) -> tuple[Guesses, ...]:
    drafted, accepted = Counter[str](), Counter[str]()
    for desk in desks:
        for source, counts in desk.speculation.by_source.items():
            drafted[source] += counts.drafted
            accepted[source] += counts.accepted
    return tuple(Guesses(source, drafted[source], accepted[source]) for source in drafted if drafted[source])


def _model(desk: Desk) -> ModelReport:
    verdict = desk.verdict
    return ModelReport(
        name=desk.name,
        architecture=str(verdict["architecture"]),
        dtype=str(verdict["dtype"]),
        layers=int(verdict["layers"]),
        weights_bytes=int(verdict["load"]["weights_bytes"]),
        resident_bytes=int(verdict["resident_bytes"]),
        streamed_bytes_per_sweep=int(verdict["load"]["streamed_bytes"]),
        card_bytes=int(verdict["card_bytes"]),
        tools=desk.admission.tool_use,
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
