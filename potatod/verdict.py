"""What the probe found about this machine and this model, and what follows from it: pool and context.

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
from typing import Any, Final, Protocol

from . import errand, log, memory
from .config import Settings
from .errors import ConfigError, DoesNotFit
from .json_file import MAX_CONFIG_BYTES, read_text
from .kept import Kept, processor
from .manifest import Manifest, Part
from .memory import Available
from .plan import smallest_pool, sweep_parts
from .sizes import Auto, Percent, human_size

#: A probe that takes longer is stuck.
PROBE_S: Final = 600.0
#: Left to the rest of the machine where the pool is sized by itself; where a cgroup's limit ends it, to the kernel's own pages for us.
RESERVE_BYTES: Final = 256 << 20
LIMITED_RESERVE_BYTES: Final = 48 << 20
#: Tokens of a prompt per sweep where they share their products, and where each is computed by itself.
_CHUNK: Final = 512
_CHUNK_BY_TOKEN: Final = 32
#: KV is allocated in blocks of so many tokens.
_KV_BLOCK: Final = 128
#: Of what is available, at most so much goes to KV where the context is not configured.
KV_SHARE: Final = 0.2


_LOGGER: Final = logging.getLogger("potatod.supervisor")


@dataclass(frozen=True, slots=True)
class Findings:
    """The probe's own words."""

    #: "cpu" or "cuda:0 (name)"
    device: str
    #: how a sweep becomes forward passes; see worker/passes.py
    batching: str
    #: how linear layers group rows, by their weight's shape: (out, in, rows, fixed) each; see worker/rows.py
    groupings: list[tuple[int, int, int, bool]]
    #: rows of queries that invariant attention computes together; see worker/attention.py
    tile: int
    kv_bytes_per_token: int
    #: kept of a sequence whatever its length: recurrent states
    state_bytes: int
    #: what the model was made for
    max_positions: int
    #: tokens up to which longrope turns by its short set; None for every other rope
    rope_border: int | None
    #: resident set of a worker with this model and no KV, pool not counted
    worker_bytes: int
    #: how the architecture's self-check went
    checked: str


@dataclass(frozen=True, slots=True)
class Verdict:
    findings: Findings
    architecture: str
    dtype: str
    layers: int
    vocabulary: int
    kernels: str
    pool_bytes: int
    #: tokens per sequence
    max_context: int
    #: tokens of a prompt per sweep
    prefill_chunk: int

    def facts(self) -> dict[str, Any]:
        """Flat, for the stages' boot pages."""
        mine = dataclasses.asdict(self)
        return {**mine.pop("findings"), **mine}


def probe(settings: Settings, folder: Path, manifest: Manifest, directory: Path, cancelled: Callable[[], bool]) -> Verdict:
    """Findings from the cache or a fresh probe, then pool and context for what is available now.

    Raises :class:`errand.Cancelled` soon after ``cancelled()`` has become true, :class:`DoesNotFit` where the RAM is not enough.
    """
    findings = known(settings, folder, manifest)
    if findings is None:
        log.event(_LOGGER, "trying out what this machine does with this model; only its first start takes this minute or two")
        findings = _run(settings, folder, directory, cancelled)
        _kept(settings, folder, manifest).put(dataclasses.asdict(findings))
    room = share(settings, manifest, memory.available(), findings, tokenizer_bytes(folder))
    return Verdict(
        findings=findings,
        architecture=manifest.architecture,
        dtype=manifest.dtype,
        layers=manifest.layers,
        vocabulary=vocabulary_of(manifest),
        kernels=settings.worker.kernels,
        pool_bytes=room.pool_bytes,
        max_context=room.context,
        prefill_chunk=_prefill_chunk(settings.worker.kernels, findings.batching, room.context),
    )


def known(settings: Settings, folder: Path, manifest: Manifest) -> Findings | None:
    """What an earlier probe found, where nothing that matters has changed since."""
    try:
        return Findings(**(_kept(settings, folder, manifest).get() or {}))
    except TypeError:  # nothing, or what another version found
        return None


