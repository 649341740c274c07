"""`potatod prepare` and `potatod verify` as a person uses them: what is printed, what the exit code says."""

from __future__ import annotations

import json
import re
import sys

import pexpect
import pytest
from factories import checkpoint

from potatod.store.prepare import prepare

POTATOD = [sys.executable, "-c", "import sys; from potatod.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("commands") / "source", tokenizer=True)


def test_a_model_is_prepared_found_there_and_verified(potatod, tmp_path, source):
    out = tmp_path / "out"
    first = potatod("prepare", source, out, "--dtype", "bfloat16")
    assert (first.returncode, first.stdout) == (0, "")
    assert first.stderr.splitlines()[-1].startswith(f"{out} is ready (")
    again = potatod("prepare", source, out, "--dtype", "bfloat16")
    assert (again.returncode, again.stderr) == (0, f"{out} is there already, nothing to do\n")
    other = potatod("prepare", source, out, "--dtype", "float32")
    assert other.returncode == 64 and "--force" in other.stderr
    assert potatod("prepare", source, out, "--dtype", "float32", "--force").returncode == 0
    verified = potatod("verify", out)
    assert verified.returncode == 0 and f"{out} is whole" in verified.stderr


def test_a_folder_of_another_transformers_is_upgraded_or_the_source_is_asked_for(potatod, tmp_path, source):
    out = tmp_path / "out"
    prepare(source, out)
    now = json.loads((out / "manifest.json").read_text())["transformers"]
    same = potatod("prepare", "--upgrade", out)
    assert (same.returncode, same.stdout, same.stderr) == (0, "", f"{out} is as transformers {now} builds it, nothing to do\n")
    page = json.loads((out / "manifest.json").read_text()) | {"transformers": "4.56.0", "fingerprint": "0" * 16}
    (out / "manifest.json").write_text(json.dumps(page))
    done = potatod("prepare", "--upgrade", out)
    assert done.returncode == 0
    assert done.stderr.startswith(f"{out} is upgraded from transformers 4.56.0 to {now}: only its manifest was written anew (")
    (out / "config.json").write_text((out / "config.json").read_text().replace('"vocab_size": 320', '"vocab_size": 321'))
    accepted = potatod("verify", out, "--accept")
    assert (accepted.returncode, accepted.stderr) == (0, f"{out}: config.json taken as now\n")
    refused = potatod("prepare", "--upgrade", out)
    assert refused.returncode == 65 and refused.stderr.count("\n") == 1
    assert "[320, 64] and needs [321, 64]); prepare the model again from its source" in refused.stderr


def test_a_damaged_shard_is_named_and_the_exit_code_is_65(potatod, tmp_path, source):
    prepare(source, tmp_path / "out")
    path = tmp_path / "out" / "layer.0003.safetensors"
    data = bytearray(path.read_bytes())
    data[9000] ^= 4
    path.write_bytes(data)
    done = potatod("verify", tmp_path / "out")
    assert done.returncode == 65
    assert "layer 3 (layer.0003.safetensors at byte" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("arguments", "code", "sentence"), [
    (["prepare", "/nowhere/at-all", "OUT"], 66, "neither a file, nor a folder, nor a hub id"),
    (["prepare", "SOURCE", "OUT", "--dtype", "int3"], 64, "int3"),
    (["prepare", "SOURCE"], 64, "OUT"),
    (["prepare", "SOURCE", "OUT", "--revision", "main"], 64, "--revision"),
    (["prepare", "SOURCE", "SOURCE/config.json"], 64, "is a file"),
    (["prepare"], 64, "SOURCE and OUT are needed"),
    (["prepare", "--upgrade"], 64, "--upgrade"),
    (["prepare", "SOURCE", "--upgrade", "OUT"], 64, "neither SOURCE nor other options"),
    (["prepare", "--upgrade", "SOURCE", "OUT"], 64, "neither SOURCE nor other options"),
    (["prepare", "--upgrade", "OUT", "--force"], 64, "neither SOURCE nor other options"),
    (["prepare", "--upgrade", "/nowhere/at-all"], 66, "no model folder"),
    (["verify", "/nowhere/at-all"], 66, "no model folder"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_sentence_and_a_code(potatod, tmp_path, source, arguments, code, sentence):
    places = {"SOURCE": str(source), "OUT": str(tmp_path / "out"), "SOURCE/config.json": str(source / "config.json")}
    done = potatod(*(places.get(argument, argument) for argument in arguments))
    assert done.returncode == code
    assert sentence in done.stderr and done.stderr.count("\n") == 1


def test_an_unwritable_place_is_a_sentence(potatod, tmp_path, source):
    done = potatod("prepare", source, "/proc/nothing/here")
    assert done.returncode != 0
    assert done.stderr.startswith("potatod: ") and "/proc/nothing/here" in done.stderr and done.stderr.count("\n") == 1


def test_on_a_terminal_a_bar_shows_layers_bytes_and_rate(tmp_path, source):
    child = pexpect.spawn(POTATOD[0], [*POTATOD[1:], "prepare", str(source), str(tmp_path / "out")], dimensions=(24, 160), timeout=60, use_poll=True)
    child.expect(pexpect.EOF)
    child.close()
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", child.before.decode())
    assert child.exitstatus == 0
    assert re.search(r"preparing layer \d/6 .*[kM]B", screen)
    assert f"{tmp_path / 'out'} is ready" in screen


def test_help_says_what_can_be_killed_and_what_is_never_written(potatod, source):
    done = potatod("prepare", "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "goes on where it stopped" in text and "Never writes to SOURCE" in text
