"""A device for tests: host memory behind FIFO streams, each a thread, whose copies land late and in pieces, and whose layers read late.

It finds what a real device would punish rarely and silently. A layer that is computed before its copy has landed reads NaN. Layers are computed on
the calling thread, and then the compute stream takes its time: until it is done with a layer, that layer's weights must stay as they were, and
then its slot is poisoned; a slot filled too early, or an event of the wrong stream, is a fault (:class:`Fault`). A freed extent that is overwritten
before its copy has landed corrupts the copy. Two regimes matter, slow copies and slow computation: each finds faults that the other hides.

As ``[worker] device`` it is called ``simulated``, or with options ``simulated:upload=2e9,compute=10e9,vram=1e9,seed=7``: bytes a second, bytes.
With rates it keeps them to the clock instead of drawing delays from the seed, and looks for no faults: that is for measuring the pipeline around it.
Its memory can be too small: ``taken`` bytes of it are gone when weights come, and more than ``rows`` rows in one product exhaust it.
"""

from __future__ import annotations

import atexit
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Final

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.modeling_layers import GradientCheckpointingLayer

from potatod.errors import ConfigError, InternalError

from .device import Event, no_room

#: What a slot is filled with that nobody may read any more: NaN in every float format.
POISON: Final = 0xFF
NAME: Final = "simulated"
_PIECES: Final = 4
#: A piece of work that takes longer at the end of the process waits, for what will not come: that may be cut off.
_LAST_WORK_S: Final = 0.5
_OPTIONS: Final = ("seed", "copy_s", "compute_s", "upload", "compute", "vram", "taken", "rows")


class Fault(InternalError):
    """What a slot held was changed while a layer read it."""


@dataclass(slots=True)
class _Event:
    done: threading.Event = field(default_factory=threading.Event)

    def query(self) -> bool:
        return self.done.is_set()

    def synchronize(self) -> None:
        self.done.wait()


class _Stream:
    """Runs what is enqueued, one after the other, on a thread of its own.

    A thread that is inside of torch when the interpreter ends would bring the process down, so each ends before.
    """

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._over = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def _run(self) -> None:
        torch.set_num_threads(1)
        while not self._over:
            self._work.get()()

    def _end(self) -> None:
        self._over = True
        self._work.put(lambda: None)  # whoever waits for work looks up
        self._thread.join(_LAST_WORK_S)

    def enqueue(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def record(self) -> _Event:
        event = _Event()
        self._work.put(event.done.set)
        return event


class _Clock:
    """A link that moves so many bytes a second: sleeps until the moment at which they would have passed."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._until = 0.0

    def spend(self, nbytes: int, began: float) -> None:
        """For bytes that have been on their way since ``began`` (time.monotonic()). Whoever wakes up late has not lost the time: the next bytes are due
        when they would have been."""
        late = began - self._until
        self._until = (self._until if late < 0.002 else began) + nbytes / self.bytes_per_s
        time.sleep(max(0.0, self._until - time.monotonic()))


class Simulated:
    """See device.Device. ``copy_s`` and ``compute_s`` are the longest delays of a piece of a copy and of a layer's computation; ``upload`` and
    ``compute``, in bytes a second, stand in their place."""

    def __init__(
        self, seed: int = 0, copy_s: float = 0.0005, compute_s: float = 0.0, upload: float | None = None, compute: float | None = None,
        vram: float = 1 << 40, taken: float = 0, rows: float | None = None,
    ) -> None:  # fmt: skip
        self._random = random.Random(seed)
        self._copy_s = copy_s
        self._compute_s = compute_s
        self._upload = _Clock(upload) if upload else None
        self._computing = _Clock(compute) if compute else None
        self._free_bytes = int(vram)
        self._left_bytes = int(vram - taken)
        self._rows = rows
        self._copies = _Stream("simulated-copies")
        self._compute = _Stream("simulated-compute")
        self._fault = ""

    @classmethod
    def named(cls, name: str) -> Simulated:
        """From ``simulated`` or ``simulated:KEY=NUMBER,…``; raises :class:`ConfigError`."""
        options: dict[str, float] = {}
        assert name == "simulated" or name.startswith("simulated:"), "another device's name"
        for word in name.partition(":")[2].split(",") if ":" in name else ():
            key, _, value = word.partition("=")
            try:
                options[key] = float(value)
            except ValueError:
                options.clear()
                key = ""
            if key not in _OPTIONS:
                raise ConfigError(f'[worker] device is "{name}": a simulated device takes {", ".join(_OPTIONS)}, each with a number')
        return cls(int(options.pop("seed", 0)), **options)

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def upload_bytes_per_s(self) -> float | None:
        return self._upload.bytes_per_s if self._upload else None

    @property
    def compute_bytes_per_s(self) -> float | None:
        return self._computing.bytes_per_s if self._computing else None

    def free_bytes(self) -> int:
        return self._free_bytes

    def empty(self, nbytes: int) -> torch.Tensor:
        if nbytes > self._left_bytes:
            raise no_room(NAME, self._left_bytes, nbytes)
        self._left_bytes -= nbytes
        if self._rows is not None:
            self._exhausted_beyond(self._rows)
            self._rows = None
        return torch.full((nbytes,), POISON, dtype=torch.uint8)

    def _exhausted_beyond(self, most: float) -> None:
        """From now on, for as long as this process lives: in a product, or in a layer that makes its products itself."""
        def look(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if isinstance(module, nn.Linear | GradientCheckpointingLayer) and args and args[0].numel() > most * args[0].shape[-1]:
                raise torch.OutOfMemoryError(f"simulated: more than {most:.0f} rows")

        register_module_forward_pre_hook(look)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        if (clock := self._upload) is not None:

            def pass_through() -> None:
                began = time.monotonic()
                target.copy_(source)
                clock.spend(target.numel(), began)

            self._copies.enqueue(pass_through)
            return
        delays = [self._random.uniform(0, self._copy_s) for _ in range(_PIECES)]
        step = -(-target.numel() // _PIECES)

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
        event.synchronize()  # the layer itself runs on the caller's thread

    def copied(self) -> Event:
        return self._copies.record()

    def computed(self, read: Sequence[torch.Tensor], emptied: torch.Tensor) -> Event:
        """The caller's thread has computed already; the device takes its time, and reads until then."""
        if self._fault:
            raise Fault(self._fault)
        if (clock := self._computing) is not None:
            nbytes = sum(tensor.numel() * tensor.itemsize for tensor in read)
            self._compute.enqueue(lambda: clock.spend(nbytes, time.monotonic()))
            return self._compute.record()
        delay, before = self._random.uniform(0, self._compute_s), [tensor.detach().clone() for tensor in read]

        def read_late() -> None:
            time.sleep(delay)
            if not all(torch.equal(old.view(torch.uint8), now.detach().view(torch.uint8)) for old, now in zip(before, read, strict=True)):
                self._fault = "a slot was filled while a layer was computed from it"
            emptied.fill_(POISON)

        self._compute.enqueue(read_late)
        return self._compute.record()

    def finish(self) -> None:
        self._compute.record().synchronize()
        if self._fault:
            raise Fault(self._fault)

    def page_lock(self, pointer: int, nbytes: int) -> bool:
        return True

    def page_unlock(self, pointer: int) -> None:
        pass

    def empty_cache(self) -> None:
        pass
