"""Where every part lives, decided once and purely.

A cyclic scan defeats a cache that evicts: with LRU a model 1 % too large is read whole, every sweep. So residents are chosen
here, once, and never evicted: with R of N bytes resident exactly N − R are read per sweep. They are *spread*: of every layer
about the same share is resident, so that reading neither outruns compute nor waits for it, and the ring need hold only
the streamed parts of about three layers.

    manifest + pool bytes ─▶ make() ─▶ Plan: home and offset of every part, size of the ring
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .errors import DoesNotFit
from .manifest import Manifest, Part
from .sizes import human_size

Home = Literal["ram", "disk"]

#: How many layers' streamed parts the ring should hold: one computed, one complete and waiting, one being read.
LAYERS_AHEAD: Final = 3


@dataclass(frozen=True, slots=True)
class Placed:
    """A part and its home. Its index in :attr:`Plan.parts` is its name on the bytes wire."""

    #: position in the sweep: 0 … layers − 1 are the layers, then the head
    stop: int
    file: str
    #: bytes, in the file
    offset: int
    length: int
    checksum: str
    home: Home
    #: bytes, in the pool; -1 for parts that pass through the ring
    pool_offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What both stages of the engine agree on. Parts stand in the order of the sweep."""

    parts: tuple[Placed, ...]
    pool_bytes: int
    ring_offset: int
    ring_bytes: int

    @property
    def resident_bytes(self) -> int:
        return sum(part.length for part in self.parts if part.home == "ram")

    @property
    def streamed_bytes(self) -> int:
        """Read from disk for each sweep."""
        return sum(part.length for part in self.parts if part.home == "disk")


def sweep_parts(manifest: Manifest) -> list[tuple[int, Part]]:
    """``(stop, part)`` for every part that a sweep needs, in its order: layers, then the head's bands."""
    layers = sorted((s for s in manifest.shards if s.kind == "layer"), key=lambda s: s.layer)
    heads = [s for s in manifest.shards if s.kind == "head"]
    return [(stop, part) for stop, shard in enumerate([*layers, *heads]) for part in shard.parts]


def smallest_pool(lengths: Sequence[tuple[int, int]]) -> int:
    """Bytes of the smallest pool that works, for ``(stop, length)`` of every part.

    A layer's parts lie in the ring together while it is computed, and one skip at the ring's end may be as large as the
    largest part; a second one lets the reader work ahead. The head's bands pass one by one.
    """
    last = max((stop for stop, _ in lengths), default=0)
    layers = _sums((stop, length) for stop, length in lengths if stop != last)
    largest = max((length for _, length in lengths), default=0)
    return max([*layers.values(), largest]) + 2 * largest


def make(manifest: Manifest, pool_bytes: int) -> Plan:
    """The plan for a pool of at most ``pool_bytes``; raises :class:`DoesNotFit` with the smallest size that works."""
    parts = sweep_parts(manifest)
    lengths = [(stop, part.length) for stop, part in parts]
    total = sum(length for _, length in lengths)
    if total <= pool_bytes:
        return _place(parts, resident=set(range(len(parts))), ring_bytes=0)
    least = smallest_pool(lengths)
    if pool_bytes < least:
        raise DoesNotFit(
            f"[pool] size of {human_size(pool_bytes)} is too small for this model: the smallest that works is {-(-least // 1024)}KiB, "
            f"{human_size(least - pool_bytes)} more"
        )
    ring = _ring_for(lengths, pool_bytes)
    while True:
        resident = _spread(lengths, pool_bytes - ring)
        needed = _ring_needed(lengths, resident)
        if needed <= ring:
            return _place(parts, resident, ring_bytes=pool_bytes - sum(lengths[i][1] for i in resident))
        ring = needed  # residents shrink, so this ends


def _sums(lengths: Iterable[tuple[int, int]]) -> dict[int, int]:
    sums: dict[int, int] = {}
    for stop, length in lengths:
        sums[stop] = sums.get(stop, 0) + length
    return sums


def _ring_for(lengths: Sequence[tuple[int, int]], pool_bytes: int) -> int:
    """Bytes for LAYERS_AHEAD layers' streamed parts, if each layer kept the same share resident; not below what must be."""
    last = max(stop for stop, _ in lengths)
    total = sum(length for _, length in lengths)
    largest_layer = max(_sums((stop, length) for stop, length in lengths if stop != last).values(), default=0)
    # With the share x resident the ring holds LAYERS_AHEAD · (1 − x) · largest_layer, and x · total + ring = pool.
    ahead = LAYERS_AHEAD * largest_layer
    share = max(0.0, min(1.0, (pool_bytes - ahead) / max(total - ahead, 1))) if total > ahead else 0.0
    wanted = int(ahead * (1 - share))
    return min(max(wanted, 3 * max(length for _, length in lengths)), pool_bytes)


def _ring_needed(lengths: Sequence[tuple[int, int]], resident: set[int]) -> int:
    streamed = [(stop, length) for i, (stop, length) in enumerate(lengths) if i not in resident]
    if not streamed:
        return 0
    last = max(stop for stop, _ in lengths)
    layers = _sums((stop, length) for stop, length in streamed if stop != last).values()
    largest = max(length for _, length in streamed)
    return max([*layers, largest]) + (2 if len(streamed) > 1 else 1) * largest


def _spread(lengths: Sequence[tuple[int, int]], budget: int) -> set[int]:
    """Indices of the residents: always the stop whose resident share is smallest gets its next part that fits, small parts first.

    Small ones first because each costs a read of its own every sweep, whatever its size.
    """
    sums = _sums(lengths)
    waiting: dict[int, list[int]] = {stop: [] for stop in sums}
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i][1], -i)):
        waiting[lengths[index][0]].append(index)  # largest first, so that pop() gives the smallest
    chosen: set[int] = set()
    heap = [(0.0, stop) for stop in sums]
    heapq.heapify(heap)
    while heap:
        share, stop = heapq.heappop(heap)
        if not waiting[stop]:
            continue
        index = waiting[stop].pop()
        length = lengths[index][1]
        if length > budget:
            continue  # nothing smaller waits here
        budget -= length
        chosen.add(index)
        heapq.heappush(heap, (share + length / sums[stop], stop))
    return chosen


def _place(parts: Sequence[tuple[int, Part]], resident: set[int], ring_bytes: int) -> Plan:
    placed, at = [], 0
    for index, (stop, part) in enumerate(parts):
        home: Home = "ram" if index in resident else "disk"
        placed.append(
            Placed(stop, part.file, part.offset, part.length, part.checksum, home, at if home == "ram" else -1)
        )
        at += part.length if home == "ram" else 0
    return Plan(tuple(placed), pool_bytes=at + ring_bytes, ring_offset=at, ring_bytes=ring_bytes)
