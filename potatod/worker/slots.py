"""Slots: places in VRAM that weights pass through. While one computes the next one fills.

    copy stream      ── upload n+1 → B ──────┬── upload n+2 → A ─────
                                             ▼ copied(B)     ▲ computed(A)
    compute stream   ── layer n from A ──────┬── layer n+1 from B ──

NOTE [ slots ]
- A slot is filled only after the compute that read it last (``copies_wait_for`` its event), and computed from only after its copies
  (``compute_waits_for`` theirs). Nothing is ever decided by time.
- The pool's bytes belong to the copy until its event is complete; only then do streamed parts go back to the reader.
- While we wait for bytes, complete copies are retired first: they hold the ring's space that the reader needs to go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .device import Device, Event
from .weights import Arrivals, Bound, Group, bind_views

#: Every part starts at a multiple of this in its slot: below 64 kernels change bits or crash.
_ALIGNMENT = 4096


@dataclass(slots=True, eq=False)
class Slot:
    memory: torch.Tensor
    #: the compute that read it last
    computed: Event | None = None
    #: what lies in it, or is on its way
    group: Group | None = None
    copied: Event | None = None


class SlotLender:
    """Lends groups from device memory. With one slot it works too, without overlap."""

    def __init__(self, device: Device, pool: torch.Tensor, arrivals: Arrivals, groups: Sequence[Group], slots: int) -> None:
        self._device = device
        self._pool = pool
        self._arrivals = arrivals
        size = max(group.nbytes for group in groups)
        self._slots = deque(Slot(device.empty(size)) for _ in range(slots))
        #: copies that may still be under way, oldest first, and what goes back when they are complete
        self._copying: deque[tuple[Event, Group]] = deque()

    def upload(self, group: Group) -> None:
        """Starts the copy if the bytes are there and a slot is free; otherwise lend() will."""
        self._retire()
        filled = [slot for slot in self._slots if slot.group is not None]
        free = len(self._slots) - len(filled)
        if not filled:
            free -= 1  # for the group that is lent before this one
        if free > 0 and self._filled(group) is None and self._arrivals.here(group):
            self._fill(group)

    @contextmanager
    def lend(self, group: Group) -> Iterator[list[Bound]]:
        slot = self._filled(group) or self._fill(group)
        assert slot.copied is not None
        self._device.compute_waits_for(slot.copied)
        offsets = _offsets(group)
        yield bind_views(group, slot.memory, offsets)
        slot.computed = self._device.computed()
        slot.group = None
        self._device.discard(slot.memory)
        self._retire()

    def wait(self) -> bool:
        """Before waiting for bytes: gives back what the oldest copy holds; False where none is under way."""
        if not self._copying:
            return False
        self._copying[0][0].synchronize()
        self._retire()
        return True

    def _filled(self, group: Group) -> Slot | None:
        return next((slot for slot in self._slots if slot.group is group), None)

    def _fill(self, group: Group) -> Slot:
        offsets = self._arrivals.await_parts(group)
        slot = next(slot for slot in self._slots if slot.group is None)  # the one used longest ago
        self._slots.remove(slot)
        self._slots.append(slot)
        if slot.computed is not None:
            self._device.copies_wait_for(slot.computed)
        for part, source, target in zip(group.parts, offsets, _offsets(group), strict=True):
            self._device.copy(slot.memory[target : target + part.length], self._pool[source : source + part.length])
        slot.group, slot.copied = group, self._device.copied()
        self._copying.append((slot.copied, group))
        return slot

    def _retire(self) -> None:
        while self._copying and self._copying[0][0].query():
            self._arrivals.release(self._copying.popleft()[1])


def _offsets(group: Group) -> list[int]:
    """Where each part begins in a slot."""
    offsets, at = [], 0
    for part in group.parts:
        offsets.append(at)
        at += part.length
    return offsets
