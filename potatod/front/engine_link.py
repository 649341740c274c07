"""The front's tie to the present engine: the sweeps wire, made anew for every epoch, and the shared logits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from potatod import wire
from potatod.messages import Cut, Draft, Drafted, Drop, Engine, Fork, LayerDone, Rows, Sweep
from potatod.pool import Pool

from .sweep_times import SweepTimes


class EngineLink:
    """At most one engine, and at most one sweep under way. What an older engine says is dropped."""

    def __init__(
        self,
        context: zmq.Context[Any],
        directory: Path,
        logits_fd: int,
        poller: zmq.Poller,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = Engine(0, "starting", 0, "", ())
        self._times: SweepTimes | None = None
        self._context = context
        self._directory = directory
        self._poller = poller
        self._clock = clock
        self._wire: wire.Wire | None = None
        self._epoch = 0
        self._sent: tuple[Sweep, float] | None = None
        self._region: NDArray[np.float32] = np.frombuffer(Pool(logits_fd).view, dtype=np.float32)
        self._vocabulary = 1

    @property
    def up(self) -> bool:
        return self._wire is not None

    @property
    def epoch(self) -> int:
        return self._epoch

    def update(self, engine: Engine, vocabulary: int, times: SweepTimes) -> bool:
        """The supervisor's word on the engine, and what its model has: tokens with logits, and what sweeps take. True where an engine that we spoke to
        is gone, and all KV with it."""
        self.engine = engine
        if self.up and (engine.state != "up" or engine.epoch != self._epoch):
            self.close()
            lost = True
        else:
            lost = False
        if engine.state == "up" and not self.up:
            self._vocabulary, self._times = vocabulary, times
            self._epoch = engine.epoch
            self._wire = wire.sweeps_wire(self._context, self._directory, engine.epoch, bind=False)
            self._poller.register(self._wire.socket, zmq.POLLIN)
        return lost

    def send(self, sweep: Sweep) -> None:
        """Gives the last sweep's logits back to the worker."""
        assert self._times is not None, "there is no engine to talk to"
        self._sent = (sweep, self._clock())
        self._times.began_at = self._sent[1]
        self._say(sweep)

    def order(self, orders: tuple[Drop | Fork | Cut | Draft, ...]) -> None:
        """Acts after the sweep under way."""
        for order in orders:
            self._say(order)

    def receive(self) -> Iterator[Rows | LayerDone | Drafted]:
        """What the present engine has said: about the sweep under way, and of what it guesses."""
        while self._wire is not None and (message := self._wire.receive()) is not None:
            if isinstance(message, Drafted):
                if message.epoch == self._epoch:
                    yield message
                continue
            if self._sent is None or (message.epoch, message.number) != (self._epoch, self._sent[0].number):
                continue
            if isinstance(message, Rows):
                self._arrived(message)
            yield message

    def logits(self, row: int) -> NDArray[np.float32]:
        """``(vocabulary,)``, a view: valid until the next sweep is sent."""
        begin = row * self._vocabulary
        if begin + self._vocabulary > len(self._region):
            raise IndexError(f"row {row} of logits is not there")
        return self._region[begin : begin + self._vocabulary]

    @property
    def under_way_s(self) -> float:
        """Seconds since the sweep under way was sent; 0 where there is none."""
        return 0.0 if self._sent is None else self._clock() - self._sent[1]

    def close(self) -> None:
        if self._wire is not None:
            self._poller.unregister(self._wire.socket)
            self._wire.close()
        self._wire = None
        self._sent = None
        if self._times is not None:
            self._times.began_at = None

    def _say(self, message: Sweep | Drop | Fork | Cut | Draft) -> None:
        assert self._wire is not None, "there is no engine to talk to"
        self._wire.send(message)  # dropped where the worker is gone: what it took with it is made again

    def _arrived(self, rows: Rows) -> None:
        assert self._sent is not None and self._times is not None
        sweep, sent_at = self._sent
        self._sent = self._times.began_at = None
        self._times.add(self._clock() - sent_at, decode=all(len(step.tokens) - step.drafted == 1 for step in sweep.steps), rows=rows)
