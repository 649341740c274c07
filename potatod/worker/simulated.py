"""A device for tests: host memory behind FIFO streams, each a thread, whose copies land late and in pieces.

It finds what a real device would punish rarely and silently: a layer computed before its copy has landed reads NaN, a slot filled while it is
still read changes under the computation, a freed extent that is overwritten too early corrupts the copy. Delays are drawn from a seed.
Two regimes matter, slow copies and slow computation: each finds faults that the other hides.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch

from .device import Event

#: What a discarded slot is filled with: NaN in every float format, so that whoever reads it shows it.
POISON = 0xFF


@dataclass(slots=True)
class _Event:
    done: threading.Event = field(default_factory=threading.Event)

    def query(self) -> bool:
        return self.done.is_set()

    def synchronize(self) -> None:
        self.done.wait()


class _Stream:
    """Runs what is enqueued, one after the other, on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        torch.set_num_threads(1)
        while True:
            self._work.get()()

    def enqueue(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def record(self) -> _Event:
        event = _Event()
        self._work.put(event.done.set)
        return event


class Simulated:
    """See device.Device. Layers run on the calling thread, after what they wait for: as if compute were enqueued and awaited.

    ``copy_s`` and ``compute_s`` are the longest delays of a piece of a copy and of a layer's computation.
    """

    def __init__(self, seed: int = 0, copy_s: float = 0.0005, compute_s: float = 0.0, pieces: int = 4) -> None:
        self._random = random.Random(seed)
        self._copy_s = copy_s
        self._compute_s = compute_s
        self._pieces = pieces
        self._copies = _Stream("simulated-copies")
        self._compute = _Stream("simulated-compute")

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    def empty(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), POISON, dtype=torch.uint8)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        delays = [self._random.uniform(0, self._copy_s) for _ in range(self._pieces)]
        step = -(-target.numel() // self._pieces)

        def land() -> None:
            for number, delay in enumerate(delays):
                time.sleep(delay)
                piece = slice(number * step, (number + 1) * step)
                target[piece] = source[piece]

        self._copies.enqueue(land)

    def copies_wait_for(self, event: Event) -> None:
        self._copies.enqueue(event.synchronize)

    def compute_waits_for(self, event: Event) -> None:
        self._compute.enqueue(event.synchronize)
        self._compute.record().synchronize()  # the layer itself runs on the caller's thread

    def copied(self) -> Event:
        return self._copies.record()

    def computed(self) -> Event:
        """The caller's thread has computed already; the device says so only later."""
        delay = self._random.uniform(0, self._compute_s)
        self._compute.enqueue(lambda: time.sleep(delay))
        return self._compute.record()

    @contextmanager
    def computing(self) -> Iterator[None]:
        yield

    def discard(self, slot: torch.Tensor) -> None:
        """Poisons the slot, in the order of the compute stream; an event recorded before it does not wait for that."""
        slot.fill_(POISON)

    def page_lock(self, pointer: int, nbytes: int) -> bool:
        return False