class Needs(Protocol):
    """What a model takes beside its weights."""

    @property
    def kv_bytes_per_token(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def worker_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Room:
    """How the available RAM is shared out. All in bytes, but for the context."""

    pool_bytes: int
    kv_bytes: int
    #: all processes
    process_bytes: int
    #: left alone where the pool is sized by itself
    reserve_bytes: int
    #: tokens per sequence
    context: int


def share(settings: Settings, manifest: Manifest, available: Available, needs: Needs, tokenizer: int) -> Room:
    """``available`` RAM for the pool, the KV and the processes, of which one has a tokenizer of so many bytes.

    Raises :class:`DoesNotFit` with the missing bytes.
    """
    context = settings.front.max_context or needs.max_positions
    if not settings.front.max_context:
        each = int(available.size_bytes * KV_SHARE) // settings.front.max_sequences - needs.state_bytes
        affordable = each // max(1, needs.kv_bytes_per_token)
        context = min(context, max(affordable, 256))
    if context > needs.max_positions:
        raise ConfigError(
            f"[front] max_context is {context} tokens and this model was made for {needs.max_positions}; set it to at most that"
        )
    tokens = context + context // 8 + _KV_BLOCK  # how the worker lets KV grow
    kv = settings.front.max_sequences * (needs.state_bytes + tokens * needs.kv_bytes_per_token)
    processes = needs.worker_bytes + _OTHER_STAGES + _PER_TOKENIZER_BYTE * tokenizer
    reserve = _reserve(settings, available)
    return Room(pool_bytes(settings, manifest, available.size_bytes, kv + processes, reserve), kv, processes, reserve, context)


def tokenizer_bytes(folder: Path) -> int:
    """Of its file: the front holds it in another form."""
    file = folder / "tokenizer.json"
    return file.stat().st_size if file.is_file() else 0


def _reserve(settings: Settings, available: Available) -> int:
    wanted = settings.pool.reserve
    if isinstance(wanted, Auto):
        return LIMITED_RESERVE_BYTES if available.limited else RESERVE_BYTES
    return int(available.size_bytes * wanted.percent / 100) if isinstance(wanted, Percent) else wanted


def _prefill_chunk(kernels: str, batching: str, context: int) -> int:
    if kernels == "reference":  # transformers' bits are those of a prompt that is not cut
        return context
    return _CHUNK_BY_TOKEN if batching == "tokens" else _CHUNK


#: Supervisor, reader and front together without a tokenizer (their proportional sets: 114 MB measured), and a tokenizer for each byte of its file.
_OTHER_STAGES: Final = 112 << 20
_PER_TOKENIZER_BYTE: Final = 8


def pool_bytes(settings: Settings, manifest: Manifest, available: int, others: int, reserve: int) -> int:
    """``[pool] size`` in bytes, where ``available`` bytes of RAM are to hold the pool and ``others`` beside it, and ``reserve`` stays free where the
    size is ours to choose."""
    size = settings.pool.size
    lengths = [(stop, part.length) for stop, part in sweep_parts(manifest)]
    total = sum(length for _, length in lengths)
    if isinstance(size, Auto):
        least = min(smallest_pool(lengths), total)
        chosen = min(available - others - reserve, total)
        if chosen < least:
            raise _missing(f"the smallest pool for this model, {human_size(least)}", least + reserve, available, others)
        return chosen
    wanted = int(available * size.percent / 100) if isinstance(size, Percent) else int(size)
    taken = min(wanted, total)  # a pool larger than the model is not made
    if taken + others > available:
        raise _missing(f"[pool] size of {human_size(taken)}", taken, available, others)
    return wanted


def _missing(what: str, pool: int, available: int, others: int) -> DoesNotFit:
    return DoesNotFit(
        f"{what}, and {human_size(others)} for the processes and the KV of [front] max_sequences texts of max_context tokens are "
        f"{human_size(pool + others - available)} more than the {human_size(available)} of RAM that are available: free some, or lower one of these"
    )


def vocabulary_of(manifest: Manifest) -> int:
    """Rows of the head."""
    bands = [t for s in manifest.shards if s.kind == "head" for p in s.parts for t in p.tensors]
    return max((t.first_row or 0) + t.shape[0] for t in bands)


def _kept(settings: Settings, folder: Path, manifest: Manifest) -> Kept:
    config = read_text(folder / "config.json", MAX_CONFIG_BYTES)
    return Kept(
        "probe",
        [
            [importlib.metadata.version(name) for name in ("torch", "transformers", "potato-lm")],
            processor(), settings.worker.device, settings.worker.threads, settings.worker.kernels,
            manifest.fingerprint, config, _accelerators(), [part.checksum for part in _first_layer(manifest)],
        ],
    )  # fmt: skip


def _first_layer(manifest: Manifest) -> tuple[Part, ...]:
    """What the probe computes with."""
    return next(shard.parts for shard in manifest.shards if shard.kind == "layer")


def _accelerators() -> list[str]:
    """The device nodes and drivers that are there: "auto" finds something else when they change."""
    nodes = [str(path) for pattern in ("nvidia*", "kfd", "dri/renderD*") for path in Path("/dev").glob(pattern)]
    try:
        driver = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        driver = ""
    return [*sorted(nodes), driver]


def _run(settings: Settings, folder: Path, directory: Path, cancelled: Callable[[], bool]) -> Findings:
    page = directory / "boot.probe.json"
    page.write_text(settings.to_json())
    try:
        return Findings(**errand.run("worker.probe", str(folder), str(page), limit_s=PROBE_S, cancelled=cancelled))
    finally:
        page.unlink(missing_ok=True)
