"""`potatod plan`: what serving a model would be like, here or on a machine that is only described.

    outline (parts, KV) + RAM ─▶ plan (homes, ring) + rates ─▶ forecasts ─▶ what would help most
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import manifest as manifests
from . import memory, outline, rates, verdict
from . import plan as plans
from .config import Settings
from .errors import DoesNotFit
from .forecast import Forecast, Rates, forecast
from .manifest import Manifest
from .memory import Available
from .outline import Outline
from .plan import Plan
from .sizes import human_size
from .verdict import Room

#: Numbers of sequences that are forecast.
ROWS: Final = (1, 16)
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
    #: for each of ROWS
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
    #: "given", "measured", or "supposed" where nobody knows
    disk_is: str
    outlooks: tuple[Outlook, ...]
    #: best first; for one sequence and the first disk
    advice: tuple[Advice, ...]


def make(
    source: str, settings: Settings, *, ram: int | None = None, disk: float | None = None, dtype: str = "auto", revision: str | None = None,
    notice: rates.Notice = lambda _: None,
) -> Planned:  # fmt: skip
    """``ram``: bytes that the daemon may take, where not what is available here; ``disk``: bytes a second, where not measured; ``notice`` is told
    what takes a while.

    Raises what `potatod prepare` raises for a source that is none, and :class:`DoesNotFit` with the missing bytes.
    """
    known = outline.of(source, dtype, revision, settings)
    available = memory.available() if ram is None else Available(ram, limited=False)
    room = verdict.share(settings, known.manifest, available, known, verdict.tokenizer_bytes(Path(source)) or _TOKENIZER_BYTES)
    plan = plans.make(known.manifest, room.pool_bytes)
    disk_is, disks = _disks(Path(source), settings, disk, notice)
    compute, layer_s = rates.compute(settings, known.manifest.dtype, notice)
    every = [Rates(each, compute, layer_s) for each in disks]
    outlooks = tuple(Outlook(each.disk, tuple(forecast(plan, known.manifest.layers, each, rows) for rows in ROWS)) for each in every)
    advice = _advice(known.manifest, plan, every[0], outlooks[0].forecasts[0])
    return Planned(Path(source).name or source, known, available.size_bytes, room, settings.front.max_sequences, plan, disk_is, outlooks, tuple(advice))


def _disks(source: Path, settings: Settings, given: float | None, notice: rates.Notice) -> tuple[str, Sequence[float]]:
    if given is not None:
        return "given", [given]
    if (source / manifests.NAME).is_file():
        return "measured", [rates.disk(source, settings, notice)]
    return "supposed", DISKS


def _advice(manifest: Manifest, plan: Plan, here: Rates, now: Forecast) -> list[Advice]:
    worth = [advice for advice in _changes(manifest, plan, here) if advice.token_s < now.token_s * (1 - _WORTH)]
    return sorted(worth, key=lambda advice: advice.token_s)


def _changes(manifest: Manifest, plan: Plan, here: Rates) -> Iterator[Advice]:
    missing = plan.resident_bytes + plan.streamed_bytes - plan.pool_bytes
    for more, what in ((_STEP_BYTES, ""), (missing, ", so that nothing streams")):
        if 0 < more <= missing:
            try:
                larger = plans.make(manifest, plan.pool_bytes + more)
            except DoesNotFit:  # a larger pool always fits what a smaller one did
                continue
            yield Advice(f"{human_size(more)} more RAM{what}", forecast(larger, manifest.layers, here).token_s)
    faster = Rates(2 * here.disk, here.compute, here.layer_s)
    yield Advice("a disk twice as fast", forecast(plan, manifest.layers, faster).token_s)
