"""Where layers compute, as a thin interface: streams, events, copies that do not wait.

Three kinds. The *cpu* needs none of this: its layers compute from the pool (weights.PoolLender). An *accelerator* is CUDA, or whatever else torch
drives through the same names (ROCm is CUDA to torch; XPU has streams and events of the same shape). The *simulated* device (simulated.py)
is host memory behind FIFO streams that land late, for tests of the protocol without any hardware.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from potatod.errors import DoesNotFit, Unavailable


class Event(Protocol):
    """A point in a stream. Complete when everything recorded before it has happened."""

    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


class Device(Protocol):
    """What slots.py needs of a device. Copies run on one stream of their own, layers on the compute stream."""

    @property
    def torch_device(self) -> torch.device: ...

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

    def computed(self) -> Event:
        """Records where the compute stream is now."""

    def computing(self) -> AbstractContextManager[Any]:
        """A context in which torch's work goes to the compute stream."""

    def discard(self, slot: torch.Tensor) -> None:
        """The slot's content is worth nothing any more (a simulation poisons it)."""

    def page_lock(self, pointer: int, nbytes: int) -> bool:
        """Page-locks host memory so that copies from it run beside compute; False where that fails."""


class Accelerator:
    """A CUDA-like device through torch's own streams and events."""

    def __init__(self, name: str) -> None:
        self._device = torch.device(name)
        module = torch.get_device_module(self._device)
        if not module.is_available():
            raise Unavailable(f'[worker] device is "{name}" and torch finds no such device here; set it to "cpu" or "auto"')
        if self._device.index is not None and self._device.index >= module.device_count():
            raise Unavailable(f'[worker] device is "{name}" and there are {module.device_count()} of them')
        self._module = module
        module.set_device(self._device)
        self._copies = module.Stream(self._device)

    @property
    def torch_device(self) -> torch.device:
        return self._device

    def empty(self, nbytes: int) -> torch.Tensor:
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError:
            free, total = self._module.mem_get_info(self._device)
            raise DoesNotFit(
                f"{self._device} has {free} of {total} bytes free and a slot needs {nbytes}: {nbytes - free} bytes are missing"
            ) from None

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with self._module.stream(self._copies):
            target.copy_(source, non_blocking=True)

    def copies_wait_for(self, event: Event) -> None:
        self._copies.wait_event(event)

    def compute_waits_for(self, event: Event) -> None:
        self._module.current_stream(self._device).wait_event(event)

    def copied(self) -> Event:
        event: Event = self._copies.record_event()
        return event

    def computed(self) -> Event:
        event: Event = self._module.current_stream(self._device).record_event()
        return event

    def computing(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._module.device(self._device)
        return context

    def discard(self, slot: torch.Tensor) -> None:
        pass

    def page_lock(self, pointer: int, nbytes: int) -> bool:
        if self._device.type != "cuda":
            return False
        from torch.cuda import _pin_memory_utils  # what torch itself registers host memory with

        pin: Callable[[int, int], None] = _pin_memory_utils.pin_memory
        try:
            pin(pointer, nbytes)
        except RuntimeError:
            return False
        return True


def find(name: str) -> str:
    """``[worker] device`` as torch names it: "auto" becomes the first CUDA device, or "cpu"."""
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if re.fullmatch(r"cuda", name):
        return "cuda:0"
    return name


def describe(name: str) -> str:
    """For logs and status: the device and what it is called."""
    if name.startswith("cuda"):
        return f"{name} ({torch.cuda.get_device_name(name)})"
    return name
