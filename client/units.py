"""Amounts for people, as the client and the daemon say them. Pure."""

from __future__ import annotations

import math
from typing import Final

#: Of time: name, seconds, the next smaller one and its seconds.
_UNITS: Final = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))
_DECIMAL: Final = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def human_size(size_bytes: float) -> str:
    """In decimal units, two significant digits or more: "269MB", "3.1GB"."""
    for name, factor in _DECIMAL:
        if abs(size_bytes) >= factor:
            scaled = size_bytes / factor
            return f"{scaled:.1f}{name}" if abs(scaled) < 99.95 else f"{scaled:.0f}{name}"
    return f"{size_bytes:.0f}B"


def duration(seconds: float) -> str:
    """In its two largest units: "3 min 20 s"."""
    whole = int(seconds)
    for unit, length, smaller, part in _UNITS:
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def span(least_s: float, most_s: float) -> str:
    """From the one to the other in the largest unit of both, rounded away from what lies between: "1-4 min"."""
    unit, length = next(((unit, length) for unit, length, _, _ in _UNITS if most_s >= length), ("s", 1))
    least, most = int(least_s / length), math.ceil(most_s / length)
    return f"{least}-{most} {unit}" if least < most else f"{most} {unit}"


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
