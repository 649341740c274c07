"""One model on many machines: a table of seconds per token for each way of storing its weights. Pure but for what the planner finds out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from .errors import DoesNotFit
from .planning import DISKS, Machine, Planner
from .sizes import human_size

#: Bytes of RAM and of a card's memory; None: the cpu computes.
RAMS: Final = (16 << 30, 32 << 30, 64 << 30)
VRAMS: Final = (None, 8 << 30, 12 << 30, 24 << 30)


def as_text(name: str, planners: Sequence[tuple[str, Planner]]) -> str:
    """``planners``: of the same model, by what its weights are stored as."""
    return "\n".join(line for stored, planner in planners for line in _table(name, stored, planner)) + "\n"


def _table(name: str, stored: str, planner: Planner) -> Iterator[str]:
    row = "{:<8}{:<10}" + "{:>13}" * len(DISKS)
    lines, weights = [], ""
    for ram in RAMS:
        for vram in VRAMS:
            times = []
            for disk in DISKS:
                try:
                    planned = planner.plan(Machine(ram, vram, disk))
                except DoesNotFit:
                    times.append("–")
                    continue
                one = planned.outlooks[0].forecasts[0]
                weights = f", {human_size(planned.plan.weights_bytes)} in a sweep"
                times.append(f"{one.token_s:.3g} s {one.bottleneck[0]}")
            lines.append(row.format(_binary(ram), "none" if vram is None else _binary(vram), *times))
    yield f"{name} in {stored}{weights}: seconds per token, and what it waits for (d disk, u upload, c computing)"
    yield row.format("RAM", "card", *(f"{human_size(disk)}/s" for disk in DISKS))
    yield from lines
    yield ""


def _binary(size: int) -> str:
    return f"{size >> 30} GiB"
