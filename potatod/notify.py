"""What systemd is told, where it started us (sd_notify(3)): a datagram to $NOTIFY_SOCKET, nothing where there is none."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from .messages import Counted, Queued, State
from .watchdog import Watchdog

#: Its line about us is said anew at most so often, but at once where the engine's state changes, or it is paused or goes on.
_STATUS_S: Final = 10.0


def notify(**fields: str) -> None:
    """``notify(READY="1", STATUS="…")``. Never raises: a supervisor that cannot be reached changes nothing for us."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    address = "\0" + where[1:] if where.startswith("@") else where
    text = "\n".join(f"{name}={' '.join(value.split())}" for name, value in fields.items())  # a line is a field
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.sendto(text.encode(errors="replace"), address)
    except OSError:
        pass


def watchdog_s(environment: Mapping[str, str], pid: int) -> float | None:
    """WatchdogSec= of the unit, in seconds; None where nobody waits for process ``pid`` to be well."""
    text, whose = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdecimal()) or whose not in ("", str(pid)):
        return None
    return int(text) / 1e6 or None


def status_line(model: str, state: State, why: str, queued: Queued | None) -> str:
    if state != "up":
        return f"{state}: {model}" + (f", {why}" if why else "")
    if queued is None:
        return f"serving {model}"
    doing = f"{queued.running} running, {queued.waiting} waiting" if queued.running or queued.waiting else "nothing to do"
    if queued.paused:
        return f"paused: {model}, {queued.paused}: {doing}"
    held = "; jobs cannot be written" if queued.held else ""
    return f"serving {model}: {doing}" + (f", {queued.s_per_token:.3g} s/token" if queued.s_per_token is not None else "") + held


class Systemd:
    """All that it is told over the daemon's life: READY once and after each RELOADING, STATUS now and then, WATCHDOG where all is well, STOPPING."""

    def __init__(self, model: str, away_s: float) -> None:
        """``away_s``: as in watchdog.py."""
        interval_s = watchdog_s(os.environ, os.getpid())
        self._watchdog = None if interval_s is None else Watchdog(interval_s, away_s)
        self.model = model
        self._queued: Queued | None = None
        self._ready = False
        #: the engine's state, and whether it is paused
        self._doing: tuple[State, bool] | None = None
        self._line, self._said = "", 0.0

    def heard(self, message: Counted | Queued) -> None:
        if isinstance(message, Queued):
            self._queued = message
        if self._watchdog is not None:
            self._watchdog.heard(message)

    def look(self, now: float, state: State, why: str, pids: set[int]) -> None:
        """Called wherever the supervisor's loop comes by; ``pids``: the stages that there are."""
        if state == "up" and not self._ready:
            self._ready = True
            notify(READY="1")
        line = status_line(self.model, state, why, self._queued)
        doing = state, self._queued is not None and bool(self._queued.paused)
        if doing != self._doing or (line != self._line and now - self._said >= _STATUS_S):
            self._doing, self._line, self._said = doing, line, now
            notify(STATUS=line)
        if self._watchdog is not None and self._watchdog.due(now, state, pids):
            notify(WATCHDOG="1")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Around what changes while it goes on serving. Before it is ready for the first time there is nothing to tell."""
        if self._ready:
            notify(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))
        try:
            yield
        finally:
            if self._ready:
                notify(READY="1")

    def stopping(self) -> None:
        notify(STOPPING="1", STATUS=f"stopping: {self.model}")
