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


_CHILD = """
import os, sys, time
os.write(1, str(os.getpid()).encode() + b"\\n")
sys.stdin.readline()  # as if it imported for so long
from potatod.stage import die_with_parent
die_with_parent()
os.write(1, b"lives on\\n")
time.sleep(600)
"""
_PARENT = """
import subprocess, sys
from potatod import process
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=process.environment())
child.wait()
"""


@pytest.mark.parametrize("orphan", [True, False])
def test_a_stage_whose_parent_ends_before_it_has_begun_ends_too(orphan: bool) -> None:
    """The kernel is asked only then, and knows of no parent that ended before."""
    with subprocess.Popen([sys.executable, "-c", _PARENT, _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            if orphan:
                parent.kill()
                parent.wait()
            parent.stdin.write("\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == ("" if orphan else "lives on\n")
        finally:
            parent.kill()
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
