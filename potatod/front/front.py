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
from potatod.kv_layout import KvLayout
from potatod.messages import Drafted, Engine, LayerDone, Parted, Poisoned, Queued, Rows
from potatod.room import logits_rows
from potatod.sizes import human_size
from potatod.stage import Stage

from .admission import Admission
from .answers import Answers, EngineNow
from .arrivals import Arrivals
from .beside import Beside, Minute, planned
from .cost import CostModel
from .engine_link import EngineLink
from .followers import Followers
from .handlers import Handlers
from .known import Known
from .ledger import Ledger
from .refusal import Refusal
from .report import Reporter
from .retention import Retention
from .scheduler import Scheduler
from .sequence import weight_of
from .server import Server
from .speculation import Speculation
from .sweep_times import SweepTimes

#: With nothing to do, nothing waits longer than this without looking whether it should stop.
_PATIENCE_MS: Final = 500
#: Client frames between two looks at the engine, and seconds spent on them (one long prompt may take more).
_FRAMES_PER_TURN: Final = 64
_TURN_S: Final = 0.02
#: Between two looks at what is not urgent.
_LOOK_EVERY_MS: Final = 100
#: For the last messages, when the front ends.
_LINGER_MS: Final = 500


def work(stage: Stage) -> None:
    """Serve clients for ever; returns when the supervisor says Stop."""
    Front(stage).run()


