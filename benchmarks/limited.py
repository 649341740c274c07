"""Runs a command on a potato: so much RAM (page cache included), so many bytes a second from disk.

    python benchmarks/limited.py --ram 2.5GB --read 500MB -- potatod start …

Needs root and cgroups, v1 (memory, blkio) or v2 (memory, io); says what is missing otherwise and exits 69. Prints what was used at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from potatod.errors import EXIT_UNAVAILABLE
from potatod.sizes import human_size, parse_size

_ROOT = Path("/sys/fs/cgroup")


class Limits:
    """A cgroup of its own: ``with Limits(…) as limits: limits.run([...])``. ``None`` leaves a resource unlimited."""

    def __init__(self, ram_bytes: int | None, read_bytes_per_s: int | None, folder: Path) -> None:
        self._ram = ram_bytes
        self._read = read_bytes_per_s
        self._device = _device_of(folder)
        self._name = f"potato-limited.{os.getpid()}"
        self._v2 = (_ROOT / "cgroup.controllers").exists()
        controllers = [""] if self._v2 else ["memory", "blkio"]
        self._groups = [_ROOT / controller / self._name for controller in controllers]

    def __enter__(self) -> Limits:
        try:
            for group in self._groups:
                group.mkdir()
            if self._v2:
                (_ROOT / "cgroup.subtree_control").write_text("+memory +io")
            self._set()
        except OSError as error:
            self._remove()
            raise SystemExit(f"limited: cannot make a limited cgroup ({error}); root and the memory and io controllers are needed") from error
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return self

    def _set(self) -> None:
        if self._ram is not None:
            (self._groups[0] / ("memory.max" if self._v2 else "memory.limit_in_bytes")).write_text(str(self._ram))
        if self._read is not None:
            self.read_at(self._read)

    def read_at(self, bytes_per_s: int) -> None:
        """From now on, the disk gives so much."""
        if self._v2:
            (self._groups[-1] / "io.max").write_text(f"{self._device} rbps={bytes_per_s}")
        else:
            (self._groups[-1] / "blkio.throttle.read_bps_device").write_text(f"{self._device} {bytes_per_s}")

    def enter(self) -> None:
        """Moves the calling process in; for subprocess's preexec_fn."""
        for group in self._groups:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    def popen(self, command: Sequence[str | Path], **arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, preexec_fn=self.enter, **arguments)  # type: ignore[call-overload,no-any-return]

    def peak_ram_bytes(self) -> int:
        """The most that was in use at once, page cache included."""
        name = "memory.peak" if self._v2 else "memory.max_usage_in_bytes"
        return int((self._groups[0] / name).read_text())

    def read_bytes(self) -> int:
        """Read from the disk so far."""
        group = self._groups[-1]
        if self._v2:
            lines = (group / "io.stat").read_text().splitlines()
            found = [word for line in lines if line.startswith(self._device) for word in line.split() if word.startswith("rbytes=")]
            return int(found[0].removeprefix("rbytes=")) if found else 0
        lines = (group / "blkio.throttle.io_service_bytes").read_text().splitlines()
        return sum(int(line.split()[2]) for line in lines if line.startswith(f"{self._device} Read"))

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        for group in self._groups:
            for _ in range(50):
                try:
                    group.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.1)


def _device_of(folder: Path) -> str:
    """major:minor of the disk that holds ``folder``; of the whole disk where it is a partition."""
    number = os.stat(folder).st_dev
    major, minor = os.major(number), os.minor(number)
    place = Path(f"/sys/dev/block/{major}:{minor}")
    if (place / "partition").exists():
        return (place.resolve().parent / "dev").read_text().strip()
    return f"{major}:{minor}"


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--ram", help="RAM, page cache included: 2.5GB")
@click.option("--read", help="Bytes a second from disk: 500MB")
@click.option("--folder", type=click.Path(path_type=Path, exists=True), default=".", help="A folder on the disk that is limited.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(ram: str | None, read: str | None, folder: Path, command: tuple[str, ...]) -> None:
    """Run COMMAND with so much RAM and so many bytes a second from disk."""
    if os.geteuid() != 0:
        click.echo("limited: only root may make cgroups", err=True)
        sys.exit(EXIT_UNAVAILABLE)
    with Limits(parse_size(ram) if ram else None, parse_size(read) if read else None, folder) as limits:
        code = limits.popen(command).wait()
        click.echo(f"limited: at most {human_size(limits.peak_ram_bytes())} RAM, {human_size(limits.read_bytes())} from disk", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
