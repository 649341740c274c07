"""The worker's loop: a Sweep comes, every sequence in it advances once, Rows go back."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import torch
import zmq

from potatod import model_folder, wire
from potatod.errors import InternalError, PotatoError, first_line
from potatod.machine import cores
from potatod.messages import Cut, Draft, Drafted, Drop, Fork, LayerDone, Row, Rows, Step, Sweep
from potatod.pool import Pool
from potatod.stage import Stage
from potatod.store import skeleton as skeletons

from . import kernels, lenders
from .arithmetic import Arithmetic
from .attention import PackedAttention
from .drafter import Drafter
from .embedding import Twins, reader_compares
from .kv import Branch, Paged, Piece, SequenceKV
from .model import Model
from .passes import Pack
from .rows import apart
from .weights import Arrivals, groups_of

#: Nothing waits longer than this without looking whether it should stop.
_PATIENCE_MS: Final = 500
#: Between two sweeps copies to a card become complete, and reading goes on when what they held is given back.
_COPYING_MS: Final = 5
#: LayerDone is said no more often than this.
_SAY_EVERY_S: Final = 0.2


class Stopped(Exception):
    """The supervisor said Stop in the middle of a sweep."""


def work(stage: Stage) -> None:
    """Serve sweeps for ever; returns when the supervisor says Stop."""
    with closing(Worker(stage)) as worker, suppress(Stopped):
        worker.run()


class Worker:
    def __init__(self, stage: Stage) -> None:
        began = time.monotonic()
        boot = stage.boot
        assert boot.plan is not None
        torch.set_num_threads(boot.settings.worker.threads or cores())
        folder = Path(boot.model)
        manifest = model_folder.load(folder)
        config = skeletons.load_config(folder)
        self._stage = stage
        self._epoch = boot.epoch
        self._layers = manifest.layers
        self._streamed_bytes = boot.plan.streamed_bytes
        self._all_bytes = boot.plan.weights_bytes
        self._ring_bytes = boot.plan.ring_bytes
        self._front = wire.sweeps_wire(stage.context, stage.directory, boot.epoch, bind=True)
        self._reader = reader = wire.bytes_wire(stage.context, stage.directory, boot.epoch, bind=True)
        self._arrivals = Arrivals(reader, boot.plan, self._wait_for_bytes, self._waited)
        self._bytes_poller = _poller(reader.socket, stage.control.socket)
        self._sweeps_poller = _poller(self._front.socket, stage.control.socket)
        pool = Pool(stage.fds["pool"])
        twins = Twins(pool, boot.plan, self._arrivals, reader_compares(boot.verdict["verify"], boot.settings.model.mirrors))
        skeleton = skeletons.build(config, getattr(torch, manifest.dtype))
        self._placement = placement = lenders.place(
            lenders.open_device(boot.verdict["device"].split(" ")[0]), boot.settings, pool, self._arrivals, boot.plan,
            groups_of(manifest), stage.log,
        )  # fmt: skip
        arithmetic = Arithmetic.from_json(boot.verdict["arithmetic"])
        attention = PackedAttention()
        self._kernels = kernels.choose(
            boot.settings.worker.kernels, boot.verdict["batching"], skeleton.model.config, placement.torch_device, attention, arithmetic
        )
        self._model = Model(
            skeleton, manifest, folder, placement.lender, twins, placement.torch_device, self._kernels, self._layer_done, stage.spans
        )
        self._drafter: Drafter | None = None
        self._why_no_drafter = "there is none"
        if (draft := boot.verdict["draft"]) is not None:
            with self._ending_the_drafter():
                self._drafter = Drafter(
                    Path(draft["folder"]), draft, boot.verdict["vocabulary"], placement.torch_device, attention, stage.spans
                )
        self._logits = _logits_region(stage.fds["logits"], boot.verdict["vocabulary"])
        self._sequences: dict[int, SequenceKV] = {}
        #: of the last sweep
        self._branches: dict[int, list[Branch]] = {}
        self._waited_s = 0.0
        self._sweep_number = 0
        self._sweeps = 0
        self._layers_computed = 0
        self._said = 0.0
        name = type(skeleton.model).__name__
        products = "compiled here" if arithmetic.product else "torch's"
        kept = f", keys and values rounded to {arithmetic.kv}" if arithmetic.kv else ""
        stage.ready(f"{name} built in {time.monotonic() - began:.1f} s, {torch.get_num_threads()} threads, products {products}{kept}")

    def run(self) -> None:
        while not self._stage.stopping:
            self._sweeps_poller.poll(_COPYING_MS if self._placement.retire() else _PATIENCE_MS)
            self._stage.orders()
            self._stage.beat(sweeps=self._sweeps, layers=self._layers_computed)
            while (message := self._front.receive()) is not None and not self._stage.stopping:
                if isinstance(message, Drop):
                    self.forget(message)
                elif isinstance(message, Fork):
                    self.fork(message)
                elif isinstance(message, Cut):
                    self.cut(message)
                elif isinstance(message, Draft) and message.epoch == self._epoch:
                    self._front.send(self.draft(message))
                elif isinstance(message, Sweep) and message.epoch == self._epoch:
                    self._front.send(self.serve(message))
                    if self._drafter is not None:
                        self._drafter.verified({id: kv.length for id, kv in self._sequences.items()})

    def close(self) -> None:
        self._front.close()
        self._reader.close()
        self._placement.close()

    def forget(self, drop: Drop) -> None:
        self._sequences.pop(drop.sequence, None)
        self._branches.pop(drop.sequence, None)
        if self._drafter is not None:
            self._drafter.forget(drop.sequence)

    @torch.inference_mode()
    def fork(self, fork: Fork) -> None:
        source = self._sequences.get(fork.of)
        if not isinstance(source, Paged) or source.length < fork.length:
            raise InternalError(f"sequence {fork.sequence} begins with {fork.length} tokens of sequence {fork.of}, which does not have them")
        self._sequences[fork.sequence] = source.fork(fork.length)
        if self._drafter is not None:
            with self._ending_the_drafter():
                self._drafter.fork(fork.sequence, fork.of, fork.length)

    @torch.inference_mode()
    def cut(self, cut: Cut) -> None:
        kv = self._sequences.get(cut.sequence)
        if not isinstance(kv, Paged) or kv.length < cut.length:
            raise InternalError(f"sequence {cut.sequence} is to be cut to {cut.length} tokens, which it does not have")
        branches = self._branches.pop(cut.sequence, [])
        if cut.branch is None:
            kv.cut(cut.length)
        elif cut.branch < len(branches) and branches[cut.branch].follows <= cut.length <= branches[cut.branch].length:
            branches[cut.branch].adopt(cut.length)
        else:
            raise InternalError(f"sequence {cut.sequence} is to go on with {cut.length} tokens of branch {cut.branch}, which does not have them")

    def draft(self, ask: Draft) -> Drafted:
        """What the draft model guesses. Whatever goes wrong with it ends it and nothing else."""
        began = time.monotonic()
        if self._drafter is not None:
            with self._ending_the_drafter():
                return self._drafter.draft(ask, self._drafts)
        self._placement.empty_cache()
        return Drafted(ask.epoch, ask.number, (), time.monotonic() - began, failed=self._why_no_drafter)

    @contextmanager
    def _ending_the_drafter(self) -> Iterator[None]:
        """Whatever goes wrong in here ends the draft model and nothing else."""
        try:
            yield
        except (Stopped, MemoryError):
            raise
        except Exception as error:  # the draft model's top: a job that it guesses for goes on without
            known = isinstance(error, PotatoError)  # then its sentence says all
            self._stage.logger.error("the draft model failed", exc_info=not known)
            self._why_no_drafter, self._drafter = (str(error) if known else f"{type(error).__name__}: {first_line(error)}")[:500], None

    def serve(self, sweep: Sweep) -> Rows:
        """One pass over all weights for every step of the sweep."""
        began = time.monotonic()
        self._sweep_number, self._waited_s = sweep.number, 0.0
        rows = self._computed(sweep)
        first, self._sweeps = self._sweeps == 0, self._sweeps + 1
        self._stage.beat(sweeps=self._sweeps, layers=self._layers_computed)
        read_bytes = self._all_bytes if first else self._streamed_bytes
        return Rows(
            sweep.epoch, sweep.number, rows or (), time.monotonic() - began, read_bytes, self._arrivals.read_bytes_per_s, self._waited_s,
            exhausted=rows is None,
        )  # fmt: skip

    def _computed(self, sweep: Sweep) -> tuple[Row, ...] | None:
        """None where the card has not the memory for it: then the weights have passed by all the same, and the sweep's sequences are forgotten."""
        try:
            return self._advanced(sweep)
        except torch.OutOfMemoryError:
            self._model.pass_by()
            for step in sweep.steps:
                self.forget(Drop(step.sequence))
        self._placement.empty_cache()  # outside the handler: an exception holds its frames, and they hold tensors
        return None

    def _advanced(self, sweep: Sweep) -> tuple[Row, ...]:
        pack = self._pack(sweep)
        with self._kernels.around(pack):
            logits = self._model.forward(pack)
        self._placement.finish()
        for piece in pack.pieces:
            piece.kv.length += piece.end - piece.first
            if isinstance(piece.kv, Branch):
                piece.kv.forget_blocks()
        return self._rows([step for step in sweep.steps if step.want != "nothing"], logits)

    def _pack(self, sweep: Sweep) -> Pack:
        tokens: list[int] = []
        wanted: list[int] = []
        pieces: list[Piece] = []
        self._branches.clear()  # of the last sweep: the front has said by now which of them were right
        for step in sweep.steps:
            first = len(tokens)
            kv = self._sequence(step)
            tokens += step.tokens
            pieces.append(Piece(kv, first, len(tokens), step.start, step.known))
            wanted_from = len(tokens) - 1 - step.drafted
            for branch, (at, of) in zip(step.branches, self._begin_branches(step, kv), strict=True):
                first = len(tokens)
                tokens += branch.tokens
                pieces.append(Piece(of, first, len(tokens), at, step.known))
            if step.want != "nothing":
                wanted += range(wanted_from, len(tokens))
        return Pack(tokens, pieces, wanted)

    def _begin_branches(self, step: Step, kv: SequenceKV) -> list[tuple[int, Branch]]:
        """Where each begins, and its KV."""
        if not step.branches:
            return []
        assert isinstance(kv, Paged)
        known = step.start + len(step.tokens) - step.drafted
        lies: list[tuple[Paged, int]] = [(kv, known + place) for place in range(step.drafted)]  # of each guess: in what, and where
        begun: list[tuple[int, Branch]] = []
        for branch in step.branches:
            of, at = lies[branch.after] if branch.after >= 0 else (kv, known - 1)
            made = Branch(of, at + 1)
            begun.append((at + 1, made))
            lies += [(made, at + 1 + place) for place in range(len(branch.tokens))]
        self._branches[step.sequence] = [made for _, made in begun]
        return begun

    def _sequence(self, step: Step) -> SequenceKV:
        kv = self._sequences.get(step.sequence)
        if kv is None:
            kv = self._sequences[step.sequence] = self._kernels.batching.new_kv()
        if kv.length != step.start:
            raise InternalError(f"sequence {step.sequence} goes on at {step.start}, its KV holds {kv.length} tokens")
        return kv

    def _rows(self, steps: list[Step], logits: torch.Tensor) -> tuple[Row, ...]:
        if not steps:
            return ()
        rows = []
        best, tokens = _likeliest(logits)
        wanted = [step for step in steps for _ in range(step.wanted)]
        at = 0
        for index, (step, values) in enumerate(zip(wanted, logits, strict=True)):
            if step.want == "argmax" and math.isfinite(best[index]):
                rows.append(Row(step.sequence, token=tokens[index]))
            elif step.want == "argmax":  # what is no number to choose by is the front's to refuse
                self._logits[-1] = values.float().cpu()
                rows.append(Row(step.sequence, logits_row=len(self._logits) - 1))
            else:
                self._logits[at] = values.float().cpu()
                rows.append(Row(step.sequence, logits_row=at))
                at += 1
        return tuple(rows)

    def _layer_done(self, layers_done: int) -> None:
        self._layers_computed += 1
        now = time.monotonic()
        if now - self._said >= _SAY_EVERY_S:
            self._said = now
            self._front.send(LayerDone(self._epoch, self._sweep_number, layers_done, self._layers))
        self._stage.beat(sweeps=self._sweeps, layers=self._layers_computed)

    def _drafts(self) -> None:
        """Between two passes of the draft model."""
        self._layers_computed += 1
        self._placement.retire()
        self._stage.orders()
        self._stage.beat(sweeps=self._sweeps, layers=self._layers_computed)
        if self._stage.stopping:
            raise Stopped

    def _wait_for_bytes(self) -> None:
        if not self._placement.before_waiting() and not self._looked_ahead():
            self._bytes_poller.poll(_PATIENCE_MS)
        self._stage.orders()
        self._stage.beat(sweeps=self._sweeps, layers=self._layers_computed)
        if self._stage.stopping:
            raise Stopped

    def _looked_ahead(self) -> bool:
        """Whether the draft model had something to do, which took no longer than it takes to fill half of what is free of the ring."""
        speed, done = self._arrivals.read_bytes_per_s, False
        if self._drafter is not None and speed is not None:
            with self._ending_the_drafter(), apart():
                done = self._drafter.ahead((self._ring_bytes - self._arrivals.passing_bytes) / speed / 2)
        return done

    def _waited(self, began: float, ended: float) -> None:
        self._waited_s += ended - began
        self._stage.spans.add("wait", "weights", began, ended)


def _likeliest(logits: torch.Tensor) -> tuple[list[float], list[int]]:
    """Of each row the largest value, NaN where any is one, and its token. Some rows at a time: in fp32 all of them would be as large as a layer."""
    values, tokens = zip(*(some.float().max(dim=-1) for some in logits.split(8)), strict=True)
    return torch.cat(values).tolist(), torch.cat(tokens).tolist()


def _poller(*sockets: Any) -> zmq.Poller:
    poller = zmq.Poller()
    for socket in sockets:
        poller.register(socket, zmq.POLLIN)
    return poller


def _logits_region(fd: int, vocabulary: int) -> torch.Tensor:
    """(rows, vocabulary) fp32, shared with the front: the rows of sweep n are the front's until it sends sweep n + 1. It is as large as any of the
    models that are served needs it."""
    region = torch.frombuffer(Pool(fd).view, dtype=torch.float32)
    return region[: region.numel() // vocabulary * vocabulary].view(-1, vocabulary)
