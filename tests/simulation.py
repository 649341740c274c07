"""The pipeline event by event: one reader, the ring, one worker, and clocks instead of bytes. What plan and forecast are held against."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable

from potatod.plan import Placed, Plan
from potatod.pool import Ring


def sweep_s(made: Plan, disk: float, compute_s: Callable[[list[Placed]], float], between_s: float = 0.0, sweeps: int = 8) -> float:
    """Seconds per sweep once it runs: the mean of the later half of ``sweeps``.

    ``disk``: bytes a second. ``compute_s``: of the parts that are computed together. ``between_s``: from the last band of a sweep to the next sweep.
    """
    groups = [list(parts) for _, parts in itertools.groupby(made.parts, lambda part: part.stop)]
    streamed = [part for part in made.parts if part.home == "disk"]
    ring = Ring(made.ring_offset, made.ring_bytes)
    reads = itertools.cycle(streamed)
    wanted = next(reads, None)
    here: deque[int] = deque()
    lent: list[int] = []
    turns = itertools.cycle(groups)
    group = next(turns)
    reading = computing = False
    ends: list[float] = []
    events: list[tuple[float, str, int]] = []
    now, idle_until = 0.0, 0.0
    while len(ends) < sweeps:
        if not reading and wanted is not None and (offset := ring.take(wanted.length)) is not None:
            heapq.heappush(events, (now + wanted.length / disk, "read", offset))
            reading, wanted = True, next(reads)
        needed = sum(part.home == "disk" for part in group)
        if not computing and len(here) >= needed:
            lent = [here.popleft() for _ in range(needed)]
            heapq.heappush(events, (max(now, idle_until) + compute_s(group), "computed", 0))
            computing = True
        assert events, "nothing moves any more: the ring is too small"
        now, what, offset = heapq.heappop(events)
        if what == "read":
            here.append(offset)
            reading = False
            continue
        for offset in lent:
            ring.give(offset)
        computing = False
        if group is groups[-1]:
            ends.append(now)
            idle_until = now + between_s
        group = next(turns)
    half = sweeps // 2
    return (ends[-1] - ends[half - 1]) / (sweeps - half)
