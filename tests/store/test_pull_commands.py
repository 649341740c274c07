"""`potatod pull` as a person uses it: what is shown and asked, what is printed, what the exit code says, and names afterwards."""

from __future__ import annotations

import os
import re
import sys

import pexpect
import pytest
from daemons import know_rates
from factories import checkpoint
from forked import Potatod
from hubs import Hub

PROGRAM = [sys.executable, "-c", "import sys; from potatod.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub(checkpoint(tmp_path_factory.mktemp("hub") / "files", tokenizer=True, shard_size="250KB")) as hub:
        yield hub


@pytest.fixture(scope="module")
def environment(tmp_path_factory, hub):
    place = tmp_path_factory.mktemp("home")
    know_rates(place / "cache")
    homes = {"POTATO_HOME": str(place), "XDG_CACHE_HOME": str(place / "cache"), "HF_HOME": str(place / "hf")}
    return {**os.environ, **homes, "HF_ENDPOINT": hub.endpoint, "POTATO_WORKER__THREADS": "1"}  # for so many the rates are known


@pytest.fixture(scope="module")
def potatod(environment):
    with Potatod(environment) as potatod:
        yield potatod


def test_a_model_is_pulled_by_its_id_and_verified_by_its_name(hub, potatod):
    refused = potatod("pull", "tiny/llama", "--dtype", "int8")
    assert refused.returncode == 64 and refused.stderr.splitlines()[-1] == "potatod: nobody can be asked here whether to go on: run it with -y"
    done = potatod("pull", "tiny/llama", "--dtype", "int8", "-y")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "model     tiny/llama at 0123456789ab; licence: apache-2.0"
    assert lines[1] == "download  1.3MB in 6 files"
    assert re.fullmatch(r"disk      .* more at the most \(.* when it is done\), .* are free", lines[2])
    assert re.fullmatch(r"a token   .* s with a disk of 500MB/s, .* s with .* s with a disk of 7.0GB/s", lines[3])
    assert re.fullmatch(r".*/models/llama:int8 is ready \(.* s\): `potatod start llama:int8` serves it", lines[-1])
    again = potatod("pull", "tiny/llama", "--dtype", "int8")
    assert again.returncode == 0 and again.stderr.endswith("is there already, nothing to do\n")
    verified = potatod("verify", "llama:int8")
    assert verified.returncode == 0 and "/models/llama:int8 is whole" in verified.stderr
    shown = potatod("config", "llama:int8")
    assert re.search(r'^path = ".*/models/llama:int8"', shown.stdout, re.MULTILINE)


@pytest.mark.parametrize(("answer", "code"), [("n", 130), ("y", 0)])
def test_on_a_terminal_it_asks(tmp_path, hub, environment, answer, code):
    child = pexpect.spawn(
        PROGRAM[0], [*PROGRAM[1:], "pull", "tiny/llama", str(tmp_path / "out")], env=environment, dimensions=(24, 160), timeout=60, use_poll=True
    )  # fmt: skip
    child.expect(r"go on\? \[y/N\]")
    child.sendline(answer)
    child.expect(pexpect.EOF)
    child.close()
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", child.before.decode())
    assert child.exitstatus == code
    assert (tmp_path / "out" / "manifest.json").exists() == (answer == "y") == ("downloaded" in screen)
    assert answer == "y" or not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "code", "sentence"), [
    (["tiny/nothing", "OUT", "-y"], 66, "there is no model tiny/nothing at the hub"),
    (["nothing", "OUT", "-y"], 64, "no hub id"),
    (["tiny/llama", "OUT", "--dtype", "int3", "-y"], 64, "int3"),
    (["tiny/llama", "OUT", "--revision", "gone", "-y"], 66, "no revision 'gone'"),
])  # fmt: skip
def test_what_cannot_be_pulled_is_one_sentence_and_a_code(tmp_path, potatod, arguments, code, sentence):
    done = potatod("pull", *(str(tmp_path / "out") if each == "OUT" else each for each in arguments))
    assert done.returncode == code
    assert sentence in done.stderr and done.stderr.count("\n") == 1
