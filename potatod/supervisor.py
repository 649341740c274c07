"""Starts the stages, watches them, restarts the engine. Never imports torch.

    supervisor
    ├── front     outlives engines: clients keep their connections and their jobs
    ├── gateway   where [gateway] listen says so: a client of the front, restarted alone
    └── engine    epoch n: reader + worker + pool; if either dies, all three are made anew

NOTE [ states of the engine ]

    starting ──both ready──▶ up ──a death──▶ restarting ──both ready──▶ up
                             │                   └──too many deaths, or one that no restart mends──▶ degraded
                             └── Stop, SIGTERM, SIGINT ──▶ stopping

Before the first epoch has been up, or has completed a sweep, a death that no restart mends ends the daemon with that exit code: the person who
typed `potatod start` is still looking. Later the daemon stays, says why, and serves what it can without an engine.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import setproctitle
import zmq

from . import drafts, identity, log, pool, process, rates, run_directory, surroundings, wire
from . import plan as plans
from .config import Settings
from .errand import Cancelled
from .errors import (
    EXIT_OK,
    EXITS_THAT_STAY,
    InternalError,
    by_exit_code,
)
from .forecast import Load, forecast
from .manifest import Manifest, check_files, check_mirror, stored_as
from .manifest import load as load_manifest
from .messages import Counted, Engine, Failed, Parted, Poisoned, Queued, Ready, StageProcess, State, Stop, Trace, Traced
from .notify import Systemd
from .process import Process
from .restarts import Restarts
from .room import logits_rows
from .sizes import Auto, Percent
from .stage import Boot
from .verdict import Verdict, probe

#: A stage that has not said Ready by then is stuck: importing torch takes seconds on a slow disk, not minutes.
READY_S: Final = 180.0
#: A stage that is ready speaks every second. One that has said nothing for so long stands still: no layer takes as long.
SILENT_S: Final = 300.0
#: After Stop, before SIGKILL.
GRACE_S: Final = 5.0

_LOGGER: Final = logging.getLogger("potatod.supervisor")


def run(settings: Settings) -> int:
    """The daemon's life, from a complete configuration to its exit code. Raises :class:`PotatoError` where it cannot start."""
    folder = Path(settings.model.path)
    manifest = load_manifest(folder)
    check_files(folder, manifest)
    for mirror in settings.model.mirrors:
        check_mirror(folder, Path(mirror))
    drafts.folder_of(settings, folder)
    if not isinstance(settings.pool.size, Auto | Percent):
        plans.enough(manifest, int(settings.pool.size), card=settings.worker.device != "cpu")  # known before anything takes time
    directory = Path(settings.run.directory)
    with run_directory.held(directory):
        return Supervisor(settings, folder.resolve(), manifest, directory).run()


