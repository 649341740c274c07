"""How much RAM there really is: what is available, within the cgroup's limit, never the machine's total."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

#: cgroup v1 writes "no limit" as a number near 2^63.
_NO_LIMIT = 1 << 60


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that this process and its children may still take: MemAvailable, or what a cgroup leaves, whichever is less."""
    return max(0, min([int(psutil.virtual_memory().available), *_cgroup_room(root)]))


def _cgroup_room(root: Path) -> Iterator[int]:
    """What each cgroup above this process leaves. Its page cache counts as free: the kernel gives it back."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield from _rooms(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            yield from _rooms(
                root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            )


def _rooms(mount: Path, path: str, limit_file: str, usage_file: str, cache_key: str) -> Iterator[int]:
    place = mount / path.lstrip("/")
    while place.is_relative_to(mount):
        try:
            limit = (place / limit_file).read_text().strip()
            if limit != "max" and int(limit) < _NO_LIMIT:
                stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
                used = int((place / usage_file).read_text()) - int(stat.get(cache_key, 0))
                yield int(limit) - used
        except (OSError, ValueError):
            pass  # a level without limits, or one that a container does not show
        place = place.parent