class Front:
    def __init__(self, stage: Stage, vanished_s: float = VANISHED_S) -> None:
        began = time.monotonic()
        boot, limits = stage.boot, stage.boot.settings.front
        boot_id = secrets.token_hex(8)
        daemon = f"potatod {importlib.metadata.version('potato-lm')}"
        self._stage = stage
        self._layers = int(boot.verdict["layers"])
        self._layers_done = 0
        self._look_at = 0.0
        self._in_trouble = False
        self._poller = zmq.Poller()
        expected = planned(boot.verdict)
        self._streamed_bytes: int = boot.verdict["load"]["streamed_bytes"]
        self._costs = CostModel(lambda tokens: expected(tokens).compute_s, expected(1).stream_s)
        speculation = boot.settings.speculation
        self._speculation = Speculation(speculation.max_tokens, lookup=speculation.lookup, draft=boot.verdict["draft"] is not None)
        self._scheduler = Scheduler(
            max_sequences=limits.max_sequences,
            max_queue=limits.max_queue,
            ledger=Ledger(KvLayout.from_json(boot.verdict["kv"]), boot.verdict["kv_bytes"]),
            costs=self._costs,
            prefill_chunk=boot.verdict["prefill_chunk"],
            prefill_share=limits.prefill_share,
            rope_border=boot.verdict["rope_border"],
            drafter=self._speculation if speculation.enabled else None,
            logits_rows=logits_rows(boot.settings) - 1,
            may_cut=boot.settings.worker.kernels != "reference",  # its bits are those of prompts that are not cut
        )
        self._admission = Admission(
            Path(boot.model), boot.settings.sampling, boot.verdict["max_context"], boot.verdict["embed_rows"], boot.verdict["vocabulary"]
        )
        self._times = SweepTimes(lambda tokens: expected(tokens).sweep_s)
        self._beside = Beside(self._times, began)
        self._engine = EngineLink(
            stage.context, stage.directory, stage.fds["logits"], boot.verdict["vocabulary"], self._poller, self._times
        )
        self._server = Server(
            stage.context,
            limits.socket,
            boot=boot_id,
            daemon=daemon,
            model=Path(boot.model).name,
            max_context_tokens=self._admission.max_context,
            remote=(limits.remote, Path(limits.keys)) if limits.remote else None,
            vanished_s=vanished_s,
        )
        jobs = boot.settings.jobs
        self._journal = Journal(Path(jobs.path))
        self._followers, self._known = Followers(), Known()
        self._answers = Answers(
            self._scheduler, self._times, self._admission.end_ids, self._journal, self._followers, self._server.send, stage.logger,
            self._known.changed,
        )  # fmt: skip
        checksum, name = str(boot.verdict["checksum"]), Path(boot.model).name
        arrivals = Arrivals(
            admission=self._admission, answers=self._answers, scheduler=self._scheduler, journal=self._journal, known=self._known,
            followers=self._followers, limits=jobs, model=checksum, model_name=name, send=self._server.send, logger=stage.logger,
            full=lambda: self._retention.full,
        )  # fmt: skip
        self._handlers = Handlers(
            admission=self._admission, answers=self._answers, arrivals=arrivals, journal=self._journal, known=self._known,
            followers=self._followers, max_running=limits.max_sequences, model=checksum, model_name=name, send=self._server.send,
            logger=stage.logger, down=self._refusal,
        )  # fmt: skip
        self._retention = Retention(self._journal, self._known, jobs.keep_s, jobs.size_bytes, stage.logger)
        restored = self._handlers.restore()
        self._reporter = Reporter(
            boot, boot_id, daemon, tools=self._admission.tool_use, scheduler=self._scheduler, answers=self._answers, times=self._times,
            speculation=self._speculation,
        )  # fmt: skip
        for socket in (*self._server.sockets, stage.control.socket, self._journal.fd):
            self._poller.register(socket, zmq.POLLIN)
        done = f"tokenizer loaded, {limits.socket} bound in {time.monotonic() - began:.1f} s"
        stage.ready(done + (f"; {restored} jobs go on" if restored else ""))

    def run(self) -> None:
        while not self._stage.stopping:
            busy = not self._engine.up and self._answers.make_texts(_TURN_S)
            self._poller.poll(0 if busy else _LOOK_EVERY_MS if self._scheduler.running else _PATIENCE_MS)
            for order in self._stage.orders():
                if isinstance(order, Engine):
                    self._engine_is(order)
            self._hear_engine()
            self._send_sweep()
            self._hear_clients()
            self._send_sweep()
            self._journal.flush()
            self._look_around()
        self._journal.close()
        self._handlers.part(Refusal("stopping", "the daemon is stopping"))
        self._engine.close()
        self._server.close(_LINGER_MS)

    # the engine's side

    def _engine_is(self, engine: Engine) -> None:
        if self._engine.update(engine):
            stopping = self._stage.stopping or engine.state == "stopping"
            if not stopping and self._answers.engine_died():
                self._stage.control.send(Poisoned(os.getpid()))
            self._scheduler.restarted()
            self._layers_done = 0
        refusal = self._refusal()
        if refusal is not None:
            self._handlers.part(refusal)

    def _refusal(self) -> Refusal | None:
        """Why nothing can be asked of this daemon now; None where it can."""
        engine = self._engine.engine
        if engine.state == "degraded":
            return Refusal("degraded", f"the engine stays down until the daemon is restarted: {engine.why}"[:2000])
        if engine.state == "stopping" or self._stage.stopping:
            return Refusal("stopping", "the daemon is stopping")
        return None

    def _hear_engine(self) -> None:
        for said in self._engine.receive():
            if isinstance(said, LayerDone):
                self._layers_done = said.layers_done
            elif isinstance(said, Drafted):
                self._guessed(said)
            else:
                began = time.monotonic()
                self._layers_done = 0
                self._learn(said)
                self._answers.swept(said, self._engine.logits)
                self._stage.spans.add("sweep", f"sweep {said.number}", began - self._times.last_s, began)
                self._stage.spans.add("sample", f"sweep {said.number}", began, time.monotonic())

    def _learn(self, rows: Rows) -> None:
        """What a sweep cost; one that also loads what stays says nothing of those to come."""
        sweep = self._scheduler.in_flight
        if sweep is not None and not rows.exhausted and rows.read_bytes <= self._streamed_bytes:
            self._costs.observe(*weight_of(sweep), rows.seconds, rows.waited_s)

    def _guessed(self, drafted: Drafted) -> None:
        self._scheduler.told(drafted)
        if drafted.failed:
            why = "the draft model has failed: it guesses nothing until the engine is started anew"
            self._stage.log(why, level=logging.WARNING, why=drafted.failed)

    def _send_sweep(self) -> None:
        """Nothing is computed that cannot be kept."""
        self._journal.settle()
        if not self._engine.up or self._journal.trouble:
            return
        draft = self._scheduler.consult(self._engine.epoch)
        if draft is not None:
            self._engine.order((*self._scheduler.orders(), draft))
        sweep = self._scheduler.compose(self._engine.epoch)
        self._engine.order(self._scheduler.orders())
        if sweep is not None:
            self._engine.send(sweep)
            self._answers.taken(sweep)
        self._journal.flush()

    def _now(self) -> EngineNow:
        return EngineNow(self._engine.up, self._layers_done, self._layers, self._engine.under_way_s)

    def _look_around(self) -> None:
        """What need not be done at once. However long the queue, a twentieth of the time goes into it at most."""
        began = time.monotonic()
        if began < self._look_at:
            return
        for gone in self._followers.drop_where(self._server.vanished):
            self._server.forget(gone)
        self._retention.look()
        self._say_trouble()
        self._answers.say_progress(self._now())
        if self._stage.beat(sweeps=self._times.sweeps, read_bytes=self._times.read_bytes):
            running, waiting, held = len(self._scheduler.running), len(self._scheduler.waiting), bool(self._journal.trouble)
            self._stage.control.send(Queued(os.getpid(), running, waiting, held, self._times.s_per_sweep))
        if (minute := self._beside.look(began)) is not None:
            self._tell(minute)
            if minute.parted:
                self._stage.control.send(Parted(os.getpid(), minute.expected_s, minute.real_s))
        ended = time.monotonic()
        self._look_at = ended + max(_LOOK_EVERY_MS / 1000, 20 * (ended - began))

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
        self._handlers.safely(identity, getattr(message, "request", 0), partial(self._handle, identity, owner, message))

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
