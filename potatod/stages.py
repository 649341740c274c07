"""The processes of a daemon and the wire to them: how they are started, told and ended. Who is started when is the supervisor's to decide.

Front and gateway outlive engines. Reader and worker share a pool that goes with them; the region in which the worker leaves rows of logits for the
front outlives them all.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import zmq

from . import pool, process, wire
from .config import Settings
from .messages import Stop
from .process import Process
from .served import Served
from .stage import Boot

#: A stage that has not said Ready by then is stuck: importing torch takes seconds on a slow disk, not minutes.
READY_S: Final = 180.0
#: A stage that is ready speaks every second. One that has said nothing for so long stands still: no layer takes as long.
SILENT_S: Final = 300.0
#: After Stop, before SIGKILL.
GRACE_S: Final = 5.0


class Stages:
    control: wire.ControlRouter

    def __init__(self, directory: Path, listening: int | None) -> None:
        """``directory``: the runtime directory; ``listening``: a descriptor that every gateway listens with, None where each has its own."""
        self.front: Process | None = None
        self.gateway: Process | None = None
        #: reader and worker, or nobody
        self.engine: list[Process] = []
        self.epoch = 0
        #: time.monotonic() of the last engine's start
        self.engine_began = 0.0
        self._directory = directory
        self._listening = {} if listening is None else {"listen": listening}
        self._logits_fd = -1
        self._context: zmq.Context[Any] = zmq.Context()

    def __iter__(self) -> Iterator[Process]:
        yield from [stage for stage in (self.front, self.gateway, *self.engine) if stage is not None]

    def open(self, logits_bytes: int) -> None:
        """What is there before any of them starts."""
        self._logits_fd = pool.create(logits_bytes, "potato-logits")
        self.control = wire.control_router(self._context, self._directory)

    def of(self, pid: int) -> Process | None:
        """None: of an engine that is gone."""
        return next((stage for stage in self if stage.pid == pid), None)

    def wait(self, timeout_ms: int) -> None:
        """Until one of them says something or ends. A signal interrupts it."""
        poller = zmq.Poller()
        poller.register(self.control.socket, zmq.POLLIN)
        for stage in self:
            poller.register(stage.pidfd, zmq.POLLIN)
        with suppress(zmq.error.ContextTerminated):
            poller.poll(timeout_ms)

    # starting

    def start_front(self, settings: Settings, models: Sequence[Served]) -> None:
        self.front = process.start("front", self._boot_of_all(settings, models), {"logits": self._logits_fd})

    def start_gateway(self, settings: Settings, models: Sequence[Served]) -> None:
        self.gateway = process.start("gateway", self._boot_of_all(settings, models), self._listening)

    def start_engine(self, model: Served) -> None:
        """Of the next epoch. Raises :class:`OSError` where there is no room for the boot page, no memory for the pool, or no process to be had; what
        has been started by then is in ``engine``."""
        self._boot_file("").unlink(missing_ok=True)
        self.epoch += 1
        self.engine_began = time.monotonic()
        pool_fd = pool.create(model.plan.pool_bytes)
        try:
            own = model.page()
            boot = self._written("", Boot(self.epoch, str(self._directory), own.folder, own.settings, model.plan, own.verdict))
            alone = own.settings.run.nice > 0
            self.engine = [process.start("reader", boot, {"pool": pool_fd}, alone=alone)]
            self.engine.append(process.start("worker", boot, {"pool": pool_fd, "logits": self._logits_fd}, alone=alone))
        finally:
            os.close(pool_fd)  # the stages hold it now, and it goes with them

    def _boot_of_all(self, settings: Settings, models: Sequence[Served]) -> Path:
        first, *others = (model.page() for model in models)
        return self._written(".front", Boot(self.epoch, str(self._directory), first.folder, settings, None, first.verdict, tuple(others)))

    def _boot_file(self, whose: str) -> Path:
        return self._directory / f"boot.{self.epoch}{whose}.json"

    def _written(self, whose: str, boot: Boot) -> Path:
        path = self._boot_file(whose)
        boot.write(path)
        return path

    # ending

    def kill_stuck(self) -> None:
        """Whoever has said nothing for too long; it is found dead soon."""
        now = time.monotonic()
        for stage in self:
            limit_s = GRACE_S if stage.failed else SILENT_S if stage.ready else READY_S
            if now - stage.heard > limit_s:
                if not stage.failed:
                    what = "has said nothing for" if stage.ready else "was not ready after"
                    stage.why = f"{stage.name} {what} {limit_s:.0f} s"
                stage.kill()

    def end_engine(self) -> None:
        for stage in self.engine:
            stage.kill()  # its pool and its KV are worth nothing without the other
        for stage in self.engine:
            stage.reap(GRACE_S)
        self.engine = []
        for name in ("bytes", "sweeps"):
            Path(wire.address(self._directory, name, self.epoch).removeprefix("ipc://")).unlink(missing_ok=True)  # whoever is killed leaves it

    def end(self) -> None:
        """Each is asked to, and killed where it takes too long."""
        for stage in self:
            with suppress(zmq.ZMQError):
                self.control.send(stage.name.encode(), Stop())
            stage.signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for stage in self:
            stage.reap(max(0.0, deadline - time.monotonic()))
        self.front, self.gateway, self.engine = None, None, []

    def close(self) -> None:
        self.control.close()
        self._context.term()
