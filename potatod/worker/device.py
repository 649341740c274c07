"""Where layers compute, as a thin interface: streams, events, copies that do not wait.

Three kinds. The *cpu* needs none of this: its layers compute from the pool (weights.PoolLender). An *accelerator* is CUDA, or whatever else torch
drives through the same names (ROCm is CUDA to torch; XPU has streams and events of the same shape). The *simulated* device (simulated.py)
is host memory behind FIFO streams that land late, for tests of the protocol without any hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import torch

from potatod.errors import DoesNotFit, Unavailable
from potatod.sizes import human_size

#: Kinds of accelerator that have the streams, events and memory figures used here.
KINDS: Final = ("cuda", "xpu")
#: Where host memory cannot be page-locked in its place, copies go through two pieces of locked memory of so many bytes.
BOUNCE_BYTES: Final = 8 << 20


class Event(Protocol):
    """A point in a stream. Complete when everything recorded before it has happened."""

    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


class Device(Protocol):
    """What slots.py needs of a device. Copies run on one stream of their own, layers on the compute stream."""

    @property
    def torch_device(self) -> torch.device: ...

    def free_bytes(self) -> int:
        """Of its memory, now."""

    def empty(self, nbytes: int) -> torch.Tensor:
        """Uninitialised device memory, uint8; raises DoesNotFit."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueues a copy on the copy stream. ``source`` must stay as it is until an event after it is complete."""

    def copies_wait_for(self, event: Event) -> None:
        """What is enqueued on the copy stream from now on happens after ``event``."""

    def compute_waits_for(self, event: Event) -> None:
        """What is enqueued on the compute stream from now on happens after ``event``."""

    def copied(self) -> Event:
        """Records where the copy stream is now."""

    def computed(self, read: Sequence[torch.Tensor], emptied: torch.Tensor) -> Event:
        """Records where the compute stream is now. What was enqueued there reads ``read`` until the event is complete, and then ``emptied`` is worth
        nothing any more (a simulation poisons it)."""

    def finish(self) -> None:
        """Waits until the compute stream has nothing to do."""

    def page_lock(self, pointer: int, nbytes: int) -> bool:
        """Page-locks host memory so that copies from it run beside compute; False where that fails, and copies go another way."""

    def page_unlock(self, pointer: int) -> None:
        """The other way, once nothing is copied from there any more; nothing where it is not locked."""

    def empty_cache(self) -> None:
        """Gives back what torch holds of the device's memory and nobody uses."""


class Accelerator:
    """A CUDA-like device through torch's own streams and events."""

    def __init__(self, name: str) -> None:
        self._device = torch.device(name)
        module = torch.get_device_module(self._device)
        if not module.is_available():
            raise Unavailable(f'[worker] device is "{name}" and torch finds no such device here; set it to "cpu" or "auto"')
        if self._device.index is not None and self._device.index >= module.device_count():
            raise Unavailable(f'[worker] device is "{name}" and there are {module.device_count()} of them')
        self._module: Any = module
        module.set_device(self._device)
        self._copies = module.Stream(self._device)
        self._page_locked = False
        self._bounce = _Bounce()

    @property
    def torch_device(self) -> torch.device:
        return self._device

    def free_bytes(self) -> int:
        return int(self._module.mem_get_info(self._device)[0])

    def empty(self, nbytes: int) -> torch.Tensor:
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError:
            raise no_room(str(self._device), self.free_bytes(), nbytes) from None

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with self._module.stream(self._copies):
            if self._page_locked:
                target.copy_(source, non_blocking=True)
            else:
                self._bounce.copy(target, source, self._copies)

    def copies_wait_for(self, event: Event) -> None:
        self._copies.wait_event(event)

    def compute_waits_for(self, event: Event) -> None:
        self._module.current_stream(self._device).wait_event(event)

    def copied(self) -> Event:
        event: Event = self._copies.record_event()
        return event

    def computed(self, read: Sequence[torch.Tensor], emptied: torch.Tensor) -> Event:
        event: Event = self._module.current_stream(self._device).record_event()
        return event

    def finish(self) -> None:
        self._module.current_stream(self._device).synchronize()

    def page_lock(self, pointer: int, nbytes: int) -> bool:
        if self._device.type == "cuda":
            from torch.cuda import _pin_memory_utils  # what torch itself registers host memory with

            pin: Callable[[int, int], None] = _pin_memory_utils.pin_memory
            try:
                pin(pointer, nbytes)
                self._page_locked = True
            except RuntimeError:
                self._forget_error()
        return self._page_locked

    def _forget_error(self) -> None:
        """CUDA keeps an error that was reported, and gives it to whoever asks next: a launch that has nothing to do with it."""
        with suppress(RuntimeError):
            torch.zeros(1, device=self._device)

    def page_unlock(self, pointer: int) -> None:
        if self._page_locked:
            from torch.cuda import _pin_memory_utils

            self._module.synchronize(self._device)
            unpin: Callable[[int], None] = _pin_memory_utils.unpin_memory
            unpin(pointer)
            self._page_locked = False

    def empty_cache(self) -> None:
        self._module.empty_cache()


def no_room(device: str, free_bytes: int, nbytes: int) -> DoesNotFit:
    """Where the card's memory is not what it was when the plan was made."""
    return DoesNotFit(
        f"{device} has {human_size(free_bytes)} free and {human_size(nbytes)} are wanted for weights: {human_size(nbytes - free_bytes)} are missing; "
        "something else has taken memory of the card since the plan was made"
    )


class _Bounce:
    """Two pieces of page-locked memory that copies pass through by turns: while one is on its way the other is filled."""

    def __init__(self) -> None:
        self._pieces: list[torch.Tensor] = []
        self._sent: list[Any] = [None, None]
        self._turn = 0

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        """``source`` has been read when this returns."""
        if not self._pieces:
            self._pieces = [torch.empty(BOUNCE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        for at in range(0, source.numel(), BOUNCE_BYTES):
            self._turn = 1 - self._turn
            if (sent := self._sent[self._turn]) is not None:
                sent.synchronize()
            some = source[at : at + BOUNCE_BYTES]
            piece = self._pieces[self._turn][: some.numel()]
            piece.copy_(some)
            target[at : at + some.numel()].copy_(piece, non_blocking=True)
            self._sent[self._turn] = stream.record_event()


def find(name: str) -> str:
    """``[worker] device`` as torch names it: "auto" becomes the first accelerator there is, or "cpu"."""
    if name == "auto":
        there = torch.accelerator.current_accelerator(check_available=True)
        return f"{there.type}:0" if there is not None and there.type in KINDS else "cpu"
    return f"{name}:0" if name in KINDS else name


def describe(name: str) -> str:
    """For logs and status: the device and what it is called."""
    kind = name.partition(":")[0]
    return f"{name} ({torch.get_device_module(kind).get_device_name(name)})" if kind in KINDS else name
