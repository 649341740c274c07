"""The reader's loop: parts in cyclic order into the pool, ownership by message."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import zmq

from potatod import wire
from potatod.errors import Unavailable
from potatod.messages import Freed, Loaded, Passed
from potatod.plan import Placed, Plan
from potatod.pool import Pool, Ring
from potatod.sizes import human_size
from potatod.stage import Stage

from .requests import Fetch, Requests
from .source import Source

#: Nothing waits longer than this without looking whether it should stop.
_PATIENCE_MS: Final = 500
_COMPARED: Final = {
    "always": "every read is compared with its checksum", "first": "the first read of each part from each folder is compared with its checksum",
    "never": "nothing is compared with its checksum",
}  # fmt: skip
#: For reads that are under way, when the reader ends.
_LINGER_S: Final = 1.0
#: A read that takes longer will not come back.
STALLED_S: Final = 120.0


def work(stage: Stage) -> None:
    """Read for ever; returns when the supervisor says Stop."""
    assert stage.boot.plan is not None
    with closing(Reader(stage, stage.boot.plan)) as reader:
        reader.run()


class Reader:
    def __init__(self, stage: Stage, plan: Plan) -> None:
        settings = stage.boot.settings.reader
        self._stage = stage
        self._plan = plan
        self._pool = Pool(stage.fds["pool"])
        self._ring = Ring(plan.ring_offset, plan.ring_bytes)
        #: parts that lie in the ring or are on their way there, by pool offset
        self._in_ring: dict[int, int] = {}
        folders = [Path(stage.boot.model), *map(Path, stage.boot.settings.model.mirrors)]
        self._sources = {name: tuple(Source(folder / name, settings.io) for folder in folders) for name in {part.file for part in plan.parts}}
        self._requests = Requests(settings.in_flight, settings.piece, stage.spans, len(folders))
        self._verify: str = stage.boot.verdict["verify"]
        self._worker = wire.bytes_wire(stage.context, stage.directory, stage.boot.epoch, bind=False)
        self._poller = zmq.Poller()
        for end in (self._worker.socket, stage.control.socket, self._requests.wakeup):
            self._poller.register(end, zmq.POLLIN)
        self._streamed = [(i, part) for i, part in enumerate(plan.parts) if part.home == "disk"]
        self._read_bytes = 0
        self._passes = 0
        self._pass_began = (0, 0.0)
        self._moved = time.monotonic()

    def run(self) -> None:
        how = "direct" if all(source.direct for source in self._every_source()) else "buffered"
        mirrors = len(self._stage.boot.settings.model.mirrors)
        where = f" from {mirrors + 1} folders at the same time" if mirrors else ""
        size = f"{human_size(self._plan.resident_bytes)} resident, {human_size(self._plan.streamed_bytes)} per sweep"
        self._stage.ready(f"reads {how}{where}, {size}; {_COMPARED[self._verify]}")
        for number in itertools.count():
            for index, part in self._order(number):
                offset = part.home_offset if part.home == "ram" else self._take(index, part.length)
                if self._stage.stopping:
                    return
                self._fetch(index, part, offset, number)
                self._attend(0)
            while not self._streamed and not self._stage.stopping:
                self._attend(_PATIENCE_MS)  # everything is resident: after the first pass the disk is silent
            if self._stage.stopping:
                return

    def close(self) -> None:
        self._worker.close()
        if self._requests.close(_LINGER_S):
            for source in self._every_source():
                source.close()

    def _order(self, number: int) -> Iterator[tuple[int, Placed]]:
        """One pass: everything on the first, what the ring carries on all others."""
        for source in self._every_source():
            source.check_unchanged()
        return iter(list(enumerate(self._plan.parts)) if number == 0 else self._streamed)

    def _every_source(self) -> Iterator[Source]:
        return itertools.chain.from_iterable(self._sources.values())

    def _take(self, index: int, length: int) -> int:
        """Room in the ring for that part: waits until the worker has freed enough. This wait is the pipeline's back-pressure.

        Where the ring holds all that streams the part itself may still lie there, from the sweep before.
        """
        began = time.monotonic()
        while (offset := None if index in self._in_ring.values() else self._ring.take(length)) is None and not self._stage.stopping:
            self._attend(_PATIENCE_MS)
        self._stage.spans.add("ring", "full", began, time.monotonic())
        if offset is None:
            return -1
        self._in_ring[offset] = index
        return offset

    def _fetch(self, index: int, part: Placed, offset: int, number: int) -> None:
        last = len(self._plan.parts) - 1 if number == 0 else self._streamed[-1][0]
        sources = self._sources[part.file]
        first = number < len(sources) and self._verify == "first"
        if first:  # from one folder as a whole, in the next pass from the next one: so each has been compared
            sources = (sources[(index + number) % len(sources)],)
        self._requests.start(
            Fetch(
                part=index,
                sources=sources,
                file_offset=part.offset,
                pool_offset=offset,
                memory=self._pool.extent(offset, part.length),
                checksum=part.checksum if first or self._verify == "always" else None,
                ends_pass=index == last,
            )
        )

    def _attend(self, timeout_ms: int) -> None:
        """Whatever has happened: reads completed, extents freed, the supervisor spoke."""
        self._poller.poll(timeout_ms)
        if not self._requests.waiting:
            self._moved = time.monotonic()
        elif time.monotonic() - max(self._moved, self._requests.moved) > STALLED_S:
            raise Unavailable(f"{self._requests.oldest.sources[0].path}: a read has not come back for {STALLED_S:.0f} s; the disk stands still")
        for fetch in self._requests.completed():
            self._read_bytes += len(fetch.memory)
            self._worker.send(Loaded(fetch.part, fetch.pool_offset, len(fetch.memory)))
            if fetch.ends_pass:
                self._pass_done()
        while (message := self._worker.receive()) is not None:
            assert isinstance(message, Freed)
            for offset in message.offsets:
                self._ring.give(offset)
                del self._in_ring[offset]
        self._stage.orders()
        self._stage.beat(read_bytes=self._read_bytes)

    def _pass_done(self) -> None:
        read_bytes, busy_s = self._read_bytes - self._pass_began[0], self._requests.busy_s - self._pass_began[1]
        self._pass_began = (self._read_bytes, self._requests.busy_s)
        self._worker.send(Passed(self._passes, read_bytes, busy_s))
        if self._passes == 0:
            rate = f"{human_size(read_bytes / busy_s)}/s" if busy_s else "unknown"
            self._stage.log("first pass read", read_bytes=read_bytes, busy_s=round(busy_s, 2), rate=rate)
        self._passes += 1
