"""A draft model beside a model, as processes: how it is made, refused and asked, and that it changes no text."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from daemons import BIN, Daemon, make_model
from forked import Potatod

from potatod.store.verify import accept

SMALL = ("--pool-size", "560KiB", "--front-max-context", "256", "--front-max-sequences", "4")
ASKED = (
    ("The potato is a", "--raw", "--max-tokens", "60", "--temperature", "0"),
    ("The potato is a", "--raw", "--max-tokens", "60", "--temperature", "0.8", "--seed", "4"),
    ("One more of them", "--raw", "--max-tokens", "40", "--temperature", "1.2", "--top-k", "30", "--repetition-penalty", "1.1", "--seed", "9"),
)


def started(model: Path, place: Path, cache: Path, draft: object) -> subprocess.CompletedProcess[str]:
    """Where it is refused."""
    directories = ("--run-directory", place / "run", "--front-socket", f"ipc://{place}/s", "--jobs-path", place / "jobs.db")
    command = [BIN / "potatod", "start", model, *directories, "--speculation-draft", draft, "--worker-threads", "1"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False, env=environment)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, potatod: Potatod) -> Path:
    """With a copy in int8."""
    folder = make_model(tmp_path_factory.mktemp("drafted"))
    done = potatod("prepare", folder, "--draft", "int8")
    assert done.returncode == 0 and 'draft = "self:int8"' in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def texts(model: Path, probe_cache: Path) -> list[list[int]]:
    """Without any guesses."""
    with Daemon(model, probe_cache, *SMALL, "--speculation-enabled", "false") as daemon:
        return [daemon.ask(*asked)["token_ids"] for asked in ASKED]


def test_the_copy_is_there_once_and_shares_the_embedding(potatod: Potatod, model: Path) -> None:
    again = potatod("prepare", model, "--draft", "int8")
    assert again.returncode == 0 and again.stderr.endswith("has its int8 copy already, nothing to do\n")
    assert os.stat(model / "embed.safetensors").st_ino == os.stat(model / "draft.int8" / "embed.safetensors").st_ino
    assert potatod("verify", model).returncode == potatod("verify", model / "draft.int8").returncode == 0


@pytest.mark.slow
def test_texts_are_the_same_and_many_guesses_are_right(model: Path, probe_cache: Path, texts: list[list[int]]) -> None:
    with Daemon(model, probe_cache, *SMALL, "--speculation-draft", "self:int8", "--speculation-lookup", "false") as daemon:
        answers = [daemon.ask(*asked) for asked in ASKED]
        assert [answer["token_ids"] for answer in answers] == texts
        report = json.loads(daemon.client("status", "--json").stdout)["queue"]
        (draft,) = report["guesses"]
        assert draft["source"] == "draft" and draft["accepted_tokens"] > 50, "a copy in int8 nearly always says what the model says"
        assert draft["accepted_tokens"] == report["accepted_tokens"] and report["draft_failed"] == ""


@pytest.mark.slow
def test_what_is_asked_again_is_the_same_and_was_guessed(model: Path, probe_cache: Path, texts: list[list[int]]) -> None:
    with Daemon(model, probe_cache, *SMALL) as daemon:
        accepted = [0]
        for _ in range(3):
            assert [daemon.ask(*asked)["token_ids"] for asked in ASKED] == texts
            accepted.append(json.loads(daemon.client("status", "--json").stdout)["queue"]["accepted_tokens"])
        first, _, last = (after - before for before, after in itertools.pairwise(accepted))
        assert last > first + sum(map(len, texts)) / 4, "what was answered before is as good as known"


@pytest.mark.slow
def test_a_worker_that_dies_takes_the_draft_model_with_it_and_both_come_back(model: Path, probe_cache: Path, texts: list[list[int]]) -> None:
    with Daemon(model, probe_cache, *SMALL, "--speculation-draft", "self:int8") as daemon:
        assert daemon.ask(*ASKED[0])["token_ids"] == texts[0]
        os.kill(daemon.stages()["worker"].pid, signal.SIGKILL)
        assert daemon.ask(*ASKED[1])["token_ids"] == texts[1]
        assert daemon.ask(*ASKED[0])["token_ids"] == texts[0]


@pytest.mark.slow
def test_a_copy_that_is_damaged_while_it_guesses_ends_the_guessing_and_no_answer(
    model: Path, probe_cache: Path, texts: list[list[int]], tmp_path: Path
) -> None:
    own = shutil.copytree(model, tmp_path / "model")
    with Daemon(own, probe_cache, *SMALL, "--speculation-draft", "self:int8") as daemon:
        assert daemon.ask(*ASKED[0])["token_ids"] == texts[0]
        layer = own / "draft.int8" / "layer.0001.safetensors"
        data = bytearray(layer.read_bytes())
        data[-100] ^= 1
        layer.write_bytes(data)
        os.kill(daemon.stages()["worker"].pid, signal.SIGKILL)
        assert daemon.ask(*ASKED[1])["token_ids"] == texts[1]
        report = json.loads(daemon.client("status", "--json").stdout)["queue"]
        assert "layer.0001.safetensors: the part at offset 4096 is damaged" in report["draft_failed"]
        assert daemon.text().count("the draft model has failed") == 1


def test_a_copy_of_other_weights_is_refused_and_made_anew(potatod: Potatod, model: Path, probe_cache: Path, tmp_path: Path) -> None:
    own = shutil.copytree(model, tmp_path / "model")
    (own / "draft.int8" / "copy_of").write_text("another model\n")
    done = started(own, tmp_path, probe_cache, "self:int8")
    assert done.returncode == 65 and f"`potatod prepare {own} --draft int8`" in done.stderr, done.stderr
    assert potatod("prepare", own, "--draft", "int8").stderr.count("has an int8 copy now") == 1
    assert potatod("prepare", own, "--draft", "int8").stderr.count("nothing to do") == 1


def test_the_plan_takes_the_draft_model_s_room_from_the_ram(potatod: Potatod, model: Path, probe_cache: Path) -> None:
    pages = []
    for draft in ("", "self:int8", "self:int4"):
        done = potatod(
            "plan", model, "--ram", "2GiB", "--disk", "1GB/s", "--json", "--draft", draft, XDG_CACHE_HOME=str(probe_cache),
            POTATO_WORKER__THREADS="1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        pages.append(json.loads(done.stdout))
    weights = sum(file.stat().st_size for file in (model / "draft.int8").glob("layer.*"))
    assert pages[0]["draft_bytes"] == 0 and pages[1]["draft_bytes"] > weights
    assert pages[1]["process_bytes"] - pages[0]["process_bytes"] > weights
    assert [page["draft"] and page["draft"]["made_by"] for page in pages] == [None, None, f"potatod prepare {model} --draft int4"]
    assert pages[1]["draft"]["recommended"] == (pages[1]["draft"]["with_s_per_token"] < 0.97 * pages[1]["draft"]["without_s_per_token"])


def test_a_copy_that_is_not_there_is_exit_66_with_the_command_that_makes_it(model: Path, probe_cache: Path, tmp_path: Path) -> None:
    done = started(model, tmp_path, probe_cache, "self:int4")
    assert done.returncode == 66 and f"potatod prepare {model} --draft int4" in done.stderr and "Traceback" not in done.stderr


def test_a_draft_model_that_is_none_or_the_model_itself_is_refused(model: Path, probe_cache: Path, tmp_path: Path) -> None:
    nothing = started(model, tmp_path, probe_cache, tmp_path / "nothing")
    assert nothing.returncode == 66 and "is no model folder" in nothing.stderr
    itself = started(model, tmp_path, probe_cache, model)
    assert itself.returncode == 78 and "names the model itself" in itself.stderr
    unknown = started(model, tmp_path, probe_cache, "self:q4")
    assert unknown.returncode == 78 and '"self:int4"' in unknown.stderr


@pytest.mark.slow
def test_another_vocabulary_is_refused_with_the_first_token_that_differs(model: Path, probe_cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    page = json.loads((other / "tokenizer.json").read_text())
    words = page["model"]["vocab"]
    words["A"], words["B"] = words["B"], words["A"]
    (other / "tokenizer.json").write_text(json.dumps(page))
    accept(other)
    done = started(model, tmp_path, probe_cache, other)
    first = min(words["A"], words["B"])
    assert done.returncode == 65 and f'token {first} is "A" in one and "B" in the other' in done.stderr, done.stderr


@pytest.mark.slow
def test_a_family_whose_states_cannot_be_taken_back_is_refused(potatod: Potatod, probe_cache: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path, family="Mamba")
    done = potatod("prepare", folder, "--draft", "int8")
    assert done.returncode == 0, done.stderr
    refused = started(folder, tmp_path, probe_cache, "self:int8")
    assert refused.returncode == 65 and "cannot be taken back" in refused.stderr, refused.stderr
