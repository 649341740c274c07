"""Starts the stages, watches them, restarts the engine. Never imports torch.

    supervisor
    ├── front     outlives engines: clients keep their connections and their jobs
    ├── gateway   where [gateway] listen says so: a client of the front, restarted alone
    └── engine    epoch n, of one model: reader + worker + pool; if either dies, all three are made anew

NOTE [ states of the engine ]

    starting ──both ready──▶ up ──a death──▶ restarting ──both ready──▶ up
                             │                   └──too many deaths, or one that no restart mends──▶ degraded
                             ├── Switch ──▶ switching ──both ready, of another model──▶ up
                             └── Stop, SIGTERM, SIGINT ──▶ stopping

Where several models are served, the front says which has the engine, also of one that is degraded: then another one may be up.

Before the first epoch has been up, or has completed a sweep, a death that no restart mends ends the daemon with that exit code: the person who
typed `potatod start` is still looking. Later the daemon stays, says why, and serves what it can without an engine.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import setproctitle
import zmq

from . import log, process, rates, run_directory, socket_activation
from .config import Settings
from .errand import Cancelled
from .errors import EXIT_OK, EXITS_THAT_STAY, InternalError, ModelDataError, by_exit_code
from .manifest import stored_as
from .messages import Counted, Engine, Failed, Parted, Poisoned, Queued, Ready, Reload, StageProcess, State, Switch, Trace, Traced
from .notify import Systemd
from .pausing import Pausing
from .process import Process
from .reload import Reloader
from .restarts import Restarts
from .served import Chosen, Served, choose, look_into
from .stages import READY_S, Stages
from .surroundings import Swapping

_LOGGER: Final = logging.getLogger("potatod.supervisor")
#: time.time()
_STARTED: Final = time.time()


def run(settings: Settings, read: Callable[[], Settings]) -> int:
    """The daemon's life, from a complete configuration to its exit code; ``read`` reads that again.

    Raises :class:`PotatoError` where it cannot start.
    """
    listening = socket_activation.take(os.environ, os.getpid(), settings.gateway.listen)
    chosen = choose(settings)
    directory = Path(settings.run.directory)
    with run_directory.held(directory):
        return Supervisor(settings, chosen, directory, read, listening).run()


class Supervisor:
    def __init__(
        self, settings: Settings, chosen: tuple[Chosen, ...], directory: Path, read: Callable[[], Settings], listening: int | None
    ) -> None:
        """``read``: reads the configuration again; ``listening``: a descriptor that every gateway listens with, None where each has its own."""
        self._settings = settings
        self._reloader = Reloader(read)
        self._chosen = chosen
        self._models: tuple[Served, ...] = ()
        #: which of them has the engine
        self._at = 0
        self._directory = directory
        self._stages = Stages(directory, listening)
        self._restarts = Restarts(settings.run.restarts, settings.run.restart_window_s)
        self._front_restarts = Restarts(settings.run.restarts, settings.run.restart_window_s)
        self._state: State = "starting"
        self._why = ""
        self._watcher = b""
        self._exit_code = EXIT_OK
        self._signals = 0
        self._gateway_restarts = Restarts(settings.run.restarts, settings.run.restart_window_s)
        #: whether all stages have been ready at the same time
        self._begun = False
        self._swapping, self._pausing = Swapping(), Pausing(settings.run)
        self._systemd = Systemd(chosen[0].name, READY_S + settings.run.restart_window_s)
        #: whether any engine has completed a sweep, or a second model is asked for: a model that fails then is no reason to end
        self._settled = False

    def run(self) -> int:
        began = time.monotonic()
        setproctitle.setproctitle(f"potatod: supervisor ({', '.join(each.name for each in self._chosen)})")
        self._catch_signals()
        try:
            self._models = look_into(self._chosen, self._directory, lambda: self._signals > 0)
        except Cancelled:
            return EXIT_OK
        for model in self._models:
            name = {"model": model.chosen.name} if len(self._models) > 1 else {}
            log.event(_LOGGER, "planned", **name, **model.planned(), probe_s=round(time.monotonic() - began, 1))
        for sentence in dict.fromkeys(sentence for model in self._models for sentence in model.surroundings()):
            log.event(_LOGGER, sentence, level=logging.WARNING)
        self._stages.open(max(model.logits_bytes for model in self._models))
        try:
            self._stages.start_front(self._settings, self._models)
            if self._settings.gateway.listen:
                self._stages.start_gateway(self._settings, self._models)
            self._stages.start_engine(self._model)
            self._watch()
        finally:
            self._end_all()
            self._stages.close()
        return self._exit_code

    @property
    def _model(self) -> Served:
        return self._models[self._at]

    # signals

    def _catch_signals(self) -> None:
        """Handlers only record. Waking up needs no more: signals interrupt the poll."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._record_signal)
        signal.signal(signal.SIGHUP, self._record_hangup)

    def _record_signal(self, _number: int, _frame: object) -> None:
        self._signals += 1
        if self._signals > 1:  # a second one does not wait for anything
            for stage in self._stages:
                stage.signal(signal.SIGKILL)
            os._exit(130)

    def _record_hangup(self, _number: int, _frame: object) -> None:
        if self._reloader.hung_up():
            self._signals = self._signals or 1  # a shell may send it beside the kernel

    # watching

    def _watch(self) -> None:
        self._tell("starting", "")
        while True:
            if self._signals:
                return
            self._stages.wait(500)
            while (said := self._stages.control.receive()) is not None:
                self._heard(*said)
            for stage in self._stages:
                if not stage.alive:
                    self._ended(stage)
                    break
            if self._state == "stopping":
                return
            self._stages.kill_stuck()
            if (settings := self._reloader.look(self._settings, self._systemd)) is not None:
                self._settings = settings
                self._tell_settings(self._stages)
                self._pausing.heed(settings.run)
            if self._pausing.look(time.monotonic()):
                self._tell(self._state, self._why)
            self._systemd.look(time.monotonic(), self._state, self._why, {stage.pid for stage in self._stages})
            if (sentence := self._swapping.look(time.monotonic())) is not None:
                log.event(_LOGGER, sentence, level=logging.WARNING)

    def _heard(self, identity: bytes, message: object) -> None:
        if isinstance(message, Trace):
            self._watcher = identity
            for watched in self._stages:
                self._stages.control.send(watched.name.encode(), message)
        elif isinstance(message, Traced):
            self._stages.control.send(self._watcher, message)
        stage = self._stages.of(getattr(message, "pid", -1))
        if stage is None:
            return
        stage.heard = time.monotonic()
        if isinstance(message, Ready):
            stage.ready = True
            if self._reloader.done:
                self._tell_settings([stage])  # it may have been started before
            log.event(_LOGGER, f"{stage.name} is ready", pid=stage.pid, note=message.note)
            awaited = [s for s in self._stages if s is not self._stages.gateway or not self._begun]
            if all(s.ready for s in awaited) and self._state in ("starting", "restarting", "switching"):
                self._begun = True
                self._tell("up", "")
                log.event(_LOGGER, "serving", epoch=self._stages.epoch, model=self._model.chosen.name, socket=self._settings.front.socket)
            elif stage not in self._stages.engine:
                self._tell(self._state, self._why)
        elif isinstance(message, Poisoned):
            self._restarts.swept()
        elif isinstance(message, Switch):
            self._switch(message.model)
        elif isinstance(message, Parted):
            chosen = self._model.chosen
            rates.forget(chosen.settings, chosen.folder, stored_as(chosen.manifest))
            log.event(
                _LOGGER, "sweeps do not take what was expected; the next start tries out anew what this machine does", level=logging.WARNING,
                expected_s=message.expected_s, real_s=message.real_s,
            )  # fmt: skip
        elif isinstance(message, Failed):
            stage.why, stage.failed = message.why, True
        elif isinstance(message, Counted | Queued):
            self._systemd.heard(message)
            if isinstance(message, Counted) and message.sweeps and stage is not self._stages.front:
                self._settled = True
                self._restarts.swept()
                self._front_restarts.swept()

    def _tell_settings(self, stages: Iterable[Process]) -> None:
        for stage in stages:
            self._stages.control.send(stage.name.encode(), Reload(self._settings.to_json()))

    def _ended(self, stage: Process) -> None:
        code = stage.reap(0)
        self._drain_last_words()
        why = stage.why or process.describe_end(stage.name, code)
        log.event(_LOGGER, "a stage ended", level=logging.ERROR, stage=stage.name, code=code, why=why)
        if stage is self._stages.front:
            self._front_ended(stage, code, why)
        elif stage is self._stages.gateway:
            self._gateway_ended(stage, code, why)
        elif stage in self._stages.engine:  # else another model has the engine by now, as the front had asked for it
            self._engine_ended(code, why)

    def _drain_last_words(self) -> None:
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            said = self._stages.control.receive()
            if said is None:
                time.sleep(0.02)
            else:
                self._heard(*said)

    def _front_ended(self, front: Process, code: int, why: str) -> None:
        """Clients notice by the new boot id. Everything restarts: the KV belongs to sequences that nobody knows any more.

        Where the engine is degraded it stays down. Raises :class:`ModelDataError` where what it would read is no longer what it was.
        """
        self._stages.front = None
        self._stages.end_engine()
        if code in EXITS_THAT_STAY or not front.ready or not self._front_restarts.died(time.monotonic()):
            self._give_up(code, why)
        for model in self._models:
            model.chosen.check_companions()
        self._stages.start_front(self._settings, self._models)
        if self._state != "degraded":
            self._state = "restarting"
            self._stages.start_engine(self._model)

    def _gateway_ended(self, gateway: Process, code: int, why: str) -> None:
        """What cannot begin ends the daemon, as somebody is still looking; what has served is replaced, and missed by nobody but HTTP clients."""
        self._stages.gateway = None
        if not gateway.ready and not self._gateway_restarts.total:
            self._give_up(code, why)
        again = self._gateway_restarts.died(time.monotonic())
        if again:
            try:
                self._stages.start_gateway(self._settings, self._models)
            except OSError as error:
                again, why = False, f"it cannot be started again: {error.strerror}"
        if not again:
            log.event(_LOGGER, "the gateway stays down: it has ended too often; all else goes on", level=logging.ERROR, why=why)
        self._tell(self._state, self._why)

    def _engine_ended(self, code: int, why: str) -> None:
        lost_s = 0.0 if all(stage.ready for stage in self._stages.engine) else time.monotonic() - self._stages.engine_began
        self._stages.end_engine()
        if code in EXITS_THAT_STAY and not self._settled:
            self._give_up(code, why)
        elif code in EXITS_THAT_STAY or not self._restarts.died(time.monotonic(), lost_s):
            self._degrade(why)
        else:
            self._tell("restarting", why)
            self._start_engine_again()

    def _start_engine_again(self) -> None:
        try:
            self._model.chosen.check_companions()
            self._stages.start_engine(self._model)
        except ModelDataError as error:
            self._degrade(str(error))
        except OSError as error:
            self._stages.end_engine()
            self._degrade(f"the engine cannot be started again: {error.strerror}")

    def _switch(self, model: int) -> None:
        """The engine is this model's from now on; what another one died of is not its fault."""
        if model == self._at or not 0 <= model < len(self._models) or self._state == "stopping":
            self._tell(self._state, self._why)
            return
        self._stages.end_engine()
        self._at, self._settled = model, True
        self._restarts.swept()
        self._systemd.model = self._model.chosen.name
        log.event(_LOGGER, "switching", model=self._model.chosen.name)
        self._tell("switching", "")
        self._start_engine_again()

    def _degrade(self, why: str) -> None:
        log.event(_LOGGER, "degraded: the engine stays down", level=logging.ERROR, why=why)
        self._tell("degraded", why)

    def _give_up(self, code: int, why: str) -> NoReturn:
        self._state = "stopping"
        self._end_all()
        raise (by_exit_code(code) if code > 0 else InternalError)(why)

    def _tell(self, state: State, why: str) -> None:
        self._state, self._why = state, why
        stages = tuple(StageProcess(s.name, s.pid, s.started) for s in self._stages)
        stages = (StageProcess("supervisor", os.getpid(), _STARTED), *stages)
        with suppress(zmq.ZMQError):  # a front that is not there yet is told when it says Ready
            restarts = self._restarts.total + self._front_restarts.total
            self._stages.control.send(b"front", Engine(self._stages.epoch, state, restarts, why, stages, self._at, self._pausing.why))

    def _end_all(self) -> None:
        self._systemd.stopping()
        if any(self._stages):
            log.event(_LOGGER, "stopping")
            self._tell("stopping", "the daemon is stopping")
        self._stages.end()


