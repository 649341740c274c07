"""What can happen while a daemon starts, or because it does not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from daemons import Daemon

SMALL = ("--pool-size", "560KiB", "--front-max-context", "256")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_daemon_that_is_stopped_during_its_probe_ends_in_order(tiny_model: Path, tmp_path: Path, number: signal.Signals):
    """As a terminal does it: the signal goes to the whole process group."""
    with Daemon(tiny_model, tmp_path / "an empty cache", *SMALL, until="trying out") as daemon:
        assert _ended_by(daemon, number) == 0
        assert "planned" not in daemon.text() and "Traceback" not in daemon.text()


@pytest.mark.parametrize("at", ["planned", "serving"])
def test_ctrl_c_ends_a_daemon_in_order_whenever_it_comes(tiny_model: Path, probe_cache: Path, at: str):
    with Daemon(tiny_model, probe_cache, *SMALL, until=at) as daemon:
        assert _ended_by(daemon, signal.SIGINT) == 0
        assert "Traceback" not in daemon.text()


def _ended_by(daemon: Daemon, number: signal.Signals) -> int:
    """The exit code; that nothing is left is looked at when the daemon is left."""
    assert daemon.process is not None
    os.killpg(daemon.process.pid, number)
    return daemon.process.wait(30)
