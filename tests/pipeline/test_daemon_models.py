"""A whole daemon that serves two models: each by its name, one in memory at a time, whoever dies."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from daemons import BIN, Daemon, make_model
from forked import Potatod

FLAGS = ("--pool-size", "600KiB", "--front-max-context", "256")
QUESTION = ("What is a potato?", "--max-tokens", "12")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another family than the first, and another vocabulary's size."""
    folder = make_model(tmp_path_factory.mktemp("other"), family="Qwen2", seed=3)
    return folder.rename(folder.with_name("other"))


def greedy(source: Path, count: int) -> list[int]:
    """What transformers says."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION[0]}], add_generation_prompt=True)["input_ids"]
    out: list[int] = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0)[0, len(ids) :].tolist()
    return out


def test_each_answers_as_it_does_alone_whichever_process_is_killed(tiny_model: Path, other: Path, probe_cache: Path) -> None:
    with Daemon(tiny_model, probe_cache, str(other), *FLAGS) as daemon:
        texts = {}
        for name, folder in (("model", tiny_model), ("other", other)):
            answer = daemon.ask("--model", name, *QUESTION)
            assert answer["token_ids"] == greedy(folder.parent / "source", 12)
            texts[name] = answer["text"].strip()
        text = daemon.client("status").stdout
        assert "model: not loaded" in text and "other: loaded" in text
        jobs = [daemon.client("submit", "--model", name, *QUESTION).stdout.strip() for name in ("model", "other", "model")]
        daemon.until(lambda: daemon.stages().get("worker"), "an engine on its way").send_signal(signal.SIGKILL)
        assert [daemon.client("attach", job).stdout.strip() for job in jobs] == [texts[name] for name in ("model", "other", "model")]
        last = daemon.client("submit", *QUESTION).stdout.strip()
        daemon.stages()["front"].send_signal(signal.SIGKILL)
        daemon.until(lambda: daemon.text().count("front is ready") == 2, "another front")
        assert daemon.client("attach", last).stdout.strip() == texts["model"]
        refused = daemon.client("--model", "third", "x")
        assert refused.returncode == 66
        assert "there is no model 'third' here: model and other are served" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_draft_model_comes_and_goes_with_its_model_and_changes_no_text(
    potatod: Potatod, other: Path, probe_cache: Path, tmp_path: Path
) -> None:  # fmt: skip
    drafted = make_model(tmp_path).rename(tmp_path / "drafted")
    assert potatod("prepare", drafted, "--draft", "int8").returncode == 0
    question = ("The potato is a", "--raw", "--max-tokens", "60", "--temperature", "0.8", "--seed", "4")
    texts = {}
    for folder in (drafted, other):
        with Daemon(folder, probe_cache, *FLAGS, "--speculation-enabled", "false") as daemon:
            texts[folder.name] = daemon.ask(*question)["text"].strip()
    entries = f'[[models]]\npath = "{other}"\n\n[[models]]\npath = "{drafted}"\ndraft = "self:int8"\n'
    with Daemon(None, probe_cache, *FLAGS, "--speculation-lookup", "false", config=entries) as daemon:

        def guessed() -> int:
            queue = json.loads(daemon.client("status", "--json").stdout)["queue"]
            assert queue["draft_failed"] == "" and {guess["source"] for guess in queue["guesses"]} <= {"draft"}
            right: int = queue["accepted_tokens"]
            return right

        def turn_of(name: str) -> None:
            before = guessed()
            assert daemon.ask("--model", name, *question)["text"].strip() == texts[name]
            assert guessed() > before + 4 if name == "drafted" else guessed() == before, name

        turn_of("other")
        turn_of("drafted")
        daemon.stages()["worker"].send_signal(signal.SIGKILL)
        names, before = ("drafted", "other") * 2, guessed()
        jobs = [daemon.client("submit", "--model", name, *question).stdout.strip() for name in names]
        assert [daemon.client("attach", job).stdout.strip() for job in jobs] == [texts[name] for name in names]
        assert guessed() > before + 8
        turn_of("drafted")


def test_two_folders_of_the_same_name_cannot_be_told_from_each_other(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tiny_model)
    done = subprocess.run([BIN / "potatod", "start", tiny_model, tmp_path / "model"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 78
    assert "2 models are called model" in done.stderr


def test_a_copy_of_a_model_is_not_another_one(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "twin")
    done = subprocess.run([BIN / "potatod", "start", tiny_model, tmp_path / "twin"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 78
    assert "are the same model" in done.stderr


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
