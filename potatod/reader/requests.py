"""Reads that are under way: a few threads, so that the disk always has several requests queued."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Final

import xxhash

from potatod.errors import ModelDataError
from potatod.spans import Spans

from .source import Source

_SENTENCE: Final = "{}: the part at offset {} ({} bytes) is damaged: its checksum is {}, the manifest says {}; prepare the model again"


@dataclass(slots=True)
class Fetch:
    """One part on its way into its extent of the pool, as one or several pieces."""

    part: int
    #: the same file, in the model folder and in each of its mirrors, or in one of them
    sources: tuple[Source, ...]
    file_offset: int
    pool_offset: int
    memory: memoryview
    #: XXH3-64 that the bytes must have; None where that is not looked at
    checksum: str | None
    #: whether this is the last fetch of a pass
    ends_pass: bool = False
    pieces_left: int = 0
    complete: bool = False
    error: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Requests:
    """Runs fetches on ``in_flight`` threads for each of ``mirrors`` and hands them back in the order they were started.

    A thread reads from one disk. All take the next piece when they have read one, so each disk gives as much as it can.

    ``wakeup`` is a descriptor that becomes readable whenever a fetch has completed.
    """

    def __init__(self, in_flight: int, piece_bytes: int, spans: Spans, mirrors: int = 1) -> None:
        self._piece = piece_bytes
        self._spans = spans
        #: None: there are no more
        self._pieces: SimpleQueue[tuple[Fetch, int, int] | None] = SimpleQueue()
        self._closed = False
        self._started: deque[Fetch] = deque()
        self.wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._busy = _BusyClock()
        #: time.monotonic() when a piece came in last
        self.moved = time.monotonic()
        self._threads = [
            threading.Thread(target=self._serve, args=(n, n % mirrors), name=f"read-{n}", daemon=True)
            for n in range(in_flight * mirrors)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def busy_s(self) -> float:
        """Seconds so far in which at least one read was under way."""
        return self._busy.seconds

    @property
    def waiting(self) -> int:
        return len(self._started)

    @property
    def oldest(self) -> Fetch:
        return self._started[0]

    def start(self, fetch: Fetch) -> None:
        length = len(fetch.memory)
        pieces = [(at, min(self._piece, length - at)) for at in range(0, length, self._piece)]
        fetch.pieces_left = len(pieces)
        self._started.append(fetch)
        for at, size in pieces:
            self._pieces.put((fetch, at, size))

    def completed(self) -> list[Fetch]:
        """Fetches that are complete, oldest first, none skipped; raises what made one fail."""
        try:
            os.eventfd_read(self.wakeup)
        except BlockingIOError:
            pass
        done = []
        while self._started and self._started[0].complete:
            fetch = self._started.popleft()
            if fetch.error is not None:
                raise fetch.error
            done.append(fetch)
        return done

    def close(self, timeout_s: float) -> bool:
        """Nothing more is read. Waits so long for reads that are under way; whether they have ended, so that files and memory are no longer touched."""
        self._closed = True
        for _ in self._threads:
            self._pieces.put(None)
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        ended = not any(thread.is_alive() for thread in self._threads)
        if ended:
            os.close(self.wakeup)
        return ended

    def _serve(self, number: int, mirror: int) -> None:
        while (piece := self._pieces.get()) is not None and not self._closed:
            fetch, at, size = piece
            began = time.monotonic()
            if fetch.error is None:
                with _carried(fetch), self._busy:
                    fetch.sources[mirror % len(fetch.sources)].read_into(fetch.file_offset + at, fetch.memory[at : at + size])
            self._spans.add(f"request {number}", f"part {fetch.part}", began, time.monotonic())
            self._piece_done(fetch, number)

    def _piece_done(self, fetch: Fetch, number: int) -> None:
        self.moved = time.monotonic()
        with fetch.lock:
            fetch.pieces_left -= 1
            last = fetch.pieces_left == 0
        if last:
            if fetch.error is None and fetch.checksum is not None:
                with _carried(fetch):
                    _compare(fetch)
                self._spans.add(f"checksum {number}", f"part {fetch.part}", self.moved, time.monotonic())
            fetch.complete = True
            os.eventfd_write(self.wakeup, 1)


@contextmanager
def _carried(fetch: Fetch) -> Iterator[None]:
    """What a thread meets goes with the fetch to the stage's loop, which raises it."""
    try:
        yield
    except Exception as error:  # a thread's top: it would end unseen, and the reads with it
        fetch.error = error


def _compare(fetch: Fetch) -> None:
    """Raises :class:`ModelDataError` where the bytes are not those of the checksum."""
    found = xxhash.xxh3_64_hexdigest(fetch.memory)
    if found != fetch.checksum:
        raise _damaged(fetch, found)


def _damaged(fetch: Fetch, found: str) -> ModelDataError:
    """Says where the bytes are damaged: of several mirrors, which one gives others than it should."""
    for source in fetch.sources if len(fetch.sources) > 1 else ():
        alone = memoryview(mmap.mmap(-1, len(fetch.memory)))
        source.read_into(fetch.file_offset, alone)
        if (found := xxhash.xxh3_64_hexdigest(alone)) != fetch.checksum:
            return ModelDataError(_SENTENCE.format(source.path, fetch.file_offset, len(alone), found, fetch.checksum))
    return ModelDataError(_SENTENCE.format(fetch.sources[0].path, fetch.file_offset, len(fetch.memory), found, fetch.checksum))


class _BusyClock:
    """Adds up the time in which it is entered by anyone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._since = 0.0
        self._total = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._since = time.monotonic()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._total += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        with self._lock:
            return self._total + (time.monotonic() - self._since if self._inside else 0.0)
