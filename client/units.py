"""Amounts for people, as the client and the daemon say them. Pure."""

from __future__ import annotations

from typing import Final

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
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
