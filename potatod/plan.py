"""Where every part lives, decided once and purely.

A cyclic scan defeats a cache that evicts: with LRU a model 1 % too large is read whole, every sweep. So residents are chosen
here, once, and never evicted: with R of N bytes resident exactly N − R are read per sweep. They are *spread*: of every layer
about the same share is resident, so that reading neither outruns compute nor waits for it, and the ring need hold only
the streamed parts of a few layers. Of a layer at most one matrix is resident in part: its first bands.

    manifest + pool bytes (+ a card's bytes) ─▶ make() ─▶ Plan: home and offset of every part, size of the ring, slots

Where a card computes, its own memory comes first: what lies there for good is neither read nor uploaded again. What is left passes through
slots, each as large as what is uploaded of the largest layer; and each part leaves the ring as soon as its own copy is complete, so that the
ring need hold parts instead of layers.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .errors import DoesNotFit
from .manifest import Manifest, Part
from .sizes import human_size

Home = Literal["vram", "ram", "disk"]

#: How many layers' streamed parts the ring should hold where nothing is known of rates: one computed, one complete and waiting, one being read.
LAYERS_AHEAD: Final = 3.0
#: With slots: one layer's that is copied, and the next one's that comes meanwhile.
_LAYERS_TO_A_CARD: Final = 2.0
#: Parts that the ring must hold where each leaves it by itself: one copied, one read, one skipped at the ring's end.
_PARTS_AHEAD: Final = 3
#: The head's bands are computed with together up to so many bytes, or a layer's where those are fewer.
HEAD_STOP_BYTES: Final = 32 << 20
#: Slots that overlap copy and compute; more would only hold more.
_SLOTS: Final = 2


@dataclass(frozen=True, slots=True)
class Placed:
    """A part and its home. Its index in :attr:`Plan.parts` is its name on the bytes wire."""

    #: position in the sweep: 0 … layers − 1 are the layers, then pieces of the head
    stop: int
    file: str
    #: bytes, in the file
    offset: int
    length: int
    checksum: str
    home: Home
    #: bytes, in the pool or in the card's memory for residents; -1 for parts that pass through the ring every sweep
    home_offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What both stages of the engine agree on. Parts stand in the order of the sweep."""

    parts: tuple[Placed, ...]
    pool_bytes: int
    ring_offset: int
    ring_bytes: int
    #: places in the card's memory that layers pass through, and bytes of each; none on a cpu, and where a card holds all
    slots: int = 0
    slot_bytes: int = 0

    @property
    def resident_bytes(self) -> int:
        """In the pool for good."""
        return self._bytes("ram")

    @property
    def streamed_bytes(self) -> int:
        """Read from disk for each sweep."""
        return self._bytes("disk")

    @property
    def card_bytes(self) -> int:
        """In the card's memory for good."""
        return self._bytes("vram")

    @property
    def uploaded_bytes(self) -> int:
        """Copied to the card for each sweep."""
        return self._bytes("ram") + self._bytes("disk") if self.slots else 0

    @property
    def weights_bytes(self) -> int:
        """Computed with in each sweep."""
        return sum(part.length for part in self.parts)

    def _bytes(self, home: Home) -> int:
        return sum(part.length for part in self.parts if part.home == home)


