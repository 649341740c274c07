"""What the probe found about this machine and this model, and what follows from it for the engine.

The probe is a short process that ends (``python -m potatod.worker.probe``), so that the supervisor knows all it needs before the first
stage starts and never imports torch. Its findings are cached by versions, processor, model and kernels.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import card, drafts, errand, log, memory, rates
from .arrangement import arrange, verified
from .config import Settings
from .forecast import Rates
from .json_file import MAX_CONFIG_BYTES, read_text
from .kept import Kept
from .kv_layout import KvLayout
from .machine import accelerators, lets_us_use_amx, processor
from .manifest import Manifest, Part, schemes_of, stored_as
from .plan import Plan
from .room import Needs, Together, vocabulary_of

#: A probe that takes longer is stuck.
PROBE_S: Final = 600.0

_LOGGER: Final = logging.getLogger("potatod.supervisor")


@dataclass(frozen=True, slots=True)
class Findings:
    """The probe's own words."""

    #: "cpu" or "cuda:0 (name)"
    device: str
    #: how a sweep becomes forward passes; see worker/passes.py
    batching: str
    #: how rows are multiplied with weights here; see worker/arithmetic.py
    arithmetic: dict[str, Any]
    #: what of a layer's matrices is put together at the same time, to be multiplied with
    together: Together
    #: what is kept of a sequence
    kv: KvLayout
    #: what the model was made for
    max_positions: int
    #: tokens up to which longrope turns by its short set; None for every other rope
    rope_border: int | None
    #: what a worker with this model and no KV cannot do without: its own memory, and what it touches of libraries; pool not counted
    worker_bytes: int
    #: how the architecture's self-check went
    checked: str

    @property
    def draft_bytes(self) -> int:
        return 0

    @property
    def draft_on_card(self) -> tuple[int, int]:
        return 0, 0

    @classmethod
    def of(cls, page: dict[str, Any]) -> Findings:
        """From the probe's JSON. Raises TypeError, KeyError where it is another version's."""
        return cls(**page | {"kv": KvLayout.from_json(page["kv"])})


@dataclass(frozen=True, slots=True)
class Verdict:
    findings: Findings
    architecture: str
    dtype: str
    layers: int
    vocabulary: int
    #: tokens that a prompt may have
    embed_rows: int
    kernels: str
    plan: Plan
    #: tokens per sequence
    max_context: int
    #: for the KV of all sequences
    kv_bytes: int
    #: tokens of a prompt per sweep
    prefill_chunk: int
    #: what disk and processor gave when they were tried out
    rates: Rates
    #: when the reader compares bytes with checksums: "always", "first" or "never"
    verify: str
    #: of the draft model, its folder and findings; None where there is none
    draft: dict[str, Any] | None
    #: what is kept of a sequence, by both models
    kv: KvLayout

    def facts(self) -> dict[str, Any]:
        """Flat, for the stages' boot pages; without the plan, which the engine's have beside it."""
        mine = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in ("findings", "plan", "rates", "kv")}
        return {**dataclasses.asdict(self.findings), **mine, "kv": self.kv.to_json(), "rates": dataclasses.asdict(self.rates)}


