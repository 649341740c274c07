"""The daemon under systemd: what its unit allows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
from daemons import Daemon

#: `potatod`, of the package that these tests are of.
PROGRAM = "import sys; from potatod.cli import main; sys.exit(main())"


def test_the_memory_that_a_unit_allows_is_more_than_all_processes_take_and_not_much_more(tiny_model: Path, probe_cache: Path, tmp_path: Path) -> None:
    config = tmp_path / "potatod.toml"
    config.write_text(f'[model]\npath = "{tiny_model}"\n[pool]\nsize = "560KiB"\n[gateway]\nlisten = "127.0.0.1:0"\ntoken = "token"\n')
    unit = subprocess.run(
        [sys.executable, "-c", PROGRAM, "install-service", "--print", "--user", "--config", str(config)],
        capture_output=True, text=True, check=True, env={**os.environ, "XDG_CACHE_HOME": str(probe_cache)},
    ).stdout  # fmt: skip
    found = re.search(r"^MemoryMax=(\d+)M$", unit, re.MULTILINE)
    assert found is not None, unit
    allowed = int(found[1]) << 20
    with Daemon(tiny_model, probe_cache, config=config.read_text().replace("token =", "path = 'gateway'\ntoken ="), program=PROGRAM) as daemon:
        daemon.ask("hello", "--max-tokens", "20")
        assert daemon.process is not None
        assert "gateway" in daemon.stages()
        processes = [psutil.Process(daemon.process.pid), *daemon.stages().values()]
        taken = sum(process.memory_full_info().pss for process in processes)
    assert taken < allowed < taken + (1 << 30)