def sweep_parts(manifest: Manifest) -> list[tuple[int, Part]]:
    """``(stop, part)`` for every part that a sweep needs, in its order: layers, then the head's bands, as many at a stop as make up a layer.

    What is computed together does not depend on homes, or bits might.
    """
    layers = sorted((s for s in manifest.shards if s.kind == "layer"), key=lambda s: s.layer)
    parts = [(stop, part) for stop, shard in enumerate(layers) for part in shard.parts]
    most = min(HEAD_STOP_BYTES, sum(part.length for _, part in parts) // max(1, len(layers)))
    stop, taken = len(layers), 0
    for part in (part for shard in manifest.shards if shard.kind == "head" for part in shard.parts):
        if taken and taken + part.length > most:
            stop, taken = stop + 1, 0
        parts.append((stop, part))
        taken += part.length
    return parts


def smallest_pool(lengths: Sequence[tuple[int, int]], card: bool = False) -> int:
    """Bytes of the smallest pool that works, for ``(stop, length)`` of every part.

    A stop's parts lie in the ring together while it is computed, and one skip at the ring's end may be as large as the
    largest part; a second one lets the reader work ahead. With a ``card`` parts pass one by one.
    """
    largest = max((length for _, length in lengths), default=0)
    return _PARTS_AHEAD * largest if card else _largest_group(lengths, range(len(lengths))) + 2 * largest


def enough(manifest: Manifest, pool_bytes: int, card: bool = False) -> None:
    """Raises :class:`DoesNotFit` where no plan fits into a pool of so many bytes."""
    lengths = [(stop, part.length) for stop, part in sweep_parts(manifest)]
    least = min(smallest_pool(lengths, card), sum(length for _, length in lengths))
    if pool_bytes < least:
        raise DoesNotFit(
            f"[pool] size of {human_size(pool_bytes)} is too small for this model: the smallest that works is {-(-least // 1024)}KiB, "
            f"{human_size(least - pool_bytes)} more"
        )


@dataclass(frozen=True, slots=True)
class _Unit:
    """Parts that get their home together."""

    #: the layer; one more than the last for all of the head
    layer: int
    #: bytes
    length: int
    #: in the order of the sweep
    indices: tuple[int, ...]
    #: small matrices first, and a matrix's bands after each other
    rank: tuple[int, int]


def _units(parts: Sequence[tuple[int, Part]], layers: int, *, whole: bool = False) -> list[_Unit]:
    """Every part by itself; ``whole``: the bands of a matrix that are computed with together, as a card needs them."""
    matrices: list[list[int]] = []
    for index, (stop, part) in enumerate(parts):
        if matrices and parts[matrices[-1][0]][0] == stop and _goes_on(parts[matrices[-1][0]][1], part):
            matrices[-1].append(index)
        else:
            matrices.append([index])
    units = []
    for matrix in matrices:
        layer, length = min(parts[matrix[0]][0], layers), sum(parts[index][1].length for index in matrix)
        for indices in [tuple(matrix)] if whole else [(index,) for index in matrix]:
            rank = (length if layer < layers else 0, indices[0])
            units.append(_Unit(layer, sum(parts[index][1].length for index in indices), indices, rank))
    return units


def _goes_on(first: Part, then: Part) -> bool:
    """Whether this is another band of the same matrix."""
    return bool(then.tensors) and then.tensors[0].first_row is not None and first.tensors[0].name == then.tensors[0].name


def make(
    manifest: Manifest, pool_bytes: int, card_bytes: int | None = None, layers_ahead: float = LAYERS_AHEAD, under_way_bytes: int = 0
) -> Plan:
    """The plan for a pool of at most ``pool_bytes``, and for a card that has ``card_bytes`` for weights where one computes; the ring holds what streams
    of ``layers_ahead`` layers and ``under_way_bytes`` of reads, where that is more than it must.

    Raises :class:`DoesNotFit` with the smallest size that works.
    """
    parts = sweep_parts(manifest)
    lengths = [(stop, part.length) for stop, part in parts]
    card = None if card_bytes is None else _on_card(lengths, _units(parts, manifest.layers, whole=True), card_bytes)
    on_card = card.resident if card else set()
    units = [unit for unit in _units(parts, manifest.layers) if unit.indices[0] not in on_card]
    others = [index for index in range(len(parts)) if index not in on_card]
    loading = _ring_needed(lengths, on_card, card is not None)
    if loading + sum(lengths[i][1] for i in others) <= pool_bytes:
        return _place(parts, set(others), loading, card)
    enough(manifest, pool_bytes, card is not None)
    ring = _ring_for(lengths, others, pool_bytes, _LAYERS_TO_A_CARD if card else layers_ahead, under_way_bytes)
    while True:
        resident = _spread(units, pool_bytes - ring)
        needed = _ring_needed(lengths, set(range(len(parts))) - resident, card is not None)
        if needed <= ring:
            return _place(parts, resident, pool_bytes - sum(lengths[i][1] for i in resident), card)
        ring = needed  # residents shrink, so this ends


@dataclass(frozen=True, slots=True)
class _Card:
    #: indices of the parts that stay there
    resident: set[int]
    slots: int
    slot_bytes: int


def _on_card(lengths: Sequence[tuple[int, int]], units: Sequence[_Unit], budget: int) -> _Card:
    everything = range(len(lengths))
    total = sum(length for _, length in lengths)
    if total <= budget:
        return _Card(set(everything), 0, 0)
    whole = _largest_group(lengths, everything)
    if budget < whole:
        raise DoesNotFit(
            f"the card has {human_size(budget)} for weights and a layer needs {human_size(whole)}: {human_size(whole - budget)} are missing; "
            'free memory of the card, or set [worker] device = "cpu"'
        )
    slots = _SLOTS if budget >= _SLOTS * whole else 1
    # With the share x resident a slot holds (1 − x) · whole, and x · total + slots · slot = budget.
    share = (budget - slots * whole) / (total - slots * whole) if total > slots * whole else 0.0
    slot = int(whole * (1 - share))
    while True:
        resident = _spread(units, budget - slots * slot)
        needed = _largest_group(lengths, (i for i in everything if i not in resident))
        if needed <= slot:
            return _Card(resident, slots, needed)
        slot = needed  # residents shrink, so this ends


def _largest_group(lengths: Sequence[tuple[int, int]], indices: Iterable[int]) -> int:
    """Bytes of the most that is computed with together: the parts of one stop."""
    sums: dict[int, int] = {}
    for index in indices:
        stop, length = lengths[index]
        sums[stop] = sums.get(stop, 0) + length
    return max(sums.values(), default=0)


def _ring_for(lengths: Sequence[tuple[int, int]], candidates: Sequence[int], pool_bytes: int, layers_ahead: float, under_way_bytes: int) -> int:
    """Bytes for the streamed parts of the layers ahead, if each layer kept the same share resident, and for what is being read."""
    total = sum(lengths[i][1] for i in candidates)
    # With the share x resident the ring holds (1 − x) · ahead, and x · total + ring = pool.
    ahead = layers_ahead * _largest_group(lengths, candidates)
    share = max(0.0, min(1.0, (pool_bytes - ahead) / max(total - ahead, 1))) if total > ahead else 0.0
    wanted = int(ahead * (1 - share)) + min(under_way_bytes, total // 8)
    return min(max(wanted, 3 * max(lengths[i][1] for i in candidates)), pool_bytes)


def _ring_needed(lengths: Sequence[tuple[int, int]], passing: set[int], card: bool) -> int:
    """Bytes of the smallest ring through which these parts pass."""
    if not passing:
        return 0
    largest = max(lengths[i][1] for i in passing)
    if card:
        return min(_PARTS_AHEAD, len(passing)) * largest
    return _largest_group(lengths, passing) + (2 if len(passing) > 1 else 1) * largest


def _spread(units: Sequence[_Unit], budget: int) -> set[int]:
    """Indices of the residents: always the layer whose resident share is smallest gets its next unit that fits, small matrices first.

    Small ones first because each costs a read of its own every sweep, whatever its size.
    """
    sums: dict[int, int] = {}
    waiting: dict[int, list[_Unit]] = {}
    for unit in sorted(units, key=lambda unit: unit.rank, reverse=True):
        sums[unit.layer] = sums.get(unit.layer, 0) + unit.length
        waiting.setdefault(unit.layer, []).append(unit)  # so that pop() gives the first
    chosen: set[int] = set()
    heap = [(0.0, layer) for layer in sums]
    heapq.heapify(heap)
    while heap:
        share, layer = heapq.heappop(heap)
        if not waiting[layer]:
            continue
        unit = waiting[layer].pop()
        if unit.length > budget:
            continue  # a larger one would fit no better, and a later band would leave a hole
        budget -= unit.length
        chosen.update(unit.indices)
        heapq.heappush(heap, (share + unit.length / sums[layer], layer))
    return chosen


def _place(parts: Sequence[tuple[int, Part]], resident: set[int], ring_bytes: int, card: _Card | None) -> Plan:
    placed: list[Placed] = []
    ends: dict[Home, int] = {"ram": 0, "vram": 0}
    for index, (stop, part) in enumerate(parts):
        home: Home = "ram" if index in resident else "vram" if card and index in card.resident else "disk"
        placed.append(Placed(stop, part.file, part.offset, part.length, part.checksum, home, ends.get(home, -1)))
        if home in ends:
            ends[home] += part.length
    at = ends["ram"]
    slots, slot_bytes = (card.slots, card.slot_bytes) if card else (0, 0)
    return Plan(tuple(placed), pool_bytes=at + ring_bytes, ring_offset=at, ring_bytes=ring_bytes, slots=slots, slot_bytes=slot_bytes)