class Supervisor:
    def __init__(self, settings: Settings, folder: Path, manifest: Manifest, directory: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._manifest = manifest
        self._directory = directory
        self._restarts = Restarts(settings.run.restarts, settings.run.restart_window_s)
        self._front_restarts = Restarts(settings.run.restarts, settings.run.restart_window_s)
        self._state: State = "starting"
        self._why = ""
        self._watcher = b""
        self._epoch = 0
        self._exit_code = EXIT_OK
        self._signals = 0
        self._front: Process | None = None
        self._gateway: Process | None = None
        self._gateway_restarts = Restarts(settings.run.restarts, settings.run.restart_window_s)
        self._engine: list[Process] = []
        self._swapping = surroundings.Swapping()
        self._systemd = Systemd(folder.name, READY_S + settings.run.restart_window_s)
        #: whether any engine has completed one
        self._swept = False

    def run(self) -> int:
        began = time.monotonic()
        setproctitle.setproctitle(f"potatod: supervisor ({self._folder.name})")
        self._catch_signals()
        try:
            self._verdict: Verdict = probe(self._settings, self._folder, self._manifest, self._directory, lambda: self._signals > 0)
        except Cancelled:
            return EXIT_OK
        self._plan = self._verdict.plan
        expected = forecast(self._plan, self._manifest.layers, self._verdict.rates)
        log.event(
            _LOGGER, "planned", pool_bytes=self._plan.pool_bytes, resident_bytes=self._plan.resident_bytes,
            ring_bytes=self._plan.ring_bytes, streamed_bytes=self._plan.streamed_bytes, **self._on_the_card(), context_tokens=self._verdict.max_context,
            prompt_tokens_per_sweep=self._verdict.prefill_chunk, s_per_token=round(expected.token_s, 3), waits_for=expected.bottleneck,
            checked=self._verdict.findings.checked, probe_s=round(time.monotonic() - began, 1),
        )  # fmt: skip
        warnings = surroundings.before(self._folder, self._plan.streamed_bytes, self._verdict.rates.disk, self._settings.worker.threads)
        for sentence in warnings:
            log.event(_LOGGER, sentence, level=logging.WARNING)
        self._logits_fd = pool.create(logits_rows(self._settings) * self._verdict.vocabulary * 4, "potato-logits")
        self._context: zmq.Context[Any] = zmq.Context()
        self._control = wire.control_router(self._context, self._directory)
        try:
            self._start_front()
            self._start_gateway()
            self._start_engine()
            self._watch()
        finally:
            self._end_all()
            self._control.close()
            self._context.term()
        return self._exit_code

    def _on_the_card(self) -> dict[str, int]:
        if not self._plan.card_bytes and not self._plan.slots:
            return {}
        return {"card_bytes": self._plan.card_bytes, "uploaded_bytes": self._plan.uploaded_bytes, "slots": self._plan.slots}

    # starting

    def _catch_signals(self) -> None:
        """Handlers only record. Waking up needs no more: signals interrupt the poll."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._record_signal)

    def _record_signal(self, _number: int, _frame: object) -> None:
        self._signals += 1
        if self._signals > 1:  # a second one does not wait for anything
            for stage in self._stages():
                stage.signal(signal.SIGKILL)
            os._exit(130)

    def _boot(self, plan: plans.Plan | None) -> Path:
        load = dataclasses.asdict(Load.of(self._plan, self._manifest.layers))
        facts = self._verdict.facts() | {"load": load, "resident_bytes": self._plan.resident_bytes, "card_bytes": self._plan.card_bytes}
        facts["checksum"] = identity.checksum_of(self._folder, self._manifest)
        boot = Boot(self._epoch, str(self._directory), str(self._folder), self._settings, plan, facts)
        path = self._directory / f"boot.{self._epoch}{'' if plan else '.front'}.json"
        boot.write(path)
        return path

    def _start_front(self) -> None:
        self._front = process.start("front", self._boot(None), {"logits": self._logits_fd})

    def _start_gateway(self) -> None:
        if self._settings.gateway.listen:
            self._gateway = process.start("gateway", self._boot(None), {})

    def _start_engine(self) -> None:
        (self._directory / f"boot.{self._epoch}.json").unlink(missing_ok=True)
        self._epoch += 1
        pool_fd = pool.create(self._plan.pool_bytes)
        try:
            boot = self._boot(self._plan)
            self._engine = [process.start("reader", boot, {"pool": pool_fd})]
            self._engine.append(process.start("worker", boot, {"pool": pool_fd, "logits": self._logits_fd}))
        finally:
            os.close(pool_fd)  # the stages hold it now, and it goes with them

    def _stages(self) -> list[Process]:
        return [stage for stage in (self._front, self._gateway) if stage is not None] + self._engine

    # watching

    def _watch(self) -> None:
        self._tell("starting", "")
        while True:
            if self._signals:
                return
            self._wait()
            while (said := self._control.receive()) is not None:
                self._heard(*said)
            for stage in self._stages():
                if not stage.alive:
                    self._ended(stage)
                    break
            if self._state == "stopping":
                return
            self._check_deadlines()
            self._systemd.look(time.monotonic(), self._state, self._why, {stage.pid for stage in self._stages()})
            if (sentence := self._swapping.look(time.monotonic())) is not None:
                log.event(_LOGGER, sentence, level=logging.WARNING)

    def _wait(self) -> None:
        poller = zmq.Poller()
        poller.register(self._control.socket, zmq.POLLIN)
        for stage in self._stages():
            poller.register(stage.pidfd, zmq.POLLIN)
        with suppress(zmq.error.ContextTerminated):
            poller.poll(500)

    def _heard(self, identity: bytes, message: object) -> None:
        if isinstance(message, Trace):
            self._watcher = identity
            for watched in self._stages():
                self._control.send(watched.name.encode(), message)
        elif isinstance(message, Traced):
            self._control.send(self._watcher, message)
        stage = next((s for s in self._stages() if s.pid == getattr(message, "pid", -1)), None)
        if stage is None:
            return  # of an engine that is gone
        stage.heard = time.monotonic()
        if isinstance(message, Ready):
            stage.ready = True
            log.event(_LOGGER, f"{stage.name} is ready", pid=stage.pid, note=message.note)
            awaited = self._stages() if self._state == "starting" else [s for s in self._stages() if s is not self._gateway]
            if all(s.ready for s in awaited) and self._state in ("starting", "restarting"):
                self._tell("up", "")
                log.event(_LOGGER, "serving", epoch=self._epoch, model=self._folder.name, socket=self._settings.front.socket)
            elif stage is self._front or stage is self._gateway:
                self._tell(self._state, self._why)
        elif isinstance(message, Poisoned):
            self._restarts.swept()
        elif isinstance(message, Parted):
            rates.forget(self._settings, self._folder, stored_as(self._manifest))
            log.event(
                _LOGGER, "sweeps do not take what was expected; the next start tries out anew what this machine does", level=logging.WARNING,
                expected_s=message.expected_s, real_s=message.real_s,
            )  # fmt: skip
        elif isinstance(message, Failed):
            stage.why, stage.failed = message.why, True
        elif isinstance(message, Counted | Queued):
            self._systemd.heard(message)
            if isinstance(message, Counted) and message.sweeps and stage is not self._front:
                self._swept = True
                self._restarts.swept()
                self._front_restarts.swept()

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for stage in self._stages():
            limit_s = GRACE_S if stage.failed else SILENT_S if stage.ready else READY_S
            if now - stage.heard > limit_s:
                if not stage.failed:
                    what = "has said nothing for" if stage.ready else "was not ready after"
                    stage.why = f"{stage.name} {what} {limit_s:.0f} s"
                stage.kill()

    def _ended(self, stage: Process) -> None:
        code = stage.reap(0)
        self._drain_last_words()
        why = stage.why or process.describe_end(stage.name, code)
        log.event(_LOGGER, "a stage ended", level=logging.ERROR, stage=stage.name, code=code, why=why)
        if stage is self._front:
            self._front_ended(code, why)
        elif stage is self._gateway:
            self._gateway_ended(code, why)
        else:
            self._engine_ended(code, why)

    def _drain_last_words(self) -> None:
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            said = self._control.receive()
            if said is None:
                time.sleep(0.02)
            else:
                self._heard(*said)

    def _front_ended(self, code: int, why: str) -> None:
        """Clients notice by the new boot id. Everything restarts: the KV belongs to sequences that nobody knows any more.

        Where the engine is degraded it stays down.
        """
        assert self._front is not None
        was_ready = self._front.ready
        self._front = None
        self._end_engine()
        if code in EXITS_THAT_STAY or not was_ready or not self._front_restarts.died(time.monotonic()):
            self._give_up(code, why)
        self._start_front()
        if self._state != "degraded":
            self._state = "restarting"
            self._start_engine()

    def _gateway_ended(self, code: int, why: str) -> None:
        """What cannot begin ends the daemon, as somebody is still looking; what has served is replaced, and missed by nobody but HTTP clients."""
        assert self._gateway is not None
        was_ready = self._gateway.ready
        self._gateway = None
        if not was_ready and not self._gateway_restarts.total:
            self._give_up(code, why)
        again = self._gateway_restarts.died(time.monotonic())
        if again:
            try:
                self._start_gateway()
            except OSError as error:
                again, why = False, f"it cannot be started again: {error.strerror}"
        if not again:
            log.event(_LOGGER, "the gateway stays down: it has ended too often; all else goes on", level=logging.ERROR, why=why)
        self._tell(self._state, self._why)

    def _engine_ended(self, code: int, why: str) -> None:
        self._end_engine()
        if code in EXITS_THAT_STAY and not self._swept:
            self._give_up(code, why)
        elif code in EXITS_THAT_STAY or not self._restarts.died(time.monotonic()):
            self._degrade(why)
        else:
            self._tell("restarting", why)
            try:
                self._start_engine()
            except OSError as error:  # no room for the boot page, no memory for the pool, no more processes
                self._end_engine()
                self._degrade(f"the engine cannot be started again: {error.strerror}")

    def _degrade(self, why: str) -> None:
        log.event(_LOGGER, "degraded: the engine stays down", level=logging.ERROR, why=why)
        self._tell("degraded", why)

    def _give_up(self, code: int, why: str) -> NoReturn:
        self._state = "stopping"
        self._end_all()
        raise (by_exit_code(code) if code > 0 else InternalError)(why)

    def _tell(self, state: State, why: str) -> None:
        self._state, self._why = state, why
        stages = tuple(StageProcess(s.name, s.pid, s.started) for s in self._stages())
        stages = (StageProcess("supervisor", os.getpid(), _STARTED), *stages)
        with suppress(zmq.ZMQError):  # a front that is not there yet is told when it says Ready
            self._control.send(b"front", Engine(self._epoch, state, self._restarts.total + self._front_restarts.total, why, stages))

    # ending

    def _end_engine(self) -> None:
        for stage in self._engine:
            stage.kill()  # its pool and its KV are worth nothing without the other
        for stage in self._engine:
            stage.reap(GRACE_S)
        self._engine = []

    def _end_all(self) -> None:
        self._systemd.stopping()
        if self._stages():
            log.event(_LOGGER, "stopping")
            self._tell("stopping", "the daemon is stopping")
        for stage in self._stages():
            with suppress(zmq.ZMQError):
                self._control.send(stage.name.encode(), Stop())
            stage.signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for stage in self._stages():
            stage.reap(max(0.0, deadline - time.monotonic()))
        self._front, self._gateway, self._engine = None, None, []


_STARTED: Final = time.time()

