"""What benchmarks say of the machine, and what they are held against. No torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from potatod.sizes import parse_size

#: Everything beside resident weights, as the floor counts it, bytes.
BESIDE = 550_000_000


def machine() -> dict[str, Any]:
    """Its class of processor, which every figure is named with, and how many cores it has."""
    flags = Path("/proc/cpuinfo").read_text()
    kind = "avx512_bf16" if "avx512_bf16" in flags else "avx2" if "avx2" in flags else "other"
    return {"processor": f"{platform.machine()} ({kind} class)", "cores": os.cpu_count()}


def floor_s(weights_bytes: int, ram: str, read: str) -> float:
    """Seconds a token that the bytes alone need: (weights - (RAM - BESIDE)) / bandwidth."""
    return max(0.0, weights_bytes - (parse_size(ram) - BESIDE)) / parse_size(read)
