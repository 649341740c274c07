"""The configuration read again while the daemon runs: SIGHUP, `systemctl reload`. Pure but for the reading.

    SIGHUP ──▶ supervisor reads it again ──merge──▶ settings that hold ──Reload──▶ stages
                        └── is it wrong: nothing changes, and the log says why

What is not among LIVE was decided when the processes started, and holds until the daemon is started again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from . import log
from .config import Settings, build, keys
from .errors import PotatoError
from .notify import Systemd

#: Sections and keys that hold from the moment they are read.
LIVE: Final = frozenset({
    "[jobs] keep", "[jobs] size", "[jobs] per_user",
    "[gateway] hosts", "[gateway] origins",
    "[log] level", "[log] format",
    "[run] pause_on_battery", "[run] pause_on_pressure",
    *(key.label for key in keys() if key.section == "sampling"),
})  # fmt: skip

_LOGGER: Final = logging.getLogger("potatod.supervisor")


@dataclass(frozen=True, slots=True)
class Merged:
    """What was read again, put together with what holds."""

    settings: Settings
    #: labels of keys that differ: those that hold now, and those that wait for a restart
    changed: tuple[str, ...]
    waiting: tuple[str, ...]


def merge(holding: Settings, read: Settings) -> Merged:
    values, differing = {}, []
    for key in keys():
        values[key.section, key.name] = key.of(read if key.label in LIVE else holding)
        if key.of(holding) != key.of(read):
            differing.append(key.label)
    changed = tuple(label for label in differing if label in LIVE)
    waiting = [label for label in differing if label not in LIVE] + ["[[models]]"] * (holding.models != read.models)
    return Merged(build(values, holding.models), changed, tuple(waiting))


def read_again(read: Callable[[], Settings], holding: Settings) -> Settings | None:
    """The settings that hold from now on; the log says by name what changes and what waits. None where the configuration is wrong now."""
    try:
        merged = merge(holding, read())
    except PotatoError as error:
        log.event(_LOGGER, "the configuration was read again and is wrong: nothing changes", level=logging.ERROR, why=str(error))
        return None
    about = {"changed": ", ".join(merged.changed) or "nothing", "waits_for_a_restart": ", ".join(merged.waiting) or "nothing"}
    log.event(_LOGGER, "the configuration was read again", **about)
    return merged.settings


class Reloader:
    """SIGHUP, from the signal to the settings that it brings. ``read`` reads the configuration again; it may raise :class:`PotatoError`."""

    def __init__(self, read: Callable[[], Settings]) -> None:
        self._read = read
        self._terminal = Terminal()
        self._wanted = False
        #: whether other settings hold than those that the daemon was started with
        self.done = False

    def hung_up(self) -> bool:
        """SIGHUP has come. True where it says that the terminal is gone, and the daemon is to end."""
        self._wanted = True
        return self._terminal.gone

    def look(self, holding: Settings, systemd: Systemd) -> Settings | None:
        """Where it is wanted: other settings than those ``holding``, or the same anew. This process's own log follows them."""
        if not self._wanted:
            return None
        self._wanted = False
        with systemd.reloading():
            settings = read_again(self._read, holding)
            if settings is not None:
                self.done = True
                log.configure("supervisor", settings.log.level, settings.log.format)
            return settings


class Terminal:
    """Where the daemon was started. A terminal that is closed sends SIGHUP too, and that means the end."""

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._was_there = os.isatty(fd)

    @property
    def gone(self) -> bool:
        return self._was_there and not os.isatty(self._fd)
