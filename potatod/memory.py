"""How much RAM there really is: what is available, within the cgroup's limit, never the machine's total."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from .cgroups import groups

#: cgroup v1 writes "no limit" as a number near 2^63.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class Available:
    """RAM that this process and its children may still take."""

    size_bytes: int
    #: of it, what should be left alone
    reserve_bytes: int

    @property
    def spare_bytes(self) -> int:
        return self.size_bytes - self.reserve_bytes


#: What the rest of a machine may come to need, or of a cgroup in which others run too.
SHARED_RESERVE: Final = 256 << 20
#: What the kernel needs for us in a cgroup of our own.
OWN_RESERVE: Final = 32 << 20


def available(root: Path = Path("/")) -> Available:
    """MemAvailable, or what a cgroup leaves: whichever spares least."""
    machine = Available(int(psutil.virtual_memory().available), SHARED_RESERVE)
    return min([machine, *_cgroup_rooms(root)], key=lambda level: level.spare_bytes)


def _cgroup_rooms(root: Path) -> Iterator[Available]:
    """What each cgroup above this process leaves. Its page cache counts as free: the kernel gives it back, and what of it a process of ours needs
    is counted with that process."""
    for group in groups("memory", root):
        limit_file, usage_file, prefix = (
            ("memory.max", "memory.current", "") if group.unified else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        )
        try:
            limit = group.read(limit_file)
            if limit != "max" and int(limit) < _NO_LIMIT:
                stat = dict(line.split() for line in group.read("memory.stat").splitlines())
                cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                used = int(group.read(usage_file)) - cache
                yield Available(max(0, int(limit) - used), OWN_RESERVE if group.own else SHARED_RESERVE)
        except (OSError, ValueError):
            pass  # a level without limits, or one that a container does not show
