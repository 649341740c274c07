"""`potatod verify --repair`: what is damaged is made anew from the hub, and only what that needs is downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from factories import checkpoint, contents
from hubs import Hub

from potatod import model_folder
from potatod.errors import ModelDataError, UsageError
from potatod.store.prepare import prepare
from potatod.store.pull import pull
from potatod.store.repair import repair
from potatod.store.verify import accept, verify

ID = "tiny/llama"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    files = checkpoint(tmp_path_factory.mktemp("hub") / "files", "Qwen2", "bfloat16", tokenizer=True, shard_size="150KB")
    with Hub(files) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        yield hub


@pytest.fixture(scope="module", params=["auto", "packed", "int8"])
def pulled(request, tmp_path_factory, hub):
    out = tmp_path_factory.mktemp("pulled") / "out"
    pull(ID, out, dtype=request.param)
    return out


@pytest.fixture
def model(tmp_path, pulled):
    return Path(shutil.copytree(pulled, tmp_path / "model"))


def flip(path: Path) -> None:
    """A bit of its first part."""
    parts = [part for shard in model_folder.load(path.parent).shards for part in shard.parts if part.file == path.name]
    data = bytearray(path.read_bytes())
    data[parts[0].offset] ^= 4
    path.write_bytes(data)


def unchecked(_done: int, _total: int) -> None:
    pass


def test_a_whole_folder_is_left_alone(model, hub):
    hub.forget()
    before = {path: path.stat().st_mtime_ns for path in model.iterdir()}
    assert repair(model, unchecked) == []
    assert {path: path.stat().st_mtime_ns for path in model.iterdir()} == before and not hub.asked


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-4096])])
def test_a_damaged_layer_is_made_anew_of_its_files_alone(model, pulled, hub, damage):
    damage(model / "layer.0003.safetensors")
    with pytest.raises(ModelDataError):
        verify(model)
    hub.forget()
    untouched = (model / "layer.0002.safetensors").stat().st_mtime_ns
    said: list[str] = []
    assert repair(model, unchecked, notice=said.append) == ["layer.0003.safetensors"]
    assert contents(model) == contents(pulled)
    assert (model / "layer.0002.safetensors").stat().st_mtime_ns == untouched
    everything = {path.name: path.stat().st_size for path in hub.files.glob("*.safetensors")}
    whole = {name for name, size in everything.items() if hub.sent[name] >= size + min(size, 128 << 10)}
    assert 1 <= len(whole) <= 2 < len(everything), "others gave their heads"
    assert said[0].startswith("1 files are damaged")


def test_embedding_head_and_companions_are_mended_too(model, pulled):
    flip(model / "embed.safetensors")
    flip(model / "resident.safetensors")
    (model / "tokenizer.json").unlink()
    assert repair(model, unchecked) == ["embed.safetensors", "resident.safetensors", "tokenizer.json"]
    assert contents(model) == contents(pulled)


def test_a_damaged_tokenizer_alone_is_mended_and_no_weights_are_downloaded(model, pulled, hub):
    data = bytearray((model / "tokenizer.json").read_bytes())
    data[len(data) // 2] ^= 1
    (model / "tokenizer.json").write_bytes(data)
    with pytest.raises(ModelDataError, match=rf"tokenizer\.json is not as .*; `potatod verify --repair {model}` gets .*, or take it as it is"):
        verify(model)
    hub.forget()
    said: list[str] = []
    assert repair(model, unchecked, notice=said.append) == ["tokenizer.json"]
    assert contents(model) == contents(pulled)
    assert said[:1] == ["1 files are damaged: config and tokenizer of tiny/llama are downloaded to make them anew"]
    sizes = {path.name: path.stat().st_size for path in hub.files.glob("*.safetensors")}
    assert all(hub.sent[name] <= min(size, 128 << 10) for name, size in sizes.items()), "heads"


def test_a_template_that_was_accepted_stays_when_weights_are_mended_and_is_not_made_up_when_it_is_damaged(model, pulled):
    (model / "chat_template.jinja").write_text("{{ 'mine' }}")
    assert accept(model) == ["chat_template.jinja"]
    flip(model / "embed.safetensors")
    assert repair(model, unchecked) == ["embed.safetensors"]
    assert (model / "chat_template.jinja").read_text() == "{{ 'mine' }}"
    verify(model)
    (model / "chat_template.jinja").write_text("{{ 'mind' }}")
    with pytest.raises(ModelDataError, match=r"chat_template\.jinja came out otherwise .* put your own back"):
        repair(model, unchecked)
    assert (model / "chat_template.jinja").read_text() == "{{ 'mind' }}"


def test_what_was_put_there_later_is_not_removed(model):
    (model / "generation_config.json").unlink()
    accept(model)
    (model / "generation_config.json").write_text("{}")
    with pytest.raises(ModelDataError, match=rf"generation_config\.json is not in the manifest: .*; remove it, or take it .*--accept {model}"):
        repair(model, unchecked)
    assert (model / "generation_config.json").read_text() == "{}"


def test_a_damaged_folder_of_the_hub_names_the_command_that_mends_it(model):
    flip(model / "layer.0003.safetensors")
    with pytest.raises(ModelDataError, match=rf"layer 3 .*; `potatod verify --repair {model}` gets what is damaged anew"):
        verify(model)


def test_what_comes_out_otherwise_is_refused(model, hub, monkeypatch, tmp_path):
    """The hub has other weights under the same commit: what other versions would make."""
    flip(model / "layer.0003.safetensors")
    manifest = (model / "manifest.json").read_bytes()
    monkeypatch.setattr(hub, "files", checkpoint(tmp_path / "others", "Qwen2", "bfloat16", tokenizer=True, shard_size="150KB", seed=1))
    with pytest.raises(ModelDataError, match="came out otherwise than the manifest says"):
        repair(model, unchecked)
    assert (model / "manifest.json").read_bytes() == manifest


def test_a_folder_that_pull_did_not_make_is_refused(tmp_path, hub):
    prepare(hub.files, tmp_path / "model")
    with pytest.raises(UsageError, match="was not made by `potatod pull`"):
        repair(tmp_path / "model", unchecked)
