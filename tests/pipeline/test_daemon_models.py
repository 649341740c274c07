"""A whole daemon that serves two models: each by its name, one in memory at a time, whoever dies."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from daemons import BIN, Daemon, make_model

FLAGS = ("--pool-size", "600KiB", "--front-max-context", "256")
QUESTION = ("What is a potato?", "--max-tokens", "12")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another family than the first, and another vocabulary's size."""
    folder = make_model(tmp_path_factory.mktemp("other"), family="Qwen2", seed=3)
    return folder.rename(folder.with_name("other"))


def test_each_answers_as_it_does_alone_and_an_engine_that_dies_is_made_anew(tiny_model: Path, other: Path, probe_cache: Path) -> None:
    alone = []
    for model in (tiny_model, other):
        with Daemon(model, probe_cache, *FLAGS) as daemon:
            alone.append(daemon.ask(*QUESTION)["token_ids"])
    assert alone[0] != alone[1]
    with Daemon(tiny_model, probe_cache, str(other), *FLAGS) as daemon:
        assert daemon.ask(*QUESTION)["token_ids"] == alone[0]
        assert daemon.ask("--model", "other", *QUESTION)["token_ids"] == alone[1]
        text = daemon.client("status").stdout
        assert "model: not loaded" in text and "other: loaded" in text
        jobs = [daemon.client("submit", "--model", name, *QUESTION).stdout.strip() for name in ("model", "other", "model")]
        daemon.until(lambda: daemon.stages().get("worker"), "an engine on its way").send_signal(signal.SIGKILL)
        assert [daemon.ask("attach", job)["token_ids"] for job in jobs] == [alone[0], alone[1], alone[0]]
        daemon.stages()["front"].send_signal(signal.SIGKILL)
        assert daemon.ask("--model", "other", *QUESTION)["token_ids"] == alone[1]
        refused = daemon.client("--model", "third", "x")
        assert refused.returncode == 66
        assert "there is no model 'third' here: model and other are served" in refused.stderr


def test_two_folders_of_the_same_name_cannot_be_told_from_each_other(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tiny_model)
    done = subprocess.run([BIN / "potatod", "start", tiny_model, tmp_path / "model"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 78
    assert "2 models are called model" in done.stderr


def test_one_that_cannot_be_loaded_is_refused_and_the_other_goes_on(tiny_model: Path, other: Path, probe_cache: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    subprocess.run(["cp", "-r", other, damaged], check=True)
    with Daemon(tiny_model, probe_cache, str(damaged), *FLAGS, "--run-restarts", "2") as daemon:
        shard = damaged / "layer.0001.safetensors"
        data = bytearray(shard.read_bytes())
        data[-4097:] = bytes(4097)
        shard.write_bytes(data)
        kept = daemon.client("submit", "--model", "damaged", *QUESTION).stdout.strip()
        daemon.until(lambda: "stays down" in daemon.client("--model", "damaged", "x").stderr, "the damaged one is refused")
        assert daemon.ask(*QUESTION)["completion_tokens"] == 12
        assert "damaged: stays down until the daemon is restarted, 0 running" in daemon.client("status").stdout
        assert json.loads(daemon.client("show", kept, "--json").stdout)["state"] == "queued"
