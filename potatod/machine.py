"""What Linux shows of this machine: its processor, its cores, the nodes of its accelerators, the disk below a folder.

Only reads, but that Linux wants to be asked for AMX; what cannot be read is nothing. ``root`` is where /proc and /sys lie.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")
#: What a processor must say of itself for our machine code, and for that to use AMX, as Linux calls it.
_OURS: Final = frozenset({"avx2", "fma", "f16c"})
_AMX: Final = frozenset({"amx_tile", "amx_bf16", "avx512f", "avx512bw", "avx512dq", "avx512vl"})
#: Of Linux, x86-64: arch_prctl, "may this process use a part of the processor's state that is large", the tiles of AMX.
_ARCH_PRCTL, _ASK, _TILES = 158, 0x1023, 18


def cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """What decides which kernels run, and how fast: model, instruction sets, cores."""
    lines = _first_processor(_ROOT).splitlines()
    wanted = ("model name", "flags", "cpu family", "model\t", "Features")
    return ("\n".join(line for line in lines if line.startswith(wanted)) or platform.processor()) + str(cores())


@cache
def flags(root: Path = _ROOT) -> frozenset[str]:
    """What the processor says it can do, in Linux's words (and whatever else stands beside them)."""
    return frozenset(_first_processor(root).split())


def runs_our_code() -> bool:
    """Whether this processor has the instructions that our machine code is made of."""
    return flags() >= _OURS


@cache
def lets_us_use_amx() -> bool:
    """Whether this processor multiplies bf16 by AMX, which our machine code does together with AVX-512, and Linux lets this process. Asking
    is for the process's whole life, and wants stacks for signals that have room for tiles."""
    return flags() >= _AMX and ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ASK, _TILES) == 0


def cache_bytes(root: Path = _ROOT) -> int:
    """Of the last level, those of all cores that this process may run on; 0 where nothing is said."""
    found: dict[str, int] = {}
    for core in os.sched_getaffinity(0):
        levels = sorted((root / f"sys/devices/system/cpu/cpu{core}/cache").glob("index*"))
        if levels and (size := _text(levels[-1] / "size")).endswith("K"):
            found[_text(levels[-1] / "shared_cpu_list")] = int(size[:-1]) << 10
    return sum(found.values())


def accelerators() -> list[str]:
    """The device nodes and drivers that are there: "auto" finds something else when they change."""
    nodes = [str(path) for pattern in ("nvidia*", "kfd", "dri/renderD*") for path in Path("/dev").glob(pattern)]
    return [*sorted(nodes), _text(Path("/proc/driver/nvidia/version"))]


@dataclass(frozen=True, slots=True)
class Disk:
    """The block device that a folder lies on, or what stands for one on a network file system."""

    #: major:minor
    device: str
    root: Path = _ROOT

    @classmethod
    def below(cls, folder: Path, root: Path = _ROOT) -> Disk:
        number = os.stat(folder).st_dev
        return cls(f"{os.major(number)}:{os.minor(number)}", root)

    @property
    def mounts(self) -> list[tuple[str, str]]:
        """(type of the file system, what is mounted) of everything that is mounted of it, in Linux's order."""
        lines = [line.split() for line in _text(self.root / "proc/self/mountinfo").splitlines()]
        found = [fields[fields.index("-") + 1 :] for fields in lines if len(fields) > 4 and fields[2] == self.device and "-" in fields]
        return [(fields[0], fields[1]) for fields in found if len(fields) > 1]

    @property
    def turns(self) -> bool:
        """Whether it says so, or the disk that it is a partition of does; some that do not turn say it too (virtual ones)."""
        places = (self._place / "queue/rotational", self._place.resolve().parent / "queue/rotational")
        return next((said for place in places if (said := _text(place))), "0") == "1"

    @property
    def identity(self) -> list[str]:
        """What names it from one start to the next: its number, size and model, and what is mounted of it."""
        named = [_text(self._place / name) for name in ("size", "device/model", "../device/model", "device/serial")]
        return [self.device, *named, *sorted({" ".join(mount) for mount in self.mounts})]

    @property
    def _place(self) -> Path:
        return self.root / "sys/dev/block" / self.device


def _first_processor(root: Path) -> str:
    return _text(root / "proc/cpuinfo").split("\n\n")[0]


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
