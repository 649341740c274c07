"""The reader's loop: parts in cyclic order into the pool, ownership by message."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import zmq

from potatod import wire
from potatod.messages import Freed, Loaded, Passed
from potatod.plan import Placed, Plan
from potatod.pool import Pool, Ring
from potatod.stage import Stage

from .requests import Fetch, Requests
from .source import Source

#: Nothing waits longer than this without looking whether it should stop.
_PATIENCE_MS: Final = 500


def work(stage: Stage) -> None:
    """Read for ever; returns when the supervisor says Stop."""
    assert stage.boot.plan is not None
    Reader(stage, stage.boot.plan).run()


class Reader:
    def __init__(self, stage: Stage, plan: Plan) -> None:
        settings = stage.boot.settings.reader
        self._stage = stage
        self._plan = plan
        self._pool = Pool(stage.fds["pool"])
        self._ring = Ring(plan.ring_offset, plan.ring_bytes)
        folder = Path(stage.boot.model)
        self._sources = {name: Source(folder / name, settings.io) for name in {part.file for part in plan.parts}}
        self._requests = Requests(settings.in_flight, settings.piece)
        self._worker = wire.bytes_wire(stage.context, stage.directory, stage.boot.epoch, bind=True)
        self._poller = zmq.Poller()
        for end in (self._worker.socket, stage.control.socket, self._requests.wakeup):
            self._poller.register(end, zmq.POLLIN)
        self._read_bytes = 0
        self._counted = time.monotonic()

    def run(self) -> None:
        how = "direct" if all(s.direct for s in self._sources.values()) else "buffered"
        self._stage.ready(f"reads {how}, {self._plan.resident_bytes} bytes resident, {self._plan.streamed_bytes} per sweep")
        for number in itertools.count():
            read_before, busy_before = self._read_bytes, self._requests.busy_s
            for index, part in self._order(number):
                offset = part.pool_offset if part.home == "ram" else self._take(part.length)
                if self._stage.stopping:
                    return
                self._fetch(index, part, offset, verify=number == 0)
                self._attend(0)
            while self._requests.waiting and not self._stage.stopping:
                self._attend(_PATIENCE_MS)
            self._pass_done(number, self._read_bytes - read_before, self._requests.busy_s - busy_before)
            while not self._plan.streamed_bytes and not self._stage.stopping:
                self._attend(_PATIENCE_MS)  # everything is resident: the disk is silent from now on
            if self._stage.stopping:
                return

    def _order(self, number: int) -> Iterator[tuple[int, Placed]]:
        """One pass: everything on the first, what the ring carries on all others."""
        for source in self._sources.values():
            source.check_unchanged()
        for index, part in enumerate(self._plan.parts):
            if number == 0 or part.home == "disk":
                yield index, part

    def _take(self, length: int) -> int:
        """Room in the ring: waits until the worker has freed enough. This wait is the pipeline's back-pressure."""
        while (offset := self._ring.take(length)) is None and not self._stage.stopping:
            self._attend(_PATIENCE_MS)
        return -1 if offset is None else offset

    def _fetch(self, index: int, part: Placed, offset: int, *, verify: bool) -> None:
        memory = self._pool.extent(offset, part.length)
        checksum = part.checksum if verify else None
        self._requests.start(Fetch(index, self._sources[part.file], part.offset, offset, memory, checksum))

    def _attend(self, timeout_ms: int) -> None:
        """Whatever has happened: reads completed, extents freed, the supervisor spoke."""
        self._poller.poll(timeout_ms)
        for fetch in self._requests.completed():
            self._read_bytes += len(fetch.memory)
            self._worker.send(Loaded(fetch.part, fetch.pool_offset, len(fetch.memory)))
        while (message := self._worker.receive()) is not None:
            assert isinstance(message, Freed)
            self._ring.give(message.offset)
        self._stage.orders()
        now = time.monotonic()
        if now - self._counted >= 1:
            self._counted = now
            self._stage.counted(read_bytes=self._read_bytes)

    def _pass_done(self, number: int, read_bytes: int, busy_s: float) -> None:
        self._worker.send(Passed(number, read_bytes, busy_s))
        if number == 0:
            rate = read_bytes / busy_s if busy_s else 0.0
            self._stage.log("first pass read", bytes=read_bytes, busy_s=round(busy_s, 2), bytes_per_s=round(rate))
