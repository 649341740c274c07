"""A stage as the supervisor holds it: ended, killed, and one that not even SIGKILL ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from potatod import process
from potatod.process import Process


@pytest.fixture
def stage():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield Process("reader", child, os.pidfd_open(child.pid), time.time(), time.monotonic())
    child.kill()
    child.wait()


def test_one_that_does_not_end_by_itself_is_killed(stage):
    assert stage.alive
    assert stage.reap(0) == -signal.SIGKILL
    assert not stage.alive and not stage.lost


def test_one_that_stands_in_the_kernel_is_given_up(stage, monkeypatch):
    monkeypatch.setattr(process, "LOST_S", 0.2)
    monkeypatch.setattr(Process, "signal", lambda *_: None)  # as if it stood in a read that does not come back
    stage.kill()
    assert stage.alive
    time.sleep(0.3)
    assert stage.lost and not stage.alive
    assert stage.reap(0) == -signal.SIGKILL  # comes back
