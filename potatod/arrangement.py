"""How RAM, pool and the pieces of a prompt are arranged for a model on this machine. Pure.

    settings + manifest + available RAM + rates ─▶ arrange() ─▶ Arrangement: room, plan, tokens of a prompt per sweep

A prompt comes in pieces. A larger piece needs more memory to compute with, which is taken from what stays resident, and so costs every token of
every answer; a smaller one reads the weights once more. The smallest is right that is computed with as long as the weights are read, and that
costs about what a token of the largest costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from . import plan as plans
from .config import Settings
from .errors import DoesNotFit
from .forecast import Rates, forecast
from .manifest import Manifest
from .memory import Available
from .plan import Plan
from .room import CHUNK, Needs, Room, share

#: Tokens of a prompt per sweep, smallest first.
CHUNKS: Final = (64, 128, 256, CHUNK)
#: Tokens of a prompt per sweep where each is computed by itself.
_BY_TOKEN: Final = 32
#: Layers of which the ring holds what streams, where reading and computing take equally long.
_MOST_AHEAD: Final = 4.0
#: A sweep may take so much longer for comparing what is read.
_SHOWS: Final = 1.05
#: A token of a smaller piece may cost so much of what one of the largest costs.
_DEARER: Final = 1.15


@dataclass(frozen=True, slots=True)
class Arrangement:
    room: Room
    plan: Plan
    #: tokens of prompts per sweep
    chunk: int


def arrange(
    settings: Settings, manifest: Manifest, available: Available, needs: Needs, tokenizer: int, rates: Rates | None, *, by_token: bool = False,
    card: int | None = None,
) -> Arrangement:  # fmt: skip
    """``needs``, ``tokenizer``, ``card``: as :func:`room.share`; ``by_token``: whether the tokens of a prompt are computed one after the other.

    Raises :class:`DoesNotFit` with the missing bytes.
    """

    def of(chunk: int) -> Arrangement:
        room = share(settings, manifest, available, needs, tokenizer, chunk, card)
        return Arrangement(room, _planned(settings, manifest, room, rates), chunk)

    if settings.worker.kernels == "reference":  # transformers' bits are those of a prompt that is not cut
        whole = of(needs.max_positions)
        return Arrangement(whole.room, whole.plan, whole.room.context)
    return of(_BY_TOKEN) if by_token else _best(of, manifest.layers, rates)


def _planned(settings: Settings, manifest: Manifest, room: Room, rates: Rates | None) -> Plan:
    reads = settings.reader.in_flight * (1 + len(settings.model.mirrors))
    under_way = reads * min(settings.reader.piece, max(part.length for _, part in plans.sweep_parts(manifest)))

    def of(layers_ahead: float) -> Plan:
        return plans.make(manifest, room.pool_bytes, room.card_bytes, layers_ahead, under_way)

    if rates is None or room.card_bytes is not None:
        return of(plans.LAYERS_AHEAD)
    first = of(layers_ahead(0.0))
    if not first.streamed_bytes:
        return first
    said = forecast(first, manifest.layers, rates, settings.front.max_sequences)
    return of(layers_ahead(said.compute_s / said.disk_s))


def layers_ahead(compute: float) -> float:
    """Of how many layers the ring should hold what streams, where computing takes so many times as long as reading.

    While a layer is computed its parts still lie there, and reading goes on into the rest: that must hold what is read meanwhile. Where the two take
    about equally long each falls behind the other now and then, layer by layer. From tests/simulation.py: with these less than 2 % is lost.
    """
    return 1.15 + compute if compute < 0.45 else min(_MOST_AHEAD, 1.6 + 4.4 * (compute - 0.45))


def verified(settings: Settings, plan: Plan, layers: int, rates: Rates) -> str:
    """``[reader] verify``, and what auto is here: whether comparing every byte, beside all else, would show in a token's time."""
    if settings.reader.verify != "auto":
        return settings.reader.verify
    said = forecast(plan, layers, rates)
    with_checks = max(said.disk_s, said.compute_s + plan.streamed_bytes / rates.checksum)
    return "always" if with_checks <= _SHOWS * said.sweep_s else "first"


def _best(of: Callable[[int], Arrangement], layers: int, rates: Rates | None) -> Arrangement:
    fitting = []
    for chunk in CHUNKS:
        try:
            fitting.append(of(chunk))
        except DoesNotFit:
            if not fitting:
                raise
            break
    largest = fitting[-1]
    if rates is None or largest.plan.streamed_bytes + largest.plan.uploaded_bytes == 0:
        return largest
    token_s = forecast(largest.plan, layers, rates, largest.chunk).compute_s / largest.chunk
    for arrangement in fitting:
        said = forecast(arrangement.plan, layers, rates, arrangement.chunk)
        if max(said.disk_s, said.upload_s) <= said.compute_s <= _DEARER * token_s * arrangement.chunk:
            return arrangement
    return largest
