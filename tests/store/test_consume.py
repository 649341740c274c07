"""`potatod prepare --consume`: the weights of a source go while they are converted, none of them before what is made of it is safe."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from factories import checkpoint, contents
from killed import killed_at_random_moments

from potatod.errors import ModelDataError, UsageError
from potatod.store.consume import consume
from potatod.store.hub_source import locate
from potatod.store.prepare import prepare


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A source to copy."""
    return checkpoint(tmp_path_factory.mktemp("kept") / "source", tokenizer=True, shard_size="250KB")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, kept):
    prepare(kept, tmp_path_factory.mktemp("whole") / "out", band_bytes=1 << 13)
    return shards(next(tmp_path_factory.getbasetemp().glob("whole*/out")))


@pytest.fixture
def source(tmp_path, kept):
    return Path(shutil.copytree(kept, tmp_path / "source"))


def shards(folder: Path) -> dict[str, bytes]:
    found = contents(folder)
    found.pop("manifest.json")
    return found


def weights(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}


class Killed(Exception):
    pass


def test_each_file_goes_when_what_is_made_of_it_is_there(tmp_path, source, whole):
    there, most = [], [0]

    def look(_progress):
        there.append(len(weights(source)))
        most[0] = max(most[0], sum(weights(source).values()) + sum(weights(tmp_path / "out").values()))

    before, largest = sum(weights(source).values()), max(weights(source).values())
    sentences: list[str] = []
    assert consume(source, tmp_path / "out", band_bytes=1 << 13, progress=look, agree=sentences.append) is True
    assert shards(tmp_path / "out") == whole
    assert "6 files of weights" in sentences[0] and "REMOVED" in sentences[0]
    assert there[0] == 6 and there == sorted(there, reverse=True) and there[-1] <= 1
    assert most[0] < before + 3 * largest < 2 * before
    assert not weights(source) and (source / "config.json").exists()
    assert consume(source, tmp_path / "out", band_bytes=1 << 13) is False


#: As the command does, but sleeps after each shard, so that a kill can land anywhere.
SLOW = (
    "from potatod.store.consume import consume",
    "consume(Path(sys.argv[1]), Path(sys.argv[2]), band_bytes=1 << 13, progress=lambda p: time.sleep(0.1))",
)


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_no_weight_is_lost(tmp_path, source, whole, seed):
    chance = random.Random(seed)
    assert killed_at_random_moments(*SLOW, source, tmp_path / "out", chance=chance, longest_s=0.3, look=lambda: None) > 1
    assert shards(tmp_path / "out") == whole
    assert not weights(source)


@pytest.fixture
def half(tmp_path, source):
    """A folder for which files of the source are gone already."""

    def stop(_progress):
        if len(weights(source)) < 4:
            raise Killed

    with pytest.raises(Killed):
        consume(source, tmp_path / "out", band_bytes=1 << 13, progress=stop)
    return tmp_path / "out"


def test_what_has_been_made_is_thrown_away_by_nobody(half, source, whole, kept):
    with pytest.raises(UsageError, match="files are gone already"):
        consume(source, half, dtype="int8", band_bytes=1 << 13)
    with pytest.raises(UsageError, match="files are gone already"):
        prepare(kept, half)
    with pytest.raises(UsageError, match="files are gone already"):
        prepare(kept, half, force=True)
    with pytest.raises(UsageError, match="files are gone already"):
        locate(half / ".source", "tiny/llama", None)
    with pytest.raises(ModelDataError, match="is missing"):
        prepare(source, half)
    consume(source, half, band_bytes=1 << 13)
    assert shards(half) == whole


def test_what_is_lost_is_said(half, source):
    (half / "layer.0000.safetensors").unlink()
    with pytest.raises(ModelDataError, match=r"model-00001-of-00006.safetensors is gone, and .* get them anew"):
        consume(source, half, band_bytes=1 << 13)


def test_matrices_with_scales_beside_them_are_made_before_any_of_their_files_goes(tmp_path):
    """fp8 with a file for each tensor: the scales lie in other files than what they scale."""
    import json

    import torch
    from safetensors.torch import load_file, save_file

    source = checkpoint(tmp_path / "source", "Qwen3", "bfloat16", tokenizer=True)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        rows, columns = tensors[name].shape
        tensors[f"{name}_scale_inv"] = torch.rand(-(-rows // 32), -(-columns // 32)) + 0.5
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    names = sorted(tensors, key=lambda name: (name.endswith("_scale_inv"), name))
    weight_map = {}
    for at in range(0, len(names), 10):
        file = f"model-{at:05}.safetensors"
        save_file({name: tensors[name] for name in names[at : at + 10]}, source / file)
        weight_map |= dict.fromkeys(names[at : at + 10], file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    page = json.loads((source / "config.json").read_text())
    page["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    (source / "config.json").write_text(json.dumps(page))
    prepare(source, tmp_path / "whole")
    consume(source, tmp_path / "out")
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert not weights(source)


def test_links_into_a_cache_are_not_removed(tmp_path, source, kept):
    for name in weights(source):
        (source / name).unlink()
        (source / name).symlink_to(kept / name)
    with pytest.raises(UsageError, match="is a link, as the hub's cache has them"):
        consume(source, tmp_path / "out")
    assert not (tmp_path / "out").exists() and len(weights(source)) == len(weights(kept)) == 6


@pytest.mark.parametrize("what", ["file", "model folder"])
def test_what_has_no_files_that_could_go_one_by_one_is_refused(tmp_path, source, what):
    path = source / "weights.gguf"
    path.write_bytes(b"GGUF")
    if what == "model folder":
        prepare(source, path := tmp_path / "model")
    with pytest.raises((UsageError, ModelDataError)):
        consume(path, tmp_path / "out")
    assert path.exists() and not (tmp_path / "out").exists()


def test_the_command_asks_first(tmp_path, source, potatod):
    command = ("prepare", "--consume", source, tmp_path / "out")
    refused = potatod(*command)
    assert refused.returncode == 64 and "REMOVED" in refused.stderr and refused.stderr.endswith("run it with -y\n")
    assert len(weights(source)) == 6 and not (tmp_path / "out").exists()
    done = potatod(*command, "-y")
    assert done.returncode == 0 and f"the weights in {source} are gone" in done.stderr
    assert not weights(source) and (tmp_path / "out" / "manifest.json").exists()
    assert potatod(*command, "--force").returncode == 64