def probe(
    settings: Settings, folder: Path, manifest: Manifest, directory: Path, tokenizers: int, cancelled: Callable[[], bool]
) -> Verdict:  # fmt: skip
    """Findings from the cache or a fresh probe, then pool and context for what is available now. ``tokenizers``: bytes of those that the front has.

    Raises :class:`errand.Cancelled` soon after ``cancelled()`` has become true, :class:`DoesNotFit` where the RAM is not enough.
    """
    findings = _found(settings, folder, manifest, directory, cancelled)
    draft = _draft(settings, folder, findings, directory, cancelled)
    needs: Needs = findings if draft is None else draft[0]
    speed = rates.of(folder, settings, stored_as(manifest), lambda sentence: log.event(_LOGGER, sentence), cancelled=cancelled)
    arranged = arrange(
        settings, manifest, memory.available(), needs, tokenizers, speed, by_token=findings.batching == "tokens",
        card=card.free_bytes(findings.device, cancelled),
    )  # fmt: skip
    return Verdict(
        findings=findings,
        architecture=manifest.architecture,
        dtype=stored_as(manifest),
        layers=manifest.layers,
        vocabulary=vocabulary_of(manifest),
        embed_rows=vocabulary_of(manifest, "embed"),
        kernels=settings.worker.kernels,
        plan=arranged.plan,
        max_context=arranged.room.context,
        kv_bytes=arranged.room.kv_bytes,
        prefill_chunk=arranged.chunk,
        rates=speed,
        verify=verified(settings, arranged.plan, manifest.layers, speed),
        draft=None if draft is None else draft[1],
        kv=needs.kv,
    )


def _found(settings: Settings, folder: Path, manifest: Manifest, directory: Path, cancelled: Callable[[], bool]) -> Findings:
    findings = known(settings, folder, manifest)
    if findings is None:
        log.event(_LOGGER, f"trying out what this machine does with {folder.name}; only its first start takes this minute or two")
        findings = _run(settings, folder, directory, cancelled)
        _kept(settings, folder, manifest).put(dataclasses.asdict(findings))
    return findings


def _draft(
    settings: Settings, folder: Path, findings: Findings, directory: Path, cancelled: Callable[[], bool]
) -> tuple[drafts.Both, dict[str, Any]] | None:
    """What the model needs together with its draft model, and what the worker is told of that; None where none is wanted."""
    draft = drafts.folder_of(settings, folder)
    if draft is None:
        return None
    manifest = drafts.check(folder, draft)
    _refuse_a_useless_one(settings, findings, "packed")  # before it is tried out, which takes long
    fast = dataclasses.replace(settings, worker=dataclasses.replace(settings.worker, kernels="fast"))
    found = _found(fast, draft, manifest, directory, cancelled)
    _refuse_a_useless_one(settings, findings, found.batching)
    return drafts.Both(findings, manifest, found), drafts.facts(draft, found)


def _refuse_a_useless_one(settings: Settings, findings: Findings, draft_batching: str) -> None:
    if (why := drafts.useless(settings.worker.kernels, findings.batching, draft_batching, findings.kv.forks)) is not None:
        raise drafts.refuse(why)


def known(settings: Settings, folder: Path, manifest: Manifest) -> Findings | None:
    """What an earlier probe found, where nothing that matters has changed since."""
    try:
        return Findings.of(_kept(settings, folder, manifest).get() or {})
    except (TypeError, KeyError):  # nothing, or what another version found
        return None


def _kept(settings: Settings, folder: Path, manifest: Manifest) -> Kept:
    config = read_text(folder / "config.json", MAX_CONFIG_BYTES)
    return Kept(
        "probe",
        [
            [importlib.metadata.version(name) for name in ("torch", "transformers", "llvmlite")],
            processor(), lets_us_use_amx(), settings.worker.device, settings.worker.threads, settings.worker.kernels, settings.kv.dtype,
            manifest.fingerprint, config, sorted(schemes_of(manifest)), accelerators(), [part.checksum for part in _first_layer(manifest)],
        ],
    )  # fmt: skip


def _first_layer(manifest: Manifest) -> tuple[Part, ...]:
    """What the probe computes with."""
    return next(shard.parts for shard in manifest.shards if shard.kind == "layer")


def _run(settings: Settings, folder: Path, directory: Path, cancelled: Callable[[], bool]) -> Findings:
    page = directory / "boot.probe.json"
    page.write_text(settings.to_json())
    try:
        return Findings.of(errand.run("worker.probe", str(folder), str(page), limit_s=PROBE_S, cancelled=cancelled))
    finally:
        page.unlink(missing_ok=True)
