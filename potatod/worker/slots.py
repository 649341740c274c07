"""The card's memory: what stays there, and slots that the rest passes through. While one slot computes the next one fills.

    copy stream      ── upload n+1 → B ──────┬── upload n+2 → A ─────
                                             ▼ copied(B)     ▲ computed(A)
    compute stream   ── layer n from A ──────┬── layer n+1 from B ──

NOTE [ slots ]
- A slot is filled only after the compute that read it last (``copies_wait_for`` its event), and computed from only after its copies
  (``compute_waits_for`` theirs). Nothing is ever decided by time.
- The pool's bytes belong to the copy until its event is complete; only then do streamed parts go back to the reader, each by itself.
- While we wait for bytes, complete copies are retired first: they hold the ring's space that the reader needs to go on.
- Parts are copied in the order in which the reader brings them, or it would wait for space that waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from potatod.plan import Plan

from .banded import Scratch, memory_of
from .device import Device, Event
from .weights import Arrivals, Bound, Group, bind_views


@dataclass(slots=True, eq=False)
class Slot:
    memory: torch.Tensor
    #: the compute that read it last
    computed: Event | None = None
    #: what lies in it, or is on its way
    group: Group | None = None
    copied: Event | None = None


@dataclass(slots=True)
class _Run:
    """Bytes that lie side by side in the pool and will in the card's memory: one copy."""

    source: int
    memory: torch.Tensor
    target: int
    length: int
    parts: list[int]

    def goes_on_at(self, source: int, memory: torch.Tensor, target: int) -> bool:
        return memory is self.memory and source == self.source + self.length and target == self.target + self.length


class SlotLender:
    """Lends groups from the card's memory. With one slot it works too, without overlap."""

    def __init__(self, device: Device, pool: torch.Tensor, arrivals: Arrivals, plan: Plan, groups: Sequence[Group]) -> None:
        self._device = device
        self._pool = pool
        self._arrivals = arrivals
        self._plan = plan
        self._kept = device.empty(plan.card_bytes)
        self._slots = deque(Slot(device.empty(plan.slot_bytes)) for _ in range(plan.slots))
        #: where a part begins in its slot
        self._in_slot = {index: offset for group in groups for index, offset in self._layout(group)}
        #: parts that lie in the card's memory for good, or are on their way
        self._loaded: set[int] = set()
        #: views of groups that lie there as a whole
        self._whole: dict[int, list[Bound]] = {}
        #: copies that may still be under way, oldest first, and the parts that go back when they are complete
        self._copying: deque[tuple[Event, list[int]]] = deque()
        #: a card's homes are those of whole matrices, so that nothing has to be put together there
        self._scratch = Scratch()
        #: the group that is lent next
        self._next = groups[0]

    def upload(self, group: Group) -> None:
        """Starts the copy if the bytes are there and a slot is free; otherwise lend() will."""
        self.retire()
        before, self._next = self._next, group
        free = sum(slot.group is None for slot in self._slots)
        if self._in_slots(before) and self._filled(before) is None:
            free -= 1  # it comes first
        if free > 0 and self._in_slots(group) and self._filled(group) is None and self._arrivals.here(self._on_the_way(group)):
            self._fill(group)

    @contextmanager
    def lend(self, group: Group) -> Iterator[list[Bound]]:
        first = group.indices[0]
        self._scratch.begin()
        if first in self._whole:
            yield self._whole[first]
            return
        slot = self._filled(group) or self._fill(group)
        assert slot.copied is not None
        self._device.compute_waits_for(slot.copied)
        views = bind_views(group, [self._lies(index, slot) for index in group.indices], self._scratch)
        if not self._in_slots(group):
            self._whole[first] = views
        yield views
        slot.computed = self._device.computed([each for _, value, _ in views for each in memory_of(value)], slot.memory)
        slot.group = None
        self.retire()

    def wait(self) -> bool:
        """Before waiting for bytes: gives back what the oldest copy holds; False where none is under way."""
        if not self._copying:
            return False
        self._copying[0][0].synchronize()
        self.retire()
        return True

    def retire(self) -> bool:
        """Gives back what copies that are complete have held; whether others are still under way."""
        while self._copying and self._copying[0][0].query():
            self._arrivals.free(self._copying.popleft()[1])
        return bool(self._copying)

    def _layout(self, group: Group) -> Iterator[tuple[int, int]]:
        at = 0
        for index in self._in_slots(group):
            yield index, at
            at += self._plan.parts[index].length

    def _in_slots(self, group: Group) -> list[int]:
        """Its parts that are uploaded for every sweep."""
        return [index for index in group.indices if self._plan.parts[index].home != "vram"]

    def _on_the_way(self, group: Group) -> list[int]:
        """Its parts that are to be uploaded now."""
        return [index for index in group.indices if index not in self._loaded]

    def _lies(self, index: int, slot: Slot) -> tuple[torch.Tensor, int]:
        part = self._plan.parts[index]
        return (self._kept, part.home_offset) if part.home == "vram" else (slot.memory, self._in_slot[index])

    def _filled(self, group: Group) -> Slot | None:
        return next((slot for slot in self._slots if slot.group is group), None)

    def _fill(self, group: Group) -> Slot:
        slot = self._take() if self._in_slots(group) else Slot(self._kept[:0])
        run: _Run | None = None
        for index in self._on_the_way(group):
            if run is not None and not self._arrivals.here([index]):
                self._copy(run)  # what is here does not wait for what is not
                run = None
            [source], (memory, target) = self._arrivals.await_parts([index]), self._lies(index, slot)
            if run is None or not run.goes_on_at(source, memory, target):
                if run is not None:
                    self._copy(run)
                run = _Run(source, memory, target, 0, [])
            run.length += self._plan.parts[index].length
            run.parts.append(index)
        if run is not None:
            self._copy(run)
        self._loaded.update(index for index in group.indices if self._plan.parts[index].home == "vram")
        slot.group, slot.copied = group, self._device.copied()
        return slot

    def _take(self) -> Slot:
        """The slot that was used longest ago; what is copied from now on waits until it has been computed from."""
        slot = next(slot for slot in self._slots if slot.group is None)
        self._slots.remove(slot)
        self._slots.append(slot)
        if slot.computed is not None:
            self._device.copies_wait_for(slot.computed)
        return slot

    def _copy(self, run: _Run) -> None:
        self._device.copy(run.memory[run.target : run.target + run.length], self._pool[run.source : run.source + run.length])
        self._copying.append((self._device.copied(), run.parts))
