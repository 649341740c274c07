"""When no new sweep begins: on battery, or while this machine is short of memory. [run] pause_on_battery, pause_on_pressure.

    /sys/class/power_supply ──▶ on_battery ─┐
    /proc/pressure/memory ──▶ stalled ──────┴──▶ Pausing ──Engine(paused)──▶ front

Only reads what the kernel shows; what it does not show is no reason to pause.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import log
from .cgroups import groups
from .sections import Run
from .sizes import Percent

#: Between two looks.
EVERY_S: Final = 5.0
#: What paused it must have been away for so many looks, and the pressure below this share of what paused it.
_CALM_LOOKS: Final = 2
_CALM_SHARE: Final = 0.5
_BATTERY: Final = "this machine runs on battery"
_SHORT: Final = "this machine is short of memory"
_LOGGER: Final = logging.getLogger("potatod.supervisor")
_SOME: Final = re.compile(r"^some avg10=([0-9]{1,3}(?:\.[0-9]+)?) ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Supply:
    """A folder of /sys/class/power_supply: what its files say, "" where there is none of that name."""

    #: Mains, USB, Battery, UPS, …
    type: str
    #: 1 where it supplies this machine now
    online: str = ""
    #: of a battery: Charging, Discharging, Full, …
    status: str = ""
    #: Device: the battery of a mouse, not of this machine
    scope: str = ""


def on_battery(supplies: Iterable[Supply]) -> bool:
    """Whether a battery of this machine is being emptied, and nothing else supplies it."""
    own = [supply for supply in supplies if supply.scope != "Device"]
    stored = [supply for supply in own if supply.type in ("Battery", "UPS")]
    return any(supply.status == "Discharging" for supply in stored) and not any(supply.online == "1" for supply in own if supply not in stored)


def stalled(pressure: str) -> float | None:
    """Percent of the last ten seconds in which some process could not go on for want of memory, of a page as /proc/pressure/memory is one."""
    found = _SOME.search(pressure)
    return None if found is None else float(found[1])


@dataclass(slots=True)
class Pausing:
    run: Run
    root: Path = Path("/")
    #: a sentence; empty while nothing is paused
    why: str = ""
    _calm: int = 0
    _next: float = 0.0

    def look(self, now: float) -> bool:
        """Called wherever the supervisor's loop comes by, ``now`` in monotonic seconds. Whether ``why`` has changed."""
        if now < self._next:
            return False
        self._next = now + EVERY_S
        why = self._reason()
        self._calm = 0 if why else self._calm + 1
        if why == self.why or (not why and self._calm < _CALM_LOOKS):
            return False
        self.why = why
        log.event(_LOGGER, f"paused: {why}" if why else "sweeps go on: what paused them is over")
        return True

    def heed(self, run: Run) -> None:
        """Other settings from now on."""
        self.run, self._next = run, 0.0

    def _reason(self) -> str:
        if self.run.pause_on_battery and on_battery(_supplies(self.root)):
            return _BATTERY
        limit = self.run.pause_on_pressure
        if isinstance(limit, Percent):
            calm = limit.percent * (_CALM_SHARE if self.why == _SHORT else 1)
            if (stalled(_pressure(self.root)) or 0.0) >= calm:
                return _SHORT
        return ""


def _supplies(root: Path) -> Iterator[Supply]:
    for place in sorted((root / "sys/class/power_supply").glob("*")):
        yield Supply(*(_text(place / name) for name in ("type", "online", "status", "scope")))


def _pressure(root: Path) -> str:
    """Of this machine; in a container that does not show it, of the control group."""
    if page := _text(root / "proc/pressure/memory"):
        return page
    return next((page for group in groups("memory", root) if group.unified and (page := _text(group.place / "memory.pressure"))), "")


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
