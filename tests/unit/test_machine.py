"""What Linux shows of a machine, read from files that stand for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from potatod import machine


def test_caches_that_cores_share_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    for core, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3")):
        for index, size in (("index2", "1024K"), ("index3", "32768K")):
            place = tmp_path / f"sys/devices/system/cpu/cpu{core}/cache" / index
            place.mkdir(parents=True)
            (place / "size").write_text(f"{size}\n")
            (place / "shared_cpu_list").write_text(f"{shared}\n")
    assert machine.cache_bytes(tmp_path) == 2 * (32 << 20)
    assert machine.cache_bytes(tmp_path / "nothing") == 0


def test_a_disk_is_named_by_its_number_and_by_what_is_mounted_of_it(tmp_path: Path) -> None:
    disk = machine.Disk("8:1", tmp_path)
    assert (disk.mounts, disk.identity, disk.turns) == ([], ["8:1", "", "", "", ""], False)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n23 1 8:2 / /home rw - xfs /dev/sda2 rw\n24 1 8:1 /a /b rw - ext4 /dev/sda1 rw\nnonsense\n"
    )
    block = tmp_path / "sys/dev/block/8:1"
    (block / "queue").mkdir(parents=True)
    (block / "queue/rotational").write_text("1\n")
    (block / "size").write_text("1000\n")
    assert disk.mounts == [("ext4", "/dev/sda1")] * 2
    assert disk.identity == ["8:1", "1000", "", "", "", "ext4 /dev/sda1"]
    assert disk.turns
