"""How much RAM there really is."""

from __future__ import annotations

import psutil
import pytest

from potatod import memory
from potatod.memory import OWN_RESERVE, SHARED_RESERVE, Available


def _cgroup(root, controllers, files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(controllers)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_v2_limit_counts_less_what_is_used_and_cache_counts_as_free(tmp_path):
    _cgroup(tmp_path, "0::/user/app\n", {
        "user/app/memory.max": "1000000\n", "user/app/memory.current": "600000\n",
        "user/app/memory.stat": "anon 500000\nactive_file 40000\ninactive_file 60000\n",
    })  # fmt: skip
    assert memory.available(tmp_path) == Available(1_000_000 - 500_000, OWN_RESERVE)


def test_the_tightest_of_all_levels_counts(tmp_path):
    _cgroup(tmp_path, "0::/a/b\n", {
        "a/memory.max": "500\n", "a/memory.current": "100\n", "a/memory.stat": "inactive_file 0\n",
        "a/b/memory.max": "max\n", "a/b/memory.current": "100\n", "a/b/memory.stat": "inactive_file 0\n",
    })  # fmt: skip
    assert memory.available(tmp_path) == Available(400, SHARED_RESERVE)


def test_a_v1_limit_counts_too(tmp_path):
    _cgroup(tmp_path, "4:memory:/x\n3:cpu:/x\n", {
        "memory/x/memory.limit_in_bytes": "3000\n", "memory/x/memory.usage_in_bytes": "2000\n",
        "memory/x/memory.stat": "active_file 7\ntotal_active_file 200\ntotal_inactive_file 300\n",
    })  # fmt: skip
    assert memory.available(tmp_path) == Available(1500, OWN_RESERVE)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
def test_without_a_limit_the_machine_s_available_memory_counts(tmp_path, limit):
    _cgroup(tmp_path, "0::/\n", {"memory.max": limit, "memory.current": "1", "memory.stat": "inactive_file 0\n"})
    found = memory.available(tmp_path)
    assert found.reserve_bytes == SHARED_RESERVE
    assert found.size_bytes == pytest.approx(psutil.virtual_memory().available, rel=0.05)


def test_an_overdrawn_cgroup_leaves_nothing_rather_than_less(tmp_path):
    _cgroup(tmp_path, "0::/\n", {
        "memory.max": "10", "memory.current": "20", "memory.stat": "inactive_file 0\n",
    })  # fmt: skip
    assert memory.available(tmp_path) == Available(0, OWN_RESERVE)


def test_a_limit_just_below_the_machine_s_leaves_the_machine_what_it_needs(tmp_path):
    """Whichever spares least decides, not whichever is less."""
    machine = psutil.virtual_memory().available
    _cgroup(tmp_path, "0::/x\n", {"x/memory.max": f"{machine - 50_000_000}\n", "x/memory.current": "0\n", "x/memory.stat": ""})
    assert memory.available(tmp_path).reserve_bytes == SHARED_RESERVE
