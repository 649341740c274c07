"""`potatod plan` as a program, beside the daemon that it plans."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from daemons import BIN, Daemon

from potatod import rates
from potatod.config import Settings


@pytest.fixture
def planned(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `potatod plan` on the tiny model with a cache of its own, in which the processor is known: measuring that takes long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    computing = {"compute": [[1, 1e9], [16, 1e9]], "layer_s": 0.001, "device": "cpu", "upload": None, "overlaps": True}
    rates.kept_compute(Settings(), "float32").put(computing)

    def plan(*words: object, **variables: str) -> tuple[dict, str]:
        done = subprocess.run(
            [BIN / "potatod", "plan", *map(str, words), "--json"], capture_output=True, text=True, check=False, env={**os.environ, **variables}
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    return plan


def test_a_disk_that_nobody_has_tried_out_is_measured(planned, tiny_model):
    page, said = planned(tiny_model)
    assert page["disk_is"] == "measured" and page["outlooks"][0]["disk_bytes_per_s"] > 0
    assert "how fast this disk is" in said


def test_the_daemon_keeps_and_streams_what_was_planned(planned, tiny_model, probe_cache):
    """Both with the rates that the daemon's cache has: how much of the pool is a ring depends on them."""
    page, _ = planned(
        tiny_model, "--context", "256", POTATO_POOL__SIZE="900KiB", POTATO_WORKER__THREADS="1", XDG_CACHE_HOME=str(probe_cache)
    )  # fmt: skip
    with Daemon(tiny_model, probe_cache, "--pool-size", "900KiB", "--front-max-context", "256") as running:
        report = json.loads(running.client("status", "--json").stdout)["model"]
    for name in ("weights_bytes", "resident_bytes", "streamed_bytes_per_sweep"):
        assert report[name] == page[name] > 0


def test_a_checkpoint_is_planned_as_its_model_folder_is(planned, tiny_model):
    sources = (tiny_model.parent / "source", tiny_model.parent / "source" / "config.json", tiny_model)
    pages = [planned(source, "--ram", "2GB", "--disk", "1GB/s")[0] for source in sources]
    for page in pages:
        assert page["disk_is"] == "given"
        del page["model"]
        # an unknown tokenizer is taken for a large one
        for name in ("process_bytes", "available_bytes"):
            del page[name]
    assert pages[0] == pages[1] == pages[2]


def test_the_planning_program_carries_no_torch(planned, tiny_model):
    program = "import sys; from potatod.cli import main; main(sys.argv[1:]); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    words = ["plan", tiny_model.parent / "source", "--disk", "1GB/s", "--json"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    page, _, loaded = done.stdout.rstrip().rpartition("\n")
    assert json.loads(page)["layers"] > 0, done.stderr
    assert loaded == "[]"


def test_what_does_not_fit_is_one_sentence_with_the_missing_bytes(tiny_model):
    done = subprocess.run([BIN / "potatod", "plan", tiny_model, "--ram", "1MB", "--disk", "1GB/s"], capture_output=True, text=True, check=False)
    assert done.returncode == 71
    assert "more than the 1.0MB of RAM that are available" in done.stderr and len(done.stderr.splitlines()) == 1
