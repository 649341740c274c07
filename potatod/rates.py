"""How fast this machine's disk and processor are: tried out once, kept, used by every plan."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import errand
from .cgroups import read_limits
from .config import Settings
from .forecast import Rates
from .kept import Kept
from .machine import Disk, accelerators, processor

#: Trying out takes seconds, and importing torch some more.
_LIMIT_S: Final = 300.0


#: Told what takes a while.
Notice = Callable[[str], None]


#: Whether whoever waits for it does not want it any more.
Cancelled = Callable[[], bool]


def disk(folder: Path, settings: Settings, notice: Notice, *, anew: bool = False, cancelled: Cancelled = lambda: False) -> float:
    """Bytes a second that the reader gets of the disk that the model folder lies on, and of those of its mirrors."""
    return float(_disk(folder, settings, notice, anew, cancelled)["bytes_per_s"])


def _disk(folder: Path, settings: Settings, notice: Notice, anew: bool, cancelled: Cancelled) -> dict[str, Any]:
    kept = kept_disk(folder, settings)
    found = None if anew else kept.get("bytes_per_s", "checksum_bytes_per_s")
    return found or _tried(kept, notice, cancelled, "how fast this disk is", "reader.measure", str(folder), settings.to_json())


@dataclass(frozen=True, slots=True)
class Computing:
    """The part of :class:`forecast.Rates` that is the worker's, and the device that it is of ("cpu", "cuda:0")."""

    compute: tuple[tuple[int, float], ...]
    layer_s: float
    upload: float | None
    device: str
    overlaps: bool = True


def compute(settings: Settings, dtype: str, notice: Notice, *, anew: bool = False, cancelled: Cancelled = lambda: False) -> Computing:
    """With weights in ``dtype``."""
    kept = kept_compute(settings, dtype)
    found = None if anew else kept.get("compute", "layer_s", "device", "upload", "overlaps")
    found = found or _tried(kept, notice, cancelled, f"how fast this machine computes in {dtype}", "worker.measure", settings.to_json(), dtype)
    upload = None if found["upload"] is None else float(found["upload"])
    by_rows = tuple((int(rows), float(rate)) for rows, rate in found["compute"])
    return Computing(by_rows, float(found["layer_s"]), upload, str(found["device"]), bool(found["overlaps"]))


def of(
    folder: Path, settings: Settings, dtype: str, notice: Notice, *, anew: bool = False, cancelled: Cancelled = lambda: False
) -> Rates:
    """All of them, for a model folder."""
    found = compute(settings, dtype, notice, anew=anew, cancelled=cancelled)
    reading = _disk(folder, settings, notice, anew, cancelled)
    return Rates(float(reading["bytes_per_s"]), found.compute, found.layer_s, float(reading["checksum_bytes_per_s"]), found.upload, found.overlaps)


def forget(settings: Settings, folder: Path, dtype: str) -> None:
    """They hold no more."""
    for kept in (kept_disk(folder, settings), kept_compute(settings, dtype)):
        kept.forget()


def kept_disk(folder: Path, settings: Settings) -> Kept:
    reader = settings.reader
    disks = [[Disk.below(each).identity, read_limits(os.stat(each).st_dev)] for each in (folder, *map(Path, settings.model.mirrors))]
    return Kept("disk", [disks, reader.io, reader.in_flight, reader.piece])


def kept_compute(settings: Settings, dtype: str) -> Kept:
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    worker = settings.worker
    return Kept("compute", [versions, processor(), accelerators(), worker.device, worker.threads, worker.kernels, settings.pool.page_lock, dtype])


def _tried(kept: Kept, notice: Notice, cancelled: Cancelled, what: str, module: str, *arguments: str) -> dict[str, Any]:
    notice(f"trying out {what}; that takes up to half a minute and is kept")
    found = errand.run(module, *arguments, limit_s=_LIMIT_S, cancelled=cancelled)
    kept.put(found)
    return found
