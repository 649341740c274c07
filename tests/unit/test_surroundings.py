"""What of a machine is warned of, on machines made of files."""

from __future__ import annotations

import os
from pathlib import Path

from potatod.surroundings import Swapping, before


def machine(root: Path, folder: Path, *, kind: str = "ext4", turns: bool = False, flags: str = "fpu avx2") -> Path:
    number = os.stat(folder).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(f"1 1 0:5 / /proc rw - proc proc rw\n22 1 {device} / / rw,relatime shared:1 - {kind} /dev/x rw\n")
    (root / "proc/cpuinfo").write_text(f"processor : 0\nflags : {flags}\n\nprocessor : 1\n")
    queue = root / "sys/dev/block" / device / "queue"
    queue.mkdir(parents=True)
    (queue / "rotational").write_text("1\n" if turns else "0\n")
    return root


def said(root: Path, folder: Path, streamed: int = 10**9, rate: float = 1e9, threads: int = 0, cores: int = 2) -> list[str]:
    return list(before(folder, streamed, rate, threads, root=root, cores=cores))


def test_an_ordinary_machine_is_not_warned_of(tmp_path):
    assert said(machine(tmp_path / "m", tmp_path), tmp_path) == []


def test_a_network_file_system_is_named_where_anything_streams(tmp_path):
    root = machine(tmp_path / "m", tmp_path, kind="nfs4")
    (sentence,) = said(root, tmp_path)
    assert "a network file system (nfs4)" in sentence and "every sweep reads 1.0GB from it" in sentence
    assert said(root, tmp_path, streamed=0) == []


def test_a_rotating_disk_is_warned_of_where_it_is_slow_too(tmp_path):
    root = machine(tmp_path / "m", tmp_path, turns=True)
    (sentence,) = said(root, tmp_path, rate=1.5e8)
    assert "a rotating disk (150MB/s)" in sentence
    assert said(root, tmp_path, rate=2e9) == [], "a virtual one that says it turns"


def test_more_threads_than_cores_one_core_and_an_old_processor_are_said(tmp_path):
    root = machine(tmp_path / "m", tmp_path, flags="fpu sse2")
    sentences = said(root, tmp_path, threads=3, cores=1)
    assert [next(word for word in ("threads is 3", "one core", "no AVX2") if word in s) for s in sentences] == ["threads is 3", "one core", "no AVX2"]


def test_a_machine_that_shows_nothing_is_not_warned_of(tmp_path):
    assert said(tmp_path / "empty", tmp_path) == []


def test_swapping_is_said_when_much_has_come_back_within_a_minute(tmp_path):
    (tmp_path / "proc").mkdir()
    stat = tmp_path / "proc/vmstat"
    swapping = Swapping(root=tmp_path)
    stat.write_text("pgpgin 5\npswpin 100000\npswpout 1\n")
    assert swapping.look(0.0) is None, "what was before is no news"
    stat.write_text("pswpin 200000\n")
    assert swapping.look(30.0) is None, "not every time"
    assert "410MB came back from swap" in (swapping.look(61.0) or "")
    assert swapping.look(122.0) is None
    stat.unlink()
    assert swapping.look(183.0) is None
