"""Which model has the engine: one at a time, and each change costs the time to load it, and the KV of every text that is not over. Pure.

    the model that has it ──▶ keeps it while it has jobs ──▶ then the one that has waited longest

So as few changes as can be, and each sweep is shared by all jobs of its model. Two things end a model's time sooner: jobs of another one have waited
for so long as the user lets them (nobody starves), or another one has jobs that go before all of its own. Even then a model keeps the engine for
some time, or the changes would take all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: A model that others wait for keeps the engine for so many times what a change takes: a fifth of the time goes into changes, at most.
HOLD: Final = 4.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a model that does not have the engine, and could."""

    model: int
    #: of the job that goes first; 0 goes before 1
    rank: int
    #: seconds that there have been jobs of it, or since it had the engine
    waited_s: float


def next_model(rank: int | None, waiting: Sequence[Demand], had_s: float, change_s: float, patience_s: float) -> int | None:
    """Which of ``waiting`` is to have the engine now; None: the one that has it keeps it.

    ``rank``: of the best job of the one that has it, None where it has none; ``had_s``: for so long; ``change_s``: what the last change took;
    ``patience_s``: so long others wait.
    """
    if not waiting:
        return None
    first = min(waiting, key=_turn)
    if rank is None:
        return first.model
    if had_s < HOLD * change_s:
        return None
    if first.rank < rank:
        return first.model
    impatient = [each for each in waiting if each.waited_s >= patience_s]
    return min(impatient, key=_turn).model if impatient else None


def in_turn(waiting: Sequence[Demand]) -> list[int]:
    """Their order, if nobody's patience ended."""
    return [each.model for each in sorted(waiting, key=_turn)]


def _turn(demand: Demand) -> tuple[int, float]:
    return demand.rank, -demand.waited_s
