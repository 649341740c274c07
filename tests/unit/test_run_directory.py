"""The runtime directory: locked, and swept of what the daemon itself left there and of nothing else."""

from __future__ import annotations

import errno
import os
import shutil
import socket

import pytest

from potatod import run_directory
from potatod.errors import ConfigError, DoesNotFit, Unavailable

OURS = ("control", "bytes.3", "sweeps.12", "boot.3.json", "boot.0.front.json", "boot.probe.json")
OTHERS = ("bytes.csv", "sweeps.tsv", "boot.plan.json", "controls", "notes", "boot.1.json.bak")


def test_only_names_of_the_daemons_own_are_removed(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    (directory / "bytes.7").mkdir()
    for name in OTHERS:
        (directory / name).write_text("mine")
    for name in OURS[1:]:
        (directory / name).write_text("an earlier daemon's")
    with socket.socket(socket.AF_UNIX) as left, run_directory.held(directory):
        left.bind(str(directory / "control"))
    assert sorted(path.name for path in directory.iterdir()) == sorted([*OTHERS, "bytes.7", "lock"])


def test_it_is_swept_also_where_the_daemon_could_not_start(tmp_path):
    page = tmp_path / "run" / "boot.1.json"
    with pytest.raises(ZeroDivisionError), run_directory.held(tmp_path / "run"):
        page.write_text("{}") / 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_a_second_daemon_is_told_whose_it_is(tmp_path):
    again = run_directory.held(tmp_path / "run")
    with run_directory.held(tmp_path / "run"), pytest.raises(Unavailable, match=r"another daemon \(pid \d+\) runs in"):
        again.__enter__()
    with run_directory.held(tmp_path / "run"):
        pass


def test_a_directory_that_others_may_enter_is_refused(tmp_path):
    tmp_path.chmod(0o750)
    with pytest.raises(ConfigError, match="chmod 700"), run_directory.held(tmp_path):
        pass


def test_a_full_disk_is_told_with_the_directory(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DoesNotFit, match=f"no space is left in .run. directory {tmp_path}/run"), run_directory.held(tmp_path / "run"):
        full()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DoesNotFit), run_directory.held(tmp_path / "run"):
        raise AssertionError("not reached")


def test_other_errors_of_the_system_go_on_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), run_directory.held(tmp_path / "run"):
        (tmp_path / "nothing").read_text()


def test_a_directory_that_is_removed_meanwhile_hides_nothing(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    with run_directory.held(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
    with pytest.raises(Unavailable, match="the reason"), run_directory.held(tmp_path / "run"):
        _remove_and_fail(tmp_path / "run")
    assert set(os.listdir("/proc/self/fd")) == before


def _remove_and_fail(directory):
    shutil.rmtree(directory)
    raise Unavailable("the reason")
