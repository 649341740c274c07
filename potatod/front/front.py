"""The front's loop: whatever arrives is acted on, then the next sweep goes out. Nothing in here waits but the poll."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import secrets
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import zmq

from potato_client.protocol import VANISHED_S, Attach, Detach, Generate, List, Manage, Show, Status
from potatod.jobs.journal import Journal
from potatod.messages import Drafted, Engine, LayerDone, Parted, Poisoned, Queued, Reload, Switch
from potatod.sizes import human_size
from potatod.stage import Stage

from .arrivals import Arrivals
from .beside import Minute
from .desk import Desk, admission_of
from .desks import Desks
from .engine_link import EngineLink
from .followers import Followers
from .handlers import Handlers
from .known import Known
from .outlook import EngineNow
from .refusal import Refusal
from .replies import Replies
from .report import Reporter
from .restoring import restore
from .retention import Retention
from .server import Server
from .wishes import Wishes

#: With nothing to do, nothing waits longer than this without looking whether it should stop.
_PATIENCE_MS: Final = 500
#: Client frames between two looks at the engine, and seconds spent on them (one long prompt may take more).
_FRAMES_PER_TURN: Final = 64
_TURN_S: Final = 0.02
#: Between two looks at what is not urgent.
_LOOK_EVERY_MS: Final = 100
#: and how much longer than a look the time to the next one is, at least.
_LOOK_REST: Final = 50
#: For the last messages, when the front ends.
_LINGER_MS: Final = 500


def work(stage: Stage) -> None:
    """Serve clients for ever; returns when the supervisor says Stop."""
    Front(stage).run()


class Front:
    def __init__(self, stage: Stage, vanished_s: float = VANISHED_S) -> None:
        began = time.monotonic()
        boot, limits, jobs = stage.boot, stage.boot.settings.front, stage.boot.settings.jobs
        boot_id = secrets.token_hex(8)
        daemon = f"potatod {importlib.metadata.version('potato-lm')}"
        self._stage = stage
        self._layers_done = 0
        self._look_at = 0.0
        self._in_trouble = False
        #: the model that is to have the engine, as the supervisor was told
        self._awaited: Desk | None = None
        self._poller = zmq.Poller()
        admissions = [admission_of(model) for model in boot.models]
        self._engine = EngineLink(stage.context, stage.directory, stage.fds["logits"], self._poller)
        self._server = Server(
            stage.context,
            limits.socket,
            boot=boot_id,
            daemon=daemon,
            models=tuple(model.name for model in boot.models),
            max_context_tokens=admissions[0].max_context,
            remote=(limits.remote, Path(limits.keys)) if limits.remote else None,
            vanished_s=vanished_s,
        )
        self._journal = Journal(Path(jobs.path))
        self._followers, self._known = Followers(), Known()
        self._desks = Desks(
            [
                Desk(at, model, admission, self._journal, self._followers, self._server.send, stage.logger, self._known.changed, began)
                for at, (model, admission) in enumerate(zip(boot.models, admissions, strict=True))
            ],
            limits.switch_after_s,
        )
        self._arrivals = arrivals = Arrivals(
            desks=self._desks, journal=self._journal, known=self._known, followers=self._followers, limits=jobs, send=self._server.send,
            logger=stage.logger, full=lambda: self._retention.full,
        )  # fmt: skip
        self._replies = Replies(desks=self._desks, journal=self._journal, known=self._known, send=self._server.send, logger=stage.logger)
        wishes = Wishes(
            desks=self._desks, journal=self._journal, known=self._known, followers=self._followers, replies=self._replies, logger=stage.logger
        )
        self._handlers = Handlers(
            desks=self._desks, arrivals=arrivals, journal=self._journal, known=self._known, followers=self._followers, replies=self._replies,
            wishes=wishes, down=self._refusal,
        )  # fmt: skip
        self._retention = Retention(self._journal, self._known, jobs.keep_s, jobs.size_bytes, stage.logger)
        restored = restore(self._desks, self._journal, self._known, stage.logger)
        self._reporter = Reporter(boot.settings.front, boot_id, daemon, self._desks)
        for socket in (*self._server.sockets, stage.control.socket, self._journal.fd):
            self._poller.register(socket, zmq.POLLIN)
        done = f"{len(admissions)} tokenizers loaded" if len(admissions) > 1 else "tokenizer loaded"
        done += f", {limits.socket} bound in {time.monotonic() - began:.1f} s"
        stage.ready(done + (f"; {restored} jobs go on" if restored else ""))

    def run(self) -> None:
        while not self._stage.stopping:
            busy = not self._engine.up and self._desk.answers.make_texts(_TURN_S)
            self._poller.poll(0 if busy else _LOOK_EVERY_MS if self._desk.scheduler.running else _PATIENCE_MS)
            for order in self._stage.orders():
                if isinstance(order, Engine):
                    self._engine_is(order)
                elif isinstance(order, Reload):
                    self._reload()
            self._hear_engine()
            self._send_sweep()
            self._hear_clients()
            self._send_sweep()
            self._journal.flush()
            self._look_around()
        self._journal.close()
        self._handlers.part(Refusal("stopping", "the daemon is stopping"), None)
        self._engine.close()
        self._server.close(_LINGER_MS)

    def _reload(self) -> None:
        """What was read again holds for who asks from now on."""
        settings = self._stage.boot.settings
        for desk in self._desks:
            desk.admission.defaults = settings.sampling
        self._arrivals.limits = settings.jobs
        self._retention.limit(settings.jobs.keep_s, settings.jobs.size_bytes)

    # the engine's side

    @property
    def _desk(self) -> Desk:
        """Of the model that has the engine, or is to have it next."""
        return self._desks.current

    def _engine_is(self, engine: Engine) -> None:
        before, desk = self._desk, self._desks[engine.model]
        if self._engine.update(engine, desk.vocabulary, desk.times):
            stopping = self._stage.stopping or engine.state in ("stopping", "switching")
            if not stopping and before.answers.engine_died():
                self._stage.control.send(Poisoned(os.getpid()))
            before.scheduler.restarted()
            self._layers_done = 0
        if desk is not before:
            self._desks.change(desk)
        if desk is self._awaited and engine.state != "switching":
            self._awaited = None
        desk.why = engine.why if engine.state == "degraded" else ""
        if (refusal := self._refusal(desk)) is not None:
            self._handlers.part(refusal, desk)

    def _refusal(self, desk: Desk | None) -> Refusal | None:
        """Why nothing can be asked of that model now, None where it can. Without one: of none that is served."""
        if self._engine.engine.state == "stopping" or self._stage.stopping:
            return Refusal("stopping", "the daemon is stopping")
        if desk is not None and desk.why:
            whose = f" of {desk.name}" if len(self._desks) > 1 else ""
            return Refusal("degraded", f"the engine{whose} stays down until the daemon is restarted: {desk.why}"[:2000])
        return None

    def _change_model(self) -> None:
        """Asks for another model where jobs of it are to be computed now; between two sweeps."""
        engine = self._engine.engine
        told = engine.state in ("up", "degraded") or (engine.state == "starting" and engine.epoch > 0)
        if self._awaited is not None or not told or self._desk.scheduler.busy or self._stage.stopping:
            return
        wanted = self._desks.choose()
        if wanted is not None:
            self._awaited = wanted
            self._stage.log("another model's turn", model=wanted.name, instead_of=self._desk.name, jobs=len(wanted.answers))
            self._stage.control.send(Switch(os.getpid(), wanted.at))

    def _hear_engine(self) -> None:
        for said in self._engine.receive():
            if isinstance(said, LayerDone):
                self._layers_done = said.layers_done
            elif isinstance(said, Drafted):
                self._guessed(said)
            else:
                began = time.monotonic()
                self._layers_done = 0
                self._desk.learn(said)
                self._desk.answers.swept(said, self._engine.logits)
                self._stage.spans.add("sweep", f"sweep {said.number}", began - self._desk.times.last_s, began)
                self._stage.spans.add("sample", f"sweep {said.number}", began, time.monotonic())

    def _guessed(self, drafted: Drafted) -> None:
        self._desk.scheduler.told(drafted)
        if drafted.failed:
            why = "the draft model has failed: it guesses nothing until the engine is started anew"
            self._stage.log(why, level=logging.WARNING, why=drafted.failed)

    def _send_sweep(self) -> None:
        """Nothing is computed that cannot be kept."""
        self._journal.settle()
        if self._held:
            return
        self._change_model()
        if not self._engine.up or self._awaited is not None:
            return
        scheduler = self._desk.scheduler
        draft = scheduler.consult(self._engine.epoch)
        if draft is not None:
            self._engine.order((*scheduler.orders(), draft))
        sweep = scheduler.compose(self._engine.epoch)
        self._engine.order(scheduler.orders())
        if sweep is not None:
            self._engine.send(sweep)
            self._desk.answers.taken(sweep)
        self._journal.flush()

    @property
    def _held(self) -> str:
        """Why no sweep begins, whatever the engine is; empty where one may."""
        return self._engine.engine.paused or self._journal.trouble

    def _now(self) -> EngineNow:
        loading = self._engine.engine.state in ("starting", "switching")
        return EngineNow(self._engine.up, self._layers_done, self._desk.layers, self._engine.under_way_s, loading, self._held)

    def _look_around(self) -> None:
        """What need not be done at once. However long the queue, a fiftieth of the time goes into it at most."""
        began = time.monotonic()
        if began < self._look_at:
            return
        for gone in self._followers.drop_where(self._server.vanished):
            self._server.forget(gone)
        self._retention.look()
        self._say_trouble()
        places = self._desks.places()
        held = self._held if self._engine.up else ""
        for desk in self._desks:
            desk.outlook.say_progress(self._now() if desk is self._desk else EngineNow(up=bool(held), paused=held), places)
        sweeps, read_bytes = sum(desk.times.sweeps for desk in self._desks), sum(desk.times.read_bytes for desk in self._desks)
        if self._stage.beat(sweeps=sweeps, read_bytes=read_bytes):
            running, trouble = len(self._desk.scheduler.running), bool(self._journal.trouble)
            waiting = sum(len(desk.answers) for desk in self._desks if not desk.why) - running
            resting = self._engine.engine.paused if self._engine.up and self._desk.scheduler.in_flight is None else ""
            self._stage.control.send(Queued(os.getpid(), running, waiting, trouble, self._desk.times.s_per_sweep, resting))
        if (minute := self._desk.beside.look(began)) is not None:
            self._tell(minute)
            if minute.parted:
                self._stage.control.send(Parted(os.getpid(), minute.expected_s, minute.real_s))
        ended = time.monotonic()
        self._look_at = ended + max(_LOOK_EVERY_MS / 1000, _LOOK_REST * (ended - began))

    def _say_trouble(self) -> None:
        """Once, and once when it is over."""
        trouble = self._journal.trouble
        if bool(trouble) != self._in_trouble:
            self._in_trouble = bool(trouble)
            if trouble:
                self._stage.log("jobs wait: nothing is accepted or computed until they can be written", level=logging.WARNING, why=trouble)
            else:
                self._stage.log("jobs go on: they can be written again")

    def _tell(self, minute: Minute) -> None:
        real, expected, waited = (round(seconds, 3) for seconds in (minute.real_s, minute.expected_s, minute.waited_s))
        read = f"{human_size(minute.read)}/s"
        self._stage.log("sweeps", sweeps=minute.sweeps, s_per_sweep=real, expected_s=expected, waited_for_weights_s=waited, read=read)

    # the clients' side

    def _hear_clients(self) -> None:
        """Some of what they sent; the engine waits meanwhile, so the rest stays where it is until the next turn."""
        until = time.monotonic() + _TURN_S
        for identity, owner, message in self._server.receive(_FRAMES_PER_TURN):
            self._asked(identity, owner, message)
            if time.monotonic() > until:
                return

    def _asked(self, identity: bytes, owner: str, message: Any) -> None:
        self._replies.safely(identity, getattr(message, "request", 0), partial(self._handle, identity, owner, message))

    def _handle(self, identity: bytes, owner: str, message: Any) -> None:
        """Raises :class:`Refusal`."""
        if isinstance(message, Generate):
            self._handlers.generate(identity, owner, message)
        elif isinstance(message, Attach):
            self._handlers.attach(identity, owner, message)
        elif isinstance(message, Detach):
            self._handlers.detach(identity, owner, message)
        elif isinstance(message, Manage):
            self._handlers.manage(identity, owner, message)
        elif isinstance(message, List):
            self._handlers.list(identity, owner, message)
        elif isinstance(message, Show):
            self._handlers.show(identity, owner, message)
        elif isinstance(message, Status):
            self._server.send(identity, self._report(message.request))

    def _report(self, request: int) -> Any:
        return self._reporter.report(request, self._engine.engine, self._journal.trouble)
