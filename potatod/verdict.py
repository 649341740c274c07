"""What the probe found about this machine and this model, and what follows from it: pool and context.

The probe is a short process that ends (``python -m potatod.worker.probe``), so that the supervisor knows all it needs before the first
stage starts and never imports torch. Its findings are cached by versions, processor, model and kernels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import memory, process
from .config import Settings
from .errors import DoesNotFit, InternalError, NoSuchModel, by_exit_code
from .manifest import Manifest
from .plan import smallest_pool, sweep_parts
from .sizes import Auto, Percent

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


@dataclass(frozen=True, slots=True)
class Findings:
    """The probe's own words."""

    #: "cpu" or "cuda:0 (name)"
    device: str
    #: how a sweep becomes forward passes; see worker/passes.py
    batching: str
    #: how linear layers group rows, by their weight's shape: (out, in, rows, fixed) each; see worker/rows.py
    groupings: list[tuple[int, int, int, bool]]
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


def probe(settings: Settings, folder: Path, manifest: Manifest, directory: Path) -> Verdict:
    """Findings from the cache or a fresh probe, then pool and context for what is available now."""
    cache = _cache_file(settings, folder, manifest)
    findings = _cached(cache) or _run(settings, folder, directory, cache)
    context = settings.front.max_context or findings.max_positions
    available = memory.available_bytes()
    if not settings.front.max_context:
        each = int(available * KV_SHARE) // settings.front.max_sequences - findings.state_bytes
        affordable = each // max(1, findings.kv_bytes_per_token)
        context = min(context, max(affordable, 256))
    if context > findings.max_positions:
        raise DoesNotFit(
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
        pool_bytes=pool_bytes(settings, manifest, available - kv - findings.worker_bytes - _OTHER_STAGES),
        max_context=context,
        prefill_chunk=_prefill_chunk(settings.worker.kernels, findings.batching, context),
    )


def _prefill_chunk(kernels: str, batching: str, context: int) -> int:
    if kernels == "reference":  # transformers' bits are those of a prompt that is not cut
        return context
    return _CHUNK_BY_TOKEN if batching == "tokens" else _CHUNK


#: Resident sets of supervisor, reader and front together, as measured.
_OTHER_STAGES: Final = 200 << 20


def pool_bytes(settings: Settings, manifest: Manifest, spare: int) -> int:
    """``[pool] size`` in bytes; ``spare`` is what "auto" may take after everything else has its share."""
    size = settings.pool.size
    if isinstance(size, Auto):
        lengths = [(stop, part.length) for stop, part in sweep_parts(manifest)]
        least = smallest_pool(lengths)
        chosen = min(spare - RESERVE_BYTES, sum(length for _, length in lengths))
        if chosen < min(least, sum(length for _, length in lengths)):
            raise DoesNotFit(
                f"this model needs a pool of {least} bytes and {max(0, spare - RESERVE_BYTES)} are to spare: free "
                f"{least - chosen} bytes of RAM, or lower [front] max_context or max_sequences"
            )
        return chosen
    if isinstance(size, Percent):
        return int(memory.available_bytes() * size.percent / 100)
    return int(size)


def vocabulary_of(manifest: Manifest) -> int:
    """Rows of the head."""
    bands = [t for s in manifest.shards if s.kind == "head" for p in s.parts for t in p.tensors]
    return max((t.first_row or 0) + t.shape[0] for t in bands)


def _cache_file(settings: Settings, folder: Path, manifest: Manifest) -> Path:
    try:
        config = (folder / "config.json").read_text()
    except OSError as error:
        raise NoSuchModel(f"cannot read {folder / 'config.json'} ({error.strerror}); prepare the model again") from None
    key = json.dumps(
        [
            [importlib.metadata.version(name) for name in ("torch", "transformers", "potato-lm")],
            _processor(), settings.worker.device, settings.worker.threads, settings.worker.kernels,
            manifest.fingerprint, config,
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


def _cached(cache: Path) -> Findings | None:
    try:
        return Findings(**json.loads(cache.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _run(settings: Settings, folder: Path, directory: Path, cache: Path) -> Findings:
    page = directory / "boot.probe.json"
    page.write_text(settings.to_json())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "potatod.worker.probe", str(folder), str(page)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=process.environment(), timeout=PROBE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InternalError(f"the probe did not end within {PROBE_S:.0f} s") from None
    finally:
        page.unlink(missing_ok=True)
    try:
        said = json.loads(done.stdout)
    except ValueError:
        raise InternalError(process.describe_end("the probe", done.returncode)) from None
    if done.returncode:
        raise by_exit_code(done.returncode)(said["error"])
    findings = Findings(**said)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(dataclasses.asdict(findings)))
        partial.replace(cache)
    except OSError:
        pass  # a cache that cannot be written costs the next start some seconds, nothing else
    return findings
