"""`potatod plan`: what serving a model would be like, here or on a machine that is only described.

    outline (parts, KV) + RAM ─▶ plan (homes, ring) + rates ─▶ forecasts ─▶ what would help most
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import manifest as manifests
from . import memory, outline, rates
from . import room as rooms
from .arrangement import CHUNKS, arrange
from .config import Settings
from .forecast import Forecast, Rates, forecast
from .memory import OWN_RESERVE, Available
from .outline import Outline
from .plan import Plan
from .room import Room
from .sizes import human_size

#: Disks to think of where none is known, bytes a second: a SATA one, an NVMe one of the third generation and one of the fourth.
DISKS: Final = (0.5e9, 3.5e9, 7e9)
#: A tokenizer's file, where there is none to look at: one of 128,000 tokens.
_TOKENIZER_BYTES: Final = 9 << 20
#: What more RAM is advised in.
_STEP_BYTES: Final = 4 << 30
#: What would save less than this share of the time is not worth a line.
_WORTH: Final = 0.03


@dataclass(frozen=True, slots=True)
class Outlook:
    """One disk."""

    disk_bytes_per_s: float
    #: of one sequence, and of as many as may run at the same time where those are more
    forecasts: tuple[Forecast, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """What would change, and the seconds per token of one sequence then."""

    what: str
    token_s: float


@dataclass(frozen=True, slots=True)
class Planned:
    name: str
    outline: Outline
    #: bytes of RAM that were shared out
    available: int
    room: Room
    sequences: int
    plan: Plan
    #: tokens of a prompt per sweep
    chunk: int
    #: "given", "measured", or "supposed" where nobody knows
    disk_is: str
    outlooks: tuple[Outlook, ...]
    #: where is computed: "cpu", or an accelerator, whose uploads are not forecast
    device: str
    #: best first; for one sequence and the first disk
    advice: tuple[Advice, ...]


def make(
    source: str, settings: Settings, *, ram: int | None = None, disk: float | None = None, dtype: str = "auto", revision: str | None = None,
    anew: bool = False, notice: rates.Notice = lambda _: None,
) -> Planned:  # fmt: skip
    """``ram``: bytes that the daemon may take, where not what is available here; ``disk``: bytes a second, where not measured; ``notice`` is told
    what takes a while.

    Raises what `potatod prepare` raises for a source that is none, and :class:`DoesNotFit` with the missing bytes.
    """
    known = outline.of(source, dtype, revision, settings)
    available = memory.available() if ram is None else Available(ram, OWN_RESERVE)
    tokenizer = rooms.tokenizer_bytes(Path(source)) or _TOKENIZER_BYTES
    rooms.share(settings, known.manifest, available, known, tokenizer, CHUNKS[0])  # before anything is tried out: whether it fits at all
    disk_is, disks = _disks(Path(source), settings, disk, notice, anew)
    compute, layer_s, device = rates.compute(settings, known.manifest.dtype, notice, anew=anew)
    every = [Rates(each, compute, layer_s) for each in disks]
    arranged = arrange(settings, known.manifest, available, known, tokenizer, every[0])
    room, plan = arranged.room, arranged.plan
    numbers = sorted({1, settings.front.max_sequences})
    outlooks = tuple(Outlook(each.disk, tuple(forecast(plan, known.manifest.layers, each, rows) for rows in numbers)) for each in every)
    fixed = dataclasses.replace(settings, front=dataclasses.replace(settings.front, max_context=room.context))

    def with_more(extra: int) -> Plan:
        larger = Available(available.size_bytes + extra, available.reserve_bytes)
        return arrange(fixed, known.manifest, larger, known, tokenizer, every[0]).plan

    advice = _advice(known.manifest.layers, plan, with_more, every[0], outlooks[0].forecasts[0])
    name, sequences = Path(source).name or source, settings.front.max_sequences
    return Planned(name, known, available.size_bytes, room, sequences, plan, arranged.chunk, disk_is, outlooks, device, tuple(advice))


def _disks(source: Path, settings: Settings, given: float | None, notice: rates.Notice, anew: bool) -> tuple[str, Sequence[float]]:
    if given is not None:
        return "given", [given]
    if (source / manifests.NAME).is_file():
        return "measured", [rates.disk(source, settings, notice, anew=anew)]
    return "supposed", DISKS


def _advice(layers: int, plan: Plan, with_more: Callable[[int], Plan], here: Rates, now: Forecast) -> list[Advice]:
    worth = [advice for advice in _changes(layers, plan, with_more, here) if advice.token_s < now.token_s * (1 - _WORTH)]
    return sorted(worth, key=lambda advice: advice.token_s)


def _changes(layers: int, plan: Plan, with_more: Callable[[int], Plan], here: Rates) -> Iterator[Advice]:
    """``with_more``: the plan with so many more bytes of RAM, at the same context."""
    missing = plan.resident_bytes + plan.streamed_bytes - plan.pool_bytes
    missing += missing // 100  # the kernel's own for a larger pool
    if missing > 0 and (whole := with_more(missing)).streamed_bytes == 0:  # not so where the pool's size is configured
        yield Advice(f"{human_size(missing)} more RAM, so that nothing streams", forecast(whole, layers, here).token_s)
    if missing > _STEP_BYTES:
        yield Advice(f"{human_size(_STEP_BYTES)} more RAM", forecast(with_more(_STEP_BYTES), layers, here).token_s)
    faster = Rates(2 * here.disk, here.compute, here.layer_s)
    yield Advice("a disk twice as fast", forecast(plan, layers, faster).token_s)
