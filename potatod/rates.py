"""How fast this machine's disk and processor are: tried out once, kept, used by every plan."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Final

from . import errand
from .config import Settings
from .forecast import Rates
from .kept import Kept, processor

#: Trying out takes seconds, and importing torch some more.
_LIMIT_S: Final = 300.0


def disk(folder: Path, settings: Settings, *, anew: bool = False) -> float:
    """Bytes a second that the reader gets of the disk that the model folder lies on."""
    kept = Kept("disk", [_disk_of(folder), settings.reader.io, settings.reader.in_flight, settings.reader.piece])
    found = None if anew else kept.get()
    if found is None:
        found = errand.run("reader.measure", str(folder), settings.to_json(), limit_s=_LIMIT_S)
        kept.put(found)
    return float(found["bytes_per_s"])


def compute(settings: Settings, dtype: str, *, anew: bool = False) -> tuple[tuple[tuple[int, float], ...], float]:
    """:attr:`Rates.compute` and :attr:`Rates.layer_s` of weights in ``dtype``."""
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers", "potato-lm")]
    worker = settings.worker
    kept = Kept("compute", [versions, processor(), worker.device, worker.threads, worker.kernels, dtype])
    found = None if anew else kept.get()
    if found is None:
        found = errand.run("worker.measure", settings.to_json(), dtype, limit_s=_LIMIT_S)
        kept.put(found)
    return tuple((int(rows), float(rate)) for rows, rate in found["compute"]), float(found["layer_s"])


def of(folder: Path, settings: Settings, dtype: str) -> Rates:
    return Rates(disk(folder, settings), *compute(settings, dtype))


def _disk_of(folder: Path) -> list[str]:
    """What names a disk from one start to the next: its device number, size and model, and what is mounted of it."""
    number = os.stat(folder).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    about = Path("/sys/dev/block") / device
    named = [_word(place) for place in (about / "size", about / "device/model", about / "../device/model", about / "device/serial")]
    mounts = [line.split() for line in _word(Path("/proc/self/mountinfo")).splitlines()]
    return [device, *named, *(" ".join(fields[fields.index("-") + 1 :][:2]) for fields in mounts if fields[2] == device)][:8]


def _word(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
