"""The control groups that this process is in, version 1 or 2, from its own up to the root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Group:
    place: Path
    #: whether it is of version 2
    unified: bool
    #: whether this process is in it, and not only below it
    own: bool

    def read(self, file: str) -> str:
        """Raises OSError where this level has no such file, or a container does not show it."""
        return (self.place / file).read_text().strip()


def groups(controller: str, root: Path = Path("/")) -> Iterator[Group]:
    """Those in which ``controller``, as version 1 calls it, may set limits."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        unified = number == "0"
        if unified or controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / ("" if unified else controller)
            own = place = mount / path.lstrip("/")
            while place.is_relative_to(mount):
                yield Group(place, unified, place == own)
                place = place.parent


def read_limits(device: int, root: Path = Path("/")) -> list[str]:
    """What limits reading from that device (``st_dev``, or the disk that it is a part of), in the words of the control groups."""
    found = []
    disk = f"{os.major(device)}:"
    for group in groups("blkio", root):
        for file in ("io.max",) if group.unified else ("blkio.throttle.read_bps_device", "blkio.throttle.read_iops_device"):
            try:
                found += [line for line in group.read(file).splitlines() if line.startswith(disk)]
            except OSError:
                pass
    return found
