"""What the probe found about this machine and this model, and what follows from it: pool and context.

The probe is a short process that ends (``python -m potatod.worker.probe``), so that the supervisor knows all it needs before the first
stage starts and never imports torch. Its findings are cached by versions, processor, model and kernels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import log, memory, process
from .config import Settings
from .errors import ConfigError, DoesNotFit, InternalError, by_exit_code
from .json_file import MAX_CONFIG_BYTES, read_text
from .manifest import Manifest, Part
from .plan import smallest_pool, sweep_parts
from .sizes import Auto, Percent, human_size

#: A probe that takes longer is stuck.
PROBE_S: Final = 600.0
#: Left to the rest of the machine where the pool is sized by itself.
RESERVE_BYTES: Final = 256 << 20
#: Tokens of a prompt per sweep where they share their products, and where each is computed by itself.
_CHUNK: Final = 512
_CHUNK_BY_TOKEN: Final = 32
#: KV is allocated in blocks of so many tokens.
_KV_BLOCK: Final = 128
#: Of what is available, at most so much goes to KV where the context is not configured.
KV_SHARE: Final = 0.2


_LOGGER: Final = logging.getLogger("potatod.supervisor")


class Cancelled(Exception):
    """Somebody wants the daemon to end before the probe has."""


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

    Raises :class:`Cancelled` soon after ``cancelled()`` has become true, :class:`DoesNotFit` where the RAM is not enough.
    """
    cache = _cache_file(settings, folder, manifest)
    findings = _cached(cache)
    if findings is None:
        log.event(_LOGGER, "trying out what this machine does with this model; only its first start takes this minute or two")
        findings = _run(settings, folder, directory, cancelled)
        _keep(cache, findings)
    context = settings.front.max_context or findings.max_positions
    available = memory.available_bytes()
    if not settings.front.max_context:
        each = int(available * KV_SHARE) // settings.front.max_sequences - findings.state_bytes
        affordable = each // max(1, findings.kv_bytes_per_token)
        context = min(context, max(affordable, 256))
    if context > findings.max_positions:
        raise ConfigError(
            f"[front] max_context is {context} tokens and this model was made for {findings.max_positions}; set it to at most that"
        )
    tokens = context + context // 8 + _KV_BLOCK  # how the worker lets KV grow
    kv = settings.front.max_sequences * (findings.state_bytes + tokens * findings.kv_bytes_per_token)
    return Verdict(
        findings=findings,
        architecture=manifest.architecture,
        dtype=manifest.dtype,
        layers=manifest.layers,
        vocabulary=vocabulary_of(manifest),
        kernels=settings.worker.kernels,
        pool_bytes=pool_bytes(settings, manifest, available, kv + findings.worker_bytes + _OTHER_STAGES),
        max_context=context,
        prefill_chunk=_prefill_chunk(settings.worker.kernels, findings.batching, context),
    )


def _prefill_chunk(kernels: str, batching: str, context: int) -> int:
    if kernels == "reference":  # transformers' bits are those of a prompt that is not cut
        return context
    return _CHUNK_BY_TOKEN if batching == "tokens" else _CHUNK


#: Resident sets of supervisor, reader and front together, as measured.
_OTHER_STAGES: Final = 200 << 20


def pool_bytes(settings: Settings, manifest: Manifest, available: int, others: int) -> int:
    """``[pool] size`` in bytes, where ``available`` bytes of RAM are to hold the pool and ``others`` beside it."""
    size = settings.pool.size
    lengths = [(stop, part.length) for stop, part in sweep_parts(manifest)]
    total = sum(length for _, length in lengths)
    if isinstance(size, Auto):
        least = min(smallest_pool(lengths), total)
        chosen = min(available - others - RESERVE_BYTES, total)
        if chosen < least:
            raise _missing(f"the smallest pool for this model, {human_size(least)}", least + RESERVE_BYTES, available, others)
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


def _cache_file(settings: Settings, folder: Path, manifest: Manifest) -> Path:
    config = read_text(folder / "config.json", MAX_CONFIG_BYTES)
    key = json.dumps(
        [
            [importlib.metadata.version(name) for name in ("torch", "transformers", "potato-lm")],
            _processor(), settings.worker.device, settings.worker.threads, settings.worker.kernels,
            manifest.fingerprint, config, _accelerators(), [part.checksum for part in _first_layer(manifest)],
        ]
    )  # fmt: skip
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "potato" / "probe"
    return base / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".json")


def _processor() -> str:
    """What decides which kernels run: model and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "cpu family", "model\t", "Features")
    return "\n".join(line for line in lines if line.startswith(wanted)) + str(os.cpu_count())


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


def _cached(cache: Path) -> Findings | None:
    try:
        return Findings(**json.loads(cache.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _run(settings: Settings, folder: Path, directory: Path, cancelled: Callable[[], bool]) -> Findings:
    page = directory / "boot.probe.json"
    page.write_text(settings.to_json())
    child = subprocess.Popen(
        [sys.executable, "-m", "potatod.worker.probe", str(folder), str(page)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=process.environment(), process_group=0,
    )  # fmt: skip
    deadline = time.monotonic() + PROBE_S
    try:
        while True:
            try:
                out, _ = child.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if cancelled():
                    raise Cancelled from None
                if time.monotonic() > deadline:
                    raise InternalError(f"the probe did not end within {PROBE_S:.0f} s") from None
    finally:
        child.kill()  # nothing where it has ended
        child.wait()
        page.unlink(missing_ok=True)
    if cancelled():
        raise Cancelled
    try:
        said = json.loads(out.splitlines()[-1])  # what a library may print stands before it
    except (ValueError, IndexError):
        raise InternalError(process.describe_end("the probe", child.returncode)) from None
    if child.returncode:
        raise by_exit_code(child.returncode)(said.get("error") or process.describe_end("the probe", child.returncode))
    return Findings(**said)


def _keep(cache: Path, findings: Findings) -> None:
    partial = cache.with_suffix(f".{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(dataclasses.asdict(findings)))
        partial.replace(cache)
    except OSError as error:  # it costs the next start its time, nothing else
        log.event(_LOGGER, "what was found cannot be kept: the next start tries it out again", why=f"{cache}: {error.strerror}")
        with suppress(OSError):
            partial.unlink(missing_ok=True)
