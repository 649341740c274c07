"""Model folders that are damaged, lie, or change while they are served: no token is made of wrong bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from daemons import BIN, Daemon

SMALL = ("--pool-size", "560KiB", "--front-max-context", "256")
#: What Daemon has too: with another number of threads everything would be tried out anew.
AS_DAEMONS = ("--worker-threads", "1")


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def _start(model: Path, cache: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "potatod", "start", model, *SMALL, *AS_DAEMONS, "--run-directory", tmp_path / "run", "--front-socket", f"ipc://{tmp_path}/s"],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2], ids=["of a layer", "of the head"])
def test_a_flipped_bit_ends_the_daemon_with_65_before_a_token_is_made_of_it(copy: Path, probe_cache: Path, seed: int):
    """At the latest in the first sweep: every part is compared with its checksum when it is first read."""
    shuffled = random.Random(seed)
    manifest = json.loads((copy / "manifest.json").read_text())
    shard = shuffled.choice([s for s in manifest["shards"] if s["kind"] in ("layer", "head")])
    part = shuffled.choice(shard["parts"])
    path = copy / part["file"]
    data = bytearray(path.read_bytes())
    data[part["offset"] + shuffled.randrange(part["length"])] ^= 1 << shuffled.randrange(8)
    path.write_bytes(data)
    with Daemon(copy, probe_cache, *SMALL) as daemon:
        asked = daemon.client("hello", "--max-tokens", "5")
        assert asked.returncode in (69, 75), "the daemon is gone, or is just going"
        assert asked.stdout == ""
        assert daemon.process.wait(30) == 65
        assert path.name in daemon.text() and "Traceback" not in daemon.text()
    verified = subprocess.run([BIN / "potatod", "verify", copy], capture_output=True, text=True, check=False)
    assert verified.returncode == 65 and path.name in verified.stderr


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (lambda m: (m / "layer.0003.safetensors").unlink(), 65, "layer.0003.safetensors"),
        (lambda m: os.truncate(m / "layer.0002.safetensors", 8192), 65, "layer.0002.safetensors"),
        (lambda m: (m / "manifest.json").unlink(), 66, "potatod prepare"),
        (lambda m: (m / "manifest.json").write_text("{"), 65, "manifest.json"),
        (lambda m: (m / "config.json").unlink(), 65, "config.json"),
        (lambda m: (m / "tokenizer.json").unlink(), 65, "tokenizer.json is missing"),
        (lambda m: shutil.rmtree(m), 66, "potatod prepare"),
        (lambda m: _swap(m), 65, "damaged"),
    ],
)
def test_a_damaged_folder_is_one_sentence_and_an_exit_code(copy: Path, probe_cache: Path, tmp_path: Path, damage, code, says):
    damage(copy)
    done = _start(copy, probe_cache, tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert says in done.stderr


def test_a_mirror_is_read_too_and_one_that_is_another_model_is_refused(tiny_model: Path, copy: Path, probe_cache: Path, tmp_path: Path):
    asked = ("hello", "--max-tokens", "6", "--temperature", "0")
    with Daemon(tiny_model, probe_cache, *SMALL, "--model-mirrors", str(copy)) as daemon:
        assert "from 2 folders at the same time" in daemon.text()
        mirrored = daemon.ask(*asked)["text"]
    with Daemon(tiny_model, probe_cache, *SMALL) as daemon:
        assert daemon.ask(*asked)["text"] == mirrored
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text().replace('"tied": false', '"tied": true'))
    done = subprocess.run(
        [BIN / "potatod", "start", tiny_model, *SMALL, *AS_DAEMONS, "--model-mirrors", copy, "--run-directory", tmp_path / "run", "--front-socket",
         f"ipc://{tmp_path}/s"], capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "XDG_CACHE_HOME": str(probe_cache)},
    )  # fmt: skip
    assert done.returncode == 65 and f"{copy} is not the model of" in done.stderr


def test_a_mirror_with_a_flipped_bit_is_named_before_a_token_is_made_of_it(tiny_model: Path, copy: Path, probe_cache: Path):
    shard = next(s for s in json.loads((copy / "manifest.json").read_text())["shards"] if s["kind"] == "layer" and s["layer"] == 2)
    path = copy / shard["parts"][0]["file"]
    data = bytearray(path.read_bytes())
    for part in shard["parts"]:
        data[part["offset"]] ^= 1
    path.write_bytes(data)
    with Daemon(tiny_model, probe_cache, *SMALL, "--model-mirrors", str(copy), "--reader-verify", "first") as daemon:
        daemon.client("hello", "--max-tokens", "5")  # two sweeps or more: by then each folder's parts have been compared
        daemon.until(lambda: "damaged" in daemon.text(), "the mirror is damaged")
        assert f"{path}: the part at offset" in daemon.text()


def _swap(model: Path) -> None:
    """Two layers of equal size change places."""
    a, b, aside = model / "layer.0001.safetensors", model / "layer.0004.safetensors", model / "aside"
    a.rename(aside), b.rename(a), aside.rename(b)


@pytest.mark.parametrize("disguised", [False, True], ids=["as an editor would", "as a rotting disk would"])
def test_a_file_that_changes_under_the_daemon_stops_the_engine_and_says_which(copy: Path, probe_cache: Path, disguised: bool):
    """No token is made of the changed bytes, also where neither size nor time of the file tell."""
    with Daemon(copy, probe_cache, *SMALL) as daemon:
        undisturbed = daemon.ask("hello", "--max-tokens", "100")["token_ids"]
        victim = copy / "layer.0003.safetensors"
        stat = victim.stat()
        with victim.open("r+b") as file:
            data = bytearray(file.read())
            for at in range(8192, len(data), 4096):  # every part of it, whichever stream
                data[at] ^= 0x40
            file.seek(0)
            file.write(data)
        if disguised:
            os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        done = daemon.client("hello", "--max-tokens", "100", "--json")
        assert done.returncode == 75, (done.returncode, done.stdout, done.stderr)
        made = json.loads(done.stdout)["token_ids"] if done.stdout.strip() else []
        assert made == undisturbed[: len(made)]
        assert victim.name in done.stderr
        report = json.loads(daemon.client("status", "--json").stdout)
        assert report["engine"]["state"] == "degraded" and victim.name in report["engine"]["why"]


def test_a_damaged_embedding_is_found_before_a_row_of_it_is_used(copy: Path, probe_cache: Path):
    manifest = json.loads((copy / "manifest.json").read_text())
    embed = next(s for s in manifest["shards"] if s["kind"] == "embed")["parts"][0]
    data = bytearray((copy / embed["file"]).read_bytes())
    data[embed["offset"] + 100] ^= 4
    (copy / embed["file"]).write_bytes(data)
    with Daemon(copy, probe_cache, *SMALL) as daemon:
        done = daemon.client("hello", "--max-tokens", "5")
        assert done.returncode in (65, 75), done.stderr
        assert embed["file"] in done.stderr + daemon.text()
        assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_what_lies_beside_the_weights_is_not_read_anew_once_it_is_another(copy: Path, probe_cache: Path, name: str):
    """An engine that starts anew is not given it, and a front that does ends the daemon, as a start would."""
    with Daemon(copy, probe_cache, *SMALL) as daemon:
        first = daemon.ask("hello", "--max-tokens", "3", "--temperature", "0")["text"]
        (copy / name).write_text((copy / name).read_text() + " ")
        assert daemon.ask("hello", "--max-tokens", "3", "--temperature", "0")["text"] == first, "nobody has read it yet"
        daemon.stages()["worker"].kill()
        daemon.until(lambda: "degraded" in daemon.text(), "the engine stays down")
        asked = daemon.client("hello", "--max-tokens", "3")
        assert asked.returncode == 75 and f"{name} is not as the manifest has it" in asked.stderr, asked.stderr
        daemon.stages()["front"].kill()
        assert daemon.process.wait(30) == 65
        (daemon.place / "front.sock").unlink()  # whoever is killed leaves it, to be swept by the next one
        assert "Traceback" not in daemon.text() and "potatod verify --accept" in daemon.text()
