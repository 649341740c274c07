"""How far reader and worker stand back for others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from potatod import priority
from potatod.sections import Run

#: Lowers itself as a stage does, beside a thread that is there already; says its priorities and those of threads before and after.
_CHILD = """
import os, sys, threading, psutil
from potatod import priority
from potatod.sections import Run
started, ended, found = threading.Event(), threading.Event(), []
def thread():
    started.set()
    ended.wait()
    found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
before = threading.Thread(target=thread)
before.start()
started.wait()
sentences = list(priority.lower(Run(nice=int(sys.argv[1]), io_priority=sys.argv[2])))
after = threading.Thread(target=thread)
after.start()
ended.set()
before.join()
after.join()
print(os.getpriority(os.PRIO_PROCESS, 0), *found, psutil.Process().ionice().ioclass.name, sentences)
"""


@pytest.mark.parametrize(("nice", "io"), [(7, "normal"), (0, "idle"), (0, "normal")])
def test_every_thread_of_a_process_stands_back_as_far_as_is_said(nice: int, io: str) -> None:
    said = subprocess.run([sys.executable, "-c", _CHILD, str(nice), io], capture_output=True, text=True, check=True).stdout.split()
    own = max(nice, os.getpriority(os.PRIO_PROCESS, 0))
    assert said[:3] == [str(own)] * 3
    assert (said[3] == "IOPRIO_CLASS_IDLE") is (io == "idle")
    assert said[4] == "[]"


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel does not group by session")
@pytest.mark.parametrize("alone", [True, False])
def test_a_session_stands_back_as_a_whole_where_it_is_the_processs_own(alone: bool) -> None:
    child = "from potatod.priority import lower, Run; print(list(lower(Run(nice=7))), open('/proc/self/autogroup').read())"
    said = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True, start_new_session=alone).stdout
    assert said.startswith("[] ")  # no more than that in the session of the machine's first process, which has no such value
    assert said.strip().endswith("nice 7") is alone


def test_who_is_told_to_come_again_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lets such values be changed ten times a second, by all processes together."""
    tried: list[str] = []

    def busy_at_first(_path: Path, text: str) -> int:
        tried.append(text)
        if len(tried) < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return len(text)

    monkeypatch.setattr(Path, "write_text", busy_at_first)
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())
    monkeypatch.setattr(os, "setpriority", lambda *_: None)
    monkeypatch.setattr(priority, "_OF_SESSION", Path("/proc/self/stat"))
    assert list(priority.lower(Run(nice=5))) == []
    assert tried == ["5"] * 3


def test_what_stands_back_further_already_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a service whose unit says so: there it is not even allowed to ask."""
    monkeypatch.setattr(os, "getpriority", lambda *_: 12)
    monkeypatch.setattr(os, "setpriority", _refuse)
    assert list(priority.lower(Run(nice=12))) == []


def test_what_the_system_does_not_allow_is_said_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    monkeypatch.setattr(os, "setpriority", _refuse)
    monkeypatch.setattr("psutil.Process.ionice", _refuse)
    nice, io = priority.lower(Run(nice=5, io_priority="idle"))
    assert nice.startswith("[run] nice has no effect: Operation not permitted")
    assert io.startswith("[run] io_priority has no effect")


def _refuse(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")
