"""Amounts as people write them – "4GiB", "500MB", "50%", "10min" – become numbers here, when configuration is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from potato_client.units import human_size as human_size

_BINARY: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DECIMAL: Final = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE_UNITS: Final = {"": 1, "b": 1, **{name.lower(): size for name, size in (_BINARY | _DECIMAL).items()}}
_DURATION_UNITS: Final[Mapping[str, int | Fraction]] = {
    "ms": Fraction(1, 1000),
    "": 1,
    "s": 1,
    "min": 60,
    "h": 3600,
    "d": 86400,
}
#: ASCII digits only: int() would take those of other scripts too.
_AMOUNT: Final = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,40})?) ?([a-zA-Z]*)")
_PERCENT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,40})?) ?%")


@dataclass(frozen=True, slots=True)
class Auto:
    """The daemon decides when it knows the machine and the model."""


@dataclass(frozen=True, slots=True)
class Percent:
    """A share of something that is only known later; symbolic until the plan resolves it."""

    #: greater than 0, at most 100
    percent: float

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise ValueError(f"a share lies above 0% and at most at 100%, not at {self.percent:g}%")


#: Bytes, a share, or the daemon's choice.
Amount = int | Percent | Auto


def parse_size(value: str | int) -> int:
    """Bytes; raises ValueError. Units: B, kB MB GB TB (1000), KiB MiB GiB TiB (1024), in any case; none means bytes."""
    if isinstance(value, int):
        if isinstance(value, bool) or value < 0:
            raise ValueError(f"{value!r} is not a size")
        return value
    number, factor = _split(value, _SIZE_UNITS, 'is not a size; write for example "8MiB" or "500MB"')
    return int(number * factor)


def format_size(size_bytes: int) -> str:
    """The shortest exact spelling: ``parse_size(format_size(n)) == n``."""
    spellings = [f"{size_bytes}B"]
    for name, factor in (_BINARY | _DECIMAL).items():
        if size_bytes and size_bytes % factor == 0:
            spellings.append(f"{size_bytes // factor}{name}")
    return min(spellings, key=len)


def parse_amount(value: str | int) -> Amount:
    """``"auto"``, ``"50%"`` or a size; raises ValueError."""
    if value == "auto":
        return Auto()
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value.strip())):
        return Percent(float(match[1]))
    return parse_size(value)


def format_amount(amount: Amount) -> str:
    """Exact: ``parse_amount(format_amount(a)) == a``."""
    if isinstance(amount, Auto):
        return "auto"
    if isinstance(amount, Percent):
        return f"{Decimal(repr(amount.percent)).normalize():f}%"
    return format_size(amount)


def parse_duration(value: str | float) -> float:
    """Seconds; raises ValueError. Units: ms, s, min, h, d; none means seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{Decimal(str(value)):f}"
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a duration")
    number, factor = _split(value, _DURATION_UNITS, 'is not a duration; write for example "30s" or "10min"')
    return float(number * factor)


def format_duration(seconds: float) -> str:
    """In the largest unit that leaves a whole number, else in seconds."""
    for name, factor in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds and seconds % factor == 0:
            return f"{seconds / factor:.0f}{name}"
    return f"{Decimal(repr(seconds)).normalize():f}s"


def _split(text: str, units: Mapping[str, int | Fraction], complaint: str) -> tuple[Fraction, Fraction]:
    match = _AMOUNT.fullmatch(text.strip())
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f'"{text[:40]}" {complaint}')
    return Fraction(match[1]), Fraction(factor)
