"""What of this machine is worth a warning, before serving and while it goes on: each a sentence that says what it means and what to do.

Only reads what the kernel shows; what cannot be read is no reason to warn.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from . import machine
from .machine import Disk
from .sizes import human_size

#: File systems that lie on another machine.
_NETWORK: Final = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.rclone", "fuse.s3fs", "virtiofs",
})  # fmt: skip
#: A disk that turns gives less.
_TURNING_BYTES_PER_S: Final = 300e6
#: So many pages a minute that come back from swap are some.
_SWAPPED_PAGES: Final = 4096


def before(
    folder: Path, streamed_bytes: int, disk_bytes_per_s: float, threads: int, *, root: Path = Path("/"), cores: int | None = None
) -> Iterator[str]:
    """``streamed_bytes``: read from the disk of ``folder`` for every sweep; ``threads``: [worker] threads, 0 for one per core."""
    sweep = f"every sweep reads {human_size(streamed_bytes)} from it"
    disk = Disk.below(folder, root)
    kind = next((kind for kind, _ in disk.mounts), "")
    if streamed_bytes and kind in _NETWORK:
        yield f"the model lies on a network file system ({kind}), and {sweep}: copy it to a disk of this machine if it has one"
    elif streamed_bytes and disk_bytes_per_s < _TURNING_BYTES_PER_S and disk.turns:
        yield f"the model lies on a rotating disk ({human_size(disk_bytes_per_s)}/s), and {sweep}: an SSD gives ten times as much"
    cores = cores if cores is not None else machine.cores()
    if threads > cores:
        yield f"[worker] threads is {threads} and there are {cores} cores: threads that wait for each other's core are slower; 0 takes one per core"
    if cores == 1:
        yield "there is one core: reading, checksums and computing take turns on it"
    if (flags := machine.flags(root)) and "avx2" not in flags and "asimd" not in flags:
        yield "this processor has no AVX2: computing takes several times as long as on one that has"


@dataclass(slots=True)
class Swapping:
    """Looks now and then at how much has come back from swap."""

    every_s: float = 60.0
    root: Path = Path("/")
    _next: float = 0.0
    _seen: int | None = field(default=None)

    def look(self, now: float) -> str | None:
        """A sentence where much has come back since the last look."""
        if now < self._next:
            return None
        self._next = now + self.every_s
        before, self._seen = self._seen, self._pages_in()
        if before is None or self._seen is None or self._seen - before < _SWAPPED_PAGES:
            return None
        came = human_size((self._seen - before) * os.sysconf("SC_PAGE_SIZE"))
        return (
            f"this machine is short of memory: {came} came back from swap in the last {self.every_s:.0f} s, and what is swapped may be the pool; "
            "lower [pool] size, raise [pool] reserve, or end what else takes memory"
        )

    def _pages_in(self) -> int | None:
        with suppress(OSError, ValueError):
            for line in (self.root / "proc/vmstat").read_text().splitlines():
                if line.startswith("pswpin "):
                    return int(line.split()[1])
        return None
