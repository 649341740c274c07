"""`potatod plan`: what serving a model would be like, here or on a machine that is only described.

    outline (parts, KV) + RAM + card ─▶ arrangement (homes, ring, slots) + rates ─▶ forecasts ─▶ what would help most

Where a draft model is wanted it is planned for, and what it would bring is held against the plan without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import card as cards
from . import draft_forecast, drafts, memory, model_folder, outline, rates
from . import room as rooms
from .arrangement import CHUNKS, Arrangement, arrange
from .config import Settings
from .draft_forecast import Guessing
from .errors import DoesNotFit
from .forecast import Forecast, Rates, forecast
from .keys import SELF
from .manifest import stored_as
from .memory import OWN_RESERVE, Available
from .outline import Outline
from .plan import Plan, sweep_parts
from .rates import Computing
from .room import Needs, Room
from .sizes import human_size

#: Disks to think of where none is known, bytes a second: a SATA one, an NVMe one of the third generation and one of the fourth.
DISKS: Final = (0.5e9, 3.5e9, 7e9)
#: A card that is only described: what sixteen lanes of PCIe 3 give, a modest card's memory, and what launching a layer's kernels takes.
SUPPOSED_UPLOAD: Final = 12e9
SUPPOSED_CARD: Final = Computing(((1, 300e9), (64, 300e9), (512, 150e9)), 0.0005, SUPPOSED_UPLOAD, "card")
#: So many answers at the same time are forecast beside one.
MANY: Final = 64
#: A tokenizer's file, where there is none to look at: one of 128,000 tokens.
_TOKENIZER_BYTES: Final = 9 << 20
#: What more RAM is advised in, and more memory of a card.
_STEP_BYTES: Final = 4 << 30
#: What would save less than this share of the time is not worth a line.
_WORTH: Final = 0.03


@dataclass(frozen=True, slots=True)
class Machine:
    """What is described of a machine, in bytes and bytes a second; None: as it is here."""

    ram: int | None = None
    #: memory of a card that is free
    vram: int | None = None
    disk: float | None = None
    #: from RAM to the card
    pcie: float | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """One disk."""

    disk_bytes_per_s: float
    #: of one sequence, of as many as may run at the same time, and of MANY where those are planned for and fit
    forecasts: tuple[Forecast, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """What would change, and the seconds per token of one sequence then."""

    what: str
    token_s: float


@dataclass(frozen=True, slots=True)
class Draft:
    """What a draft model would bring one sequence, with the first disk."""

    #: as ``[speculation] draft``
    name: str
    #: its weights, and what it computes with
    size_bytes: int
    #: the command that makes it, where it is not there
    made_by: str
    #: seconds per token without it, when what it takes holds weights
    without_s: float
    guessing: Guessing

    @property
    def pays(self) -> bool:
        return self.guessing.token_s < self.without_s * (1 - _WORTH)


@dataclass(frozen=True, slots=True)
class Planned:
    name: str
    outline: Outline
    #: bytes of RAM that were shared out
    available: int
    #: bytes of a card's memory that were; None where the cpu computes
    vram: int | None
    room: Room
    sequences: int
    plan: Plan
    #: tokens of a prompt per sweep
    chunk: int
    #: "given", "measured", or "supposed" where nobody knows
    disk_is: str
    outlooks: tuple[Outlook, ...]
    #: where is computed: "cpu", an accelerator as torch names it, or "card" for one that is only described
    device: str
    #: of the link to the card; None where the cpu computes
    upload_bytes_per_s: float | None
    #: best first; for one sequence and the first disk
    advice: tuple[Advice, ...]
    #: where one is wanted
    draft: Draft | None = None


class Planner:
    """Everything of a model that costs time to find out, once; then plans of it for as many machines as are asked for."""

    def __init__(
        self, source: str, settings: Settings, *, dtype: str = "auto", revision: str | None = None, anew: bool = False,
        notice: rates.Notice = lambda _: None, ram: int | None = None,
    ) -> None:  # fmt: skip
        """``dtype``: as `prepare` takes it, where there are ``ram`` bytes of RAM (None: what is available here); ``notice`` is told what takes a while.
        Raises what `prepare` raises for a source that is none."""
        self._name = Path(source).name or source
        self._source = Path(source)
        self._settings = settings
        self._anew = anew
        self._notice = notice
        self._known = outline.of(source, dtype, revision, settings, ram)
        self._draft = self._draft_model(revision)
        self._needs: Needs = self._known if self._draft is None else drafts.Both(self._known, self._draft.manifest, self._draft)
        self._dtype = stored_as(self._known.manifest)
        self._tokenizer = rooms.tokenizer_bytes(self._source) or _TOKENIZER_BYTES
        #: by kernels and dtype
        self._computing: dict[tuple[str, str], Computing] = {}
        self._free: int | None = None

    def _draft_model(self, revision: str | None) -> Outline | None:
        """The one that is configured; a copy of the model itself need not be there yet."""
        wanted, fast = self._settings.speculation.draft, _computing_fast(self._settings)
        if not wanted or not self._settings.speculation.enabled:
            return None
        if wanted.startswith(SELF) and self._made_by():
            draft = outline.of(str(self._source), wanted.removeprefix(SELF), revision, fast)
        else:
            draft = outline.of(str(drafts.folder_of(self._settings, self._source)), "auto", None, fast)
        if (why := drafts.useless(self._settings.worker.kernels, "packed", "packed", self._known.kv.forks and draft.kv.forks)) is not None:
            raise drafts.refuse(why)
        return draft

    def _made_by(self) -> str:
        """The command that makes the copy that is wanted; empty where it is there, or none is."""
        wanted = self._settings.speculation.draft
        form = wanted.removeprefix(SELF)
        if not wanted.startswith(SELF) or (drafts.named(self._source, form) / model_folder.NAME).is_file():
            return ""
        folder = self._source if (self._source / model_folder.NAME).is_file() else "FOLDER"
        return f"potatod prepare {folder} --draft {form}"

    @property
    def dtype(self) -> str:
        """What the weights are stored as."""
        return self._dtype

    def plan(self, machine: Machine) -> Planned:
        """Raises :class:`DoesNotFit` with the missing bytes."""
        known, settings = self._known, self._settings
        available = memory.available() if machine.ram is None else Available(machine.ram, OWN_RESERVE)
        if machine.vram is None:  # before anything is tried out: whether it fits at all
            boundless = 1 << 50 if settings.worker.device != "cpu" else None
            rooms.share(settings, known.manifest, available, self._needs, self._tokenizer, CHUNKS[0], boundless)
        disk_is, disks = self._disks(machine)
        computing = self._on(machine, settings, self._dtype)
        vram = machine.vram if machine.vram is not None else self._free_bytes(computing.device)
        every = [Rates(each, computing.compute, computing.layer_s, upload=computing.upload, overlaps=computing.overlaps) for each in disks]

        def arranged_for(
            settings: Settings, ram: int = 0, more_vram: int = 0, here: Rates = every[0], needs: Needs = self._needs
        ) -> Arrangement:  # fmt: skip
            larger = Available(available.size_bytes + ram, available.reserve_bytes)
            return arrange(settings, known.manifest, larger, needs, self._tokenizer, here, card=None if vram is None else vram + more_vram)

        now = arranged_for(settings)
        fixed = dataclasses.replace(_with_front(settings, max_context=now.room.context), kv=dataclasses.replace(settings.kv, size=now.room.kv_bytes))
        outlooks = tuple(Outlook(each.disk, self._forecasts(now, each, fixed, arranged_for)) for each in every)
        advice = _advice(known.manifest.layers, now.plan, lambda ram, vram: arranged_for(fixed, ram, vram).plan, every[0], outlooks[0].forecasts[0])
        draft = self._drafted(machine, now, every[0], arranged_for(_without_draft(settings), needs=known))
        return Planned(
            self._name, known, available.size_bytes, vram, now.room, settings.front.max_sequences, now.plan, now.chunk, disk_is, outlooks,
            computing.device, computing.upload, tuple(advice), draft,
        )  # fmt: skip

    def _drafted(self, machine: Machine, now: Arrangement, here: Rates, without: Arrangement) -> Draft | None:
        if self._draft is None:
            return None
        layers, manifest, speculation = self._known.manifest.layers, self._draft.manifest, self._settings.speculation
        drafting = self._on(machine, _computing_fast(self._settings), stored_as(manifest))
        its = Rates(here.disk, drafting.compute, drafting.layer_s)
        weights = sum(part.length for _, part in sweep_parts(manifest))

        def round_s(nodes: int) -> float:
            return weights / its.compute_at(nodes) + manifest.layers * its.layer_s

        guessing = draft_forecast.best(
            lambda rows: forecast(now.plan, layers, here, rows).sweep_s, round_s, speculation.max_tokens, rooms.guessed_rows(self._settings)
        )
        size = self._needs.draft_bytes if now.room.card_bytes is None else self._needs.draft_on_card[0]
        return Draft(speculation.draft, size, self._made_by(), forecast(without.plan, layers, here).token_s, guessing)

    def _forecasts(
        self, now: Arrangement, here: Rates, fixed: Settings, arranged_for: Callable[..., Arrangement]
    ) -> tuple[Forecast, ...]:  # fmt: skip
        layers, most = self._known.manifest.layers, fixed.front.max_sequences
        said = [forecast(now.plan, layers, here, rows) for rows in sorted({1, most})]
        if most < MANY:  # more texts at once need more KV, and that is taken from the weights
            try:
                said.append(forecast(arranged_for(_with_front(fixed, max_sequences=MANY), here=here).plan, layers, here, MANY))
            except DoesNotFit:
                pass
        return tuple(said)

    def _free_bytes(self, device: str) -> int | None:
        """Of the card here, asked once; None where the cpu computes."""
        if self._free is None:
            self._free = cards.free_bytes(device)
        return self._free

    def _disks(self, machine: Machine) -> tuple[str, Sequence[float]]:
        if machine.disk is not None:
            return "given", [machine.disk]
        if (self._source / model_folder.NAME).is_file():
            return "measured", [rates.disk(self._source, self._settings, self._notice, anew=self._anew)]
        return "supposed", DISKS

    def _on(self, machine: Machine, settings: Settings, dtype: str) -> Computing:
        """A described card is supposed to be a modest one where this machine has none."""
        key = settings.worker.kernels, dtype
        if key not in self._computing:
            self._computing[key] = rates.compute(settings, dtype, self._notice, anew=self._anew)
        here = self._computing[key]
        if machine.vram is not None and here.device == "cpu":
            here = SUPPOSED_CARD
        if here.upload is not None and machine.pcie is not None:
            here = dataclasses.replace(here, upload=machine.pcie)
        return here


def make(source: str, settings: Settings, machine: Machine = Machine(), **options: Any) -> Planned:
    """One plan; ``options`` as :class:`Planner` takes them."""
    return Planner(source, settings, **options).plan(machine)


def _with_front(settings: Settings, **changed: Any) -> Settings:
    return dataclasses.replace(settings, front=dataclasses.replace(settings.front, **changed))


def _computing_fast(settings: Settings) -> Settings:
    """As draft models compute."""
    return dataclasses.replace(settings, worker=dataclasses.replace(settings.worker, kernels="fast"))


def _without_draft(settings: Settings) -> Settings:
    return dataclasses.replace(settings, speculation=dataclasses.replace(settings.speculation, draft=""))


def _advice(layers: int, plan: Plan, with_more: Callable[[int, int], Plan], here: Rates, now: Forecast) -> list[Advice]:
    worth = [advice for advice in _changes(layers, plan, with_more, here) if advice.token_s < now.token_s * (1 - _WORTH)]
    return sorted(worth, key=lambda advice: advice.token_s)


def _changes(layers: int, plan: Plan, with_more: Callable[[int, int], Plan], here: Rates) -> Iterator[Advice]:
    """``with_more``: the plan with so many more bytes of RAM, and of a card's memory, at the same context."""
    missing = plan.resident_bytes + plan.streamed_bytes - plan.pool_bytes
    missing += missing // 100  # the kernel's own for a larger pool
    if plan.streamed_bytes and missing > 0 and (whole := with_more(missing, 0)).streamed_bytes == 0:  # not so where the pool's size is configured
        yield Advice(f"{human_size(missing)} more RAM, so that nothing streams", forecast(whole, layers, here).token_s)
    if missing > _STEP_BYTES:
        yield Advice(f"{human_size(_STEP_BYTES)} more RAM", forecast(with_more(_STEP_BYTES, 0), layers, here).token_s)
    if plan.slots == 1:
        second = with_more(0, plan.slot_bytes)
        yield Advice(f"{human_size(plan.slot_bytes)} more memory of the card, for a second slot", forecast(second, layers, here).token_s)
    if plan.uploaded_bytes:
        yield Advice(f"{human_size(_STEP_BYTES)} more memory of the card", forecast(with_more(0, _STEP_BYTES), layers, here).token_s)
        yield Advice("a link to the card twice as fast", _with(layers, plan, here, upload=2 * (here.upload or SUPPOSED_UPLOAD)))
    yield Advice("a disk twice as fast", _with(layers, plan, here, disk=2 * here.disk))


def _with(layers: int, plan: Plan, here: Rates, **changed: Any) -> float:
    return forecast(plan, layers, dataclasses.replace(here, **changed)).token_s
