"""A manifest is hostile until it is parsed: every lie is refused by name, and nothing else than ModelDataError comes out."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potatod import companions, model_folder
from potatod import manifest as manifests
from potatod.companions import MAX_BYTES, NAMES, Companion
from potatod.errors import ModelDataError, NoSuchModel
from potatod.manifest import Manifest, Part, Shard, Tensor
from potatod.room import vocabulary_of

SUM = "0123456789abcdef"


def band(name: str, first: int, rows: int = 512, columns: int = 8) -> Tensor:
    return Tensor(name, "bfloat16", (rows, columns), "raw", 0, rows * columns * 2, first)


def small(name: str, offset: int = 0) -> Tensor:
    return Tensor(name, "float32", (4, 4), "raw", offset, 64)


def layer(number: int) -> Shard:
    file = f"layer.{number:04d}.safetensors"
    norms = Part(file, 4096, 4096, SUM, (small("norm.weight"), small("norm.bias", 64)))
    large = Part(file, 8192, 8192, SUM, (Tensor("mlp.weight", "bfloat16", (64, 64), "raw", 0, 8192),))
    return Shard("layer", number, (norms, large))


def whole() -> Manifest:
    """A model of two layers, tied: the head is bands of the embedding's bytes."""
    embed = tuple(Part("embed.safetensors", 4096 + 8192 * n, 8192, SUM, (band("embed.weight", 512 * n),)) for n in range(3))
    head = tuple(Part("embed.safetensors", 4096 + 8192 * n, 8192, SUM, (band("head.weight", 512 * n),)) for n in range(3))
    resident = Part("resident.safetensors", 4096, 4096, SUM, (small("norm.weight"),))
    shards = (Shard("embed", 0, embed), layer(0), layer(1), Shard("head", 0, head), Shard("resident", 0, (resident,)))
    files = {
        "embed.safetensors": 4096 * 9, "spare.safetensors": 4096 * 9, "layer.0000.safetensors": 16384, "layer.0001.safetensors": 16384,
        "resident.safetensors": 8192,
    }  # fmt: skip
    return Manifest(
        1, "0.1.0", "5.23.0", "LlamaForCausalLM", "llama", "bfloat16", 2, "model.layers", "embed.weight", "head.weight", True,
        "f" * 16, files, shards, {"source": "somewhere"}, {"config.json": Companion(2, SUM), "chat_template.jinja": Companion(0, SUM)},
    )  # fmt: skip


def page() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(manifests.dumps(whole()))
    return parsed


def test_a_prompt_may_have_tokens_that_no_answer_has() -> None:
    """Llama 3.2 Vision: the embedding has eight rows more than the head."""
    shards = tuple(shard if shard.kind != "head" else dataclasses.replace(shard, parts=shard.parts[:2]) for shard in whole().shards)
    manifest = dataclasses.replace(whole(), shards=shards)
    assert vocabulary_of(manifest, "embed") == vocabulary_of(whole()) > vocabulary_of(manifest) > 0


def test_what_is_written_is_read_back() -> None:
    assert manifests.parse(manifests.dumps(whole())) == whole()


def first_tensor(p: dict[str, Any]) -> dict[str, Any]:
    return p["shards"][1]["parts"][0]["tensors"][0]


def large_part(p: dict[str, Any]) -> dict[str, Any]:
    return p["shards"][1]["parts"][1]


def rename_file(p: dict[str, Any], name: str) -> None:
    p["files"][name] = p["files"].pop("resident.safetensors")
    p["shards"][4]["parts"][0]["file"] = name


SMALL = {"length": 2, "checksum": SUM}

LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another format": (lambda p: p.update(format=2), "format 2"),
    "a field too many": (lambda p: p.update(colour="red"), "unknown field 'colour'"),
    "a field too few": (lambda p: p.pop("tied"), "no field 'tied'"),
    "a number that is text": (lambda p: p.update(layers="2"), r"manifest\.layers"),
    "a bool that is a number": (lambda p: p.update(tied=1), r"manifest\.tied"),
    "a size that is a bool": (lambda p: p["files"].update({"embed.safetensors": True}), "wrong type"),
    "a name that climbs": (lambda p: rename_file(p, "../x.safetensors"), "not a name for a shard's file"),
    "a name with a folder": (lambda p: rename_file(p, "a/x.safetensors"), "not a name for a shard's file"),
    "an absolute name": (lambda p: rename_file(p, "/etc/x.safetensors"), "not a name for a shard's file"),
    "a hidden name": (lambda p: rename_file(p, ".x.safetensors"), "not a name for a shard's file"),
    "a name of another kind": (lambda p: rename_file(p, "x.bin"), "not a name for a shard's file"),
    "a name with a newline": (lambda p: rename_file(p, "x.safetensors\n"), "not a name for a shard's file"),
    "an odd file size": (lambda p: p["files"].update({"embed.safetensors": 28671}), "positive multiple of 4096"),
    "a negative file size": (lambda p: p["files"].update({"embed.safetensors": -4096}), "positive multiple of 4096"),
    "a file that is not listed": (lambda p: p["files"].pop("resident.safetensors"), "not among the files"),
    "a part beyond its file": (lambda p: large_part(p).update(offset=12288), "ends at 20480, layer.0000.safetensors has 16384"),
    "an unaligned part": (lambda p: large_part(p).update(offset=8193), "not aligned"),
    "a part of odd length": (lambda p: large_part(p).update(length=8191), "not aligned"),
    "an empty part": (lambda p: large_part(p).update(length=0), "not aligned"),
    "a negative offset": (lambda p: large_part(p).update(offset=-4096), "not aligned"),
    "overlapping parts": (lambda p: large_part(p).update(offset=4096), "layer 0: parts overlap at byte 4096"),
    "a part without tensors": (lambda p: large_part(p).update(tensors=[]), "holds no tensor"),
    "a checksum that is none": (lambda p: large_part(p).update(checksum="0123"), "not a checksum"),
    "a tensor with a path": (lambda p: first_tensor(p).update(name="../norm"), "not a name for a tensor"),
    "a tensor twice": (lambda p: first_tensor(p).update(name="norm.bias"), "layer 0 names a tensor twice"),
    "an unknown dtype": (lambda p: first_tensor(p).update(dtype="float7"), "unknown dtype"),
    "a dtype of another size": (lambda p: first_tensor(p).update(dtype="bfloat16"), "64 bytes are not those of bfloat16"),
    "a shape of another size": (lambda p: first_tensor(p).update(shape=[4, 5]), r"64 bytes are not those of float32 \[4, 5\]"),
    "a negative dimension": (lambda p: first_tensor(p).update(shape=[-4, -4]), "is not a shape"),
    "too many dimensions": (lambda p: first_tensor(p).update(shape=[1] * 9), "is not a shape"),
    "a tensor beyond its part": (lambda p: first_tensor(p).update(offset=4096), "do not lie well in its part"),
    "an unaligned tensor": (lambda p: first_tensor(p).update(offset=8), "do not lie well in its part"),
    "overlapping tensors": (lambda p: first_tensor(p).update(offset=64), "layer 0: tensors overlap at byte 64"),
    "a shard twice": (lambda p: p["shards"].append(p["shards"][1]), "shard layer 0 occurs twice"),
    "a layer too few": (lambda p: p["shards"].pop(2), "one shard for each of 2 layers"),
    "a layer too many": (lambda p: p.update(layers=1), "one shard for each of 1 layers"),
    "no layers": (lambda p: p.update(layers=0), "one shard for each of 0 layers"),
    "no embedding": (lambda p: p["shards"].pop(0), "one shard of kind embed"),
    "a second head": (lambda p: p["shards"].append({**p["shards"][3], "layer": 1}), "one shard of kind head"),
    "a kind of its own": (lambda p: p["shards"][0].update(kind="ember"), "wrong type"),
    "a layer without parts": (lambda p: p["shards"][1].update(parts=[]), "layer 0 has no parts"),
    "bands out of order": (lambda p: p["shards"][3]["parts"].reverse(), "must follow each other from row 0"),
    "a missing band": (lambda p: p["shards"][3]["parts"].pop(1), "must follow each other from row 0"),
    "an embedding in two files": (lambda p: p["shards"][0]["parts"][2].update(file="spare.safetensors"), "lie behind each other in one file"),
    "an embedding with a hole": (lambda p: p["shards"][0]["parts"][2].update(offset=4096 * 7), "lie behind each other in one file"),
    "an embedding in another scheme": (lambda p: p["shards"][0]["parts"][0]["tensors"][0].update(scheme="int8"), "embedding that is raw"),
    "a head in two schemes": (lambda p: p["shards"][3]["parts"][1]["tensors"][0].update(scheme="int8"), "must follow each other"),
    "a companion that climbs": (lambda p: p["companions"].update({"../config.json": SMALL}), "'../config.json' is not a name for a file beside"),
    "a companion with a folder": (lambda p: p["companions"].update({"a/config.json": SMALL}), "not a name for a file beside the weights"),
    "a companion of another kind": (lambda p: p["companions"].update({"layer.0000.safetensors": SMALL}), "not a name for a file beside"),
    "a companion that is the manifest": (lambda p: p["companions"].update({"manifest.json": SMALL}), "not a name for a file beside"),
    "a companion of no size": (lambda p: p["companions"]["config.json"].update(length=-1), "config.json: -1 bytes are not the size"),
    "a companion that is too large": (lambda p: p["companions"]["config.json"].update(length=MAX_BYTES + 1), "are not the size"),
    "a companion's size as text": (lambda p: p["companions"]["config.json"].update(length="2"), "wrong type"),
    "a companion's checksum that is none": (lambda p: p["companions"]["config.json"].update(checksum=SUM.upper()), "is not a checksum"),
    "a companion's checksum that goes on": (lambda p: p["companions"]["config.json"].update(checksum=SUM + "\n"), "is not a checksum"),
    "a companion's field too many": (lambda p: p["companions"]["config.json"].update(offset=0), "unknown field 'offset'"),
    "a companion's field too few": (lambda p: p["companions"]["config.json"].pop("checksum"), "no field 'checksum'"),
    "companions that are a list": (lambda p: p.update(companions=[]), "wrong type"),
    "a band of another tensor": (lambda p: p["shards"][3]["parts"][1]["tensors"][0].update(name="x"), "must follow each other"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_by_name(lie: str) -> None:
    tell, sentence = LIES[lie]
    told = page()
    tell(told)
    with pytest.raises(ModelDataError, match=sentence):
        manifests.parse(json.dumps(told))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"manifest"', "[" * 100_000, "{}"])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ModelDataError):
        manifests.parse(text)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in the parsed JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in items for path in paths(item, (*at, key)))]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.sampled_from([4096, 64, "raw"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(place=st.sampled_from(paths(page())[1:]), junk=JUNK)
def test_whatever_stands_in_any_place_is_read_right_or_refused(place: tuple[Any, ...], junk: Any) -> None:
    told = page()
    inside = told
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = junk
    try:
        manifest = manifests.parse(json.dumps(told))
    except ModelDataError:
        return
    assert json.loads(manifests.dumps(manifest)) == json.loads(json.dumps(told))
    for shard in manifest.shards:
        for part in shard.parts:
            assert part.offset >= 0 and part.offset + part.length <= manifest.files[part.file]
            assert all(t.offset >= 0 and t.offset + t.length <= part.length for t in part.tensors)


@given(text=st.text(max_size=200))
def test_any_text_at_all_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ModelDataError):
        manifests.parse(text)


def test_a_manifest_of_before_says_nothing_of_companions_and_nothing_is_compared(tmp_path: Path) -> None:
    told = page()
    del told["companions"]
    manifest = manifests.parse(json.dumps(told))
    assert manifest == dataclasses.replace(whole(), companions=None)
    model_folder.check_companions(tmp_path, manifest)
    assert manifests.parse(manifests.dumps(manifest)) == manifest


BESIDE = {"config.json": b'{"layers": 2}', "tokenizer.json": b"{}", "chat_template.jinja": b""}


def beside(folder: Path, **provenance: str) -> Manifest:
    for name, data in BESIDE.items():
        (folder / name).write_bytes(data)
    return dataclasses.replace(whole(), companions=companions.found(folder), provenance=provenance)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def turned(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"2", b"3"))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("harm", "why"),
    [(turned, "damaged or changed"), (longer, "damaged or changed"), (Path.unlink, "is missing"), (fifo, "is not a regular file")],
)
def test_a_config_that_is_not_what_it_was_is_named_and_what_to_do(tmp_path: Path, harm: Callable[[Path], Any], why: str) -> None:
    manifest = beside(tmp_path)
    model_folder.check_companions(tmp_path, manifest)
    harm(tmp_path / "config.json")
    with pytest.raises(ModelDataError, match=rf"{tmp_path}/config\.json .*{why}.*; prepare the model again, or .* --accept {tmp_path}`$") as said:
        model_folder.check_companions(tmp_path, manifest)
    assert "tokenizer.json" not in str(said.value)


def test_several_are_all_named_and_one_that_pull_made_can_be_mended(tmp_path: Path) -> None:
    manifest = beside(tmp_path, source="a/b", revision="c", dtype="auto")
    longer(tmp_path / "chat_template.jinja")
    (tmp_path / "generation_config.json").write_text("{}")
    with pytest.raises(ModelDataError) as said:
        model_folder.check_companions(tmp_path, manifest)
    assert "chat_template.jinja is not as the manifest has it" in str(said.value)
    assert "generation_config.json is not in the manifest" in str(said.value)
    assert f"`potatod verify --repair {tmp_path}`" in str(said.value)


def test_one_behind_a_link_is_compared_and_one_without_end_is_not_read(tmp_path: Path) -> None:
    manifest = beside(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "blob")
    (tmp_path / "config.json").symlink_to("blob")
    model_folder.check_companions(tmp_path, manifest)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(ModelDataError, match=r"config\.json is not a regular file"):
        model_folder.check_companions(tmp_path, manifest)


@pytest.mark.parametrize("name", NAMES)
def test_of_a_larger_one_no_more_is_read_than_it_should_have(tmp_path: Path, name: str) -> None:
    with open(tmp_path / name, "wb") as file:
        file.truncate(1 << 32)
    assert companions.of_file(tmp_path / name, 10).length == 11
    assert companions.differences(tmp_path, {name: companions.of_bytes(bytes(10))}).keys() == {name}


def test_a_mirror_has_the_same_weights_whatever_lies_beside_them(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        write(folder)
    model_folder.check_mirror(one, other)
    accepted = dataclasses.replace(whole(), companions=None)
    (one / model_folder.NAME).write_text(manifests.dumps(accepted))
    model_folder.check_mirror(one, other)
    for text in (manifests.dumps(dataclasses.replace(whole(), tied=False)), "{"):
        (other / model_folder.NAME).write_text(text)
        with pytest.raises(ModelDataError, match=rf"{other} is not the model of {one}"):
            model_folder.check_mirror(one, other)


def write(folder: Path) -> Manifest:
    for name, size in whole().files.items():
        (folder / name).write_bytes(bytes(size))
    (folder / model_folder.NAME).write_text(manifests.dumps(whole()))
    return whole()


def test_a_folder_is_loaded_and_holds_what_the_manifest_says(tmp_path: Path) -> None:
    written = write(tmp_path)
    assert model_folder.load(tmp_path) == written
    model_folder.check_files(tmp_path, written)


def test_no_folder_and_a_half_written_one_both_say_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NoSuchModel, match=r"no model folder at .*potatod prepare"):
        model_folder.load(tmp_path / "none")
    with pytest.raises(NoSuchModel, match=r"not a finished model folder.*potatod prepare"):
        model_folder.load(tmp_path)


def test_a_damaged_manifest_is_named_with_its_path(tmp_path: Path) -> None:
    for data in (b"{", b"\xff\xfe"):
        (tmp_path / model_folder.NAME).write_bytes(data)
        with pytest.raises(ModelDataError, match=r"manifest\.json"):
            model_folder.load(tmp_path)


def test_a_manifest_too_large_to_be_one_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / model_folder.NAME, "wb") as file:
        file.truncate((32 << 20) + 1)
    with pytest.raises(ModelDataError, match=r"is larger than 33\.6MB"):
        model_folder.load(tmp_path)


@pytest.mark.parametrize("item", ["{}", "[]", '{"":1}', "[[[[]]]]"])
def test_a_manifest_of_nothing_but_brackets_is_refused_before_it_takes_the_memory(item: str) -> None:
    text = '{"format": 1, "shards": [' + ",".join([item] * ((8 << 20) // (len(item) + 1))) + "]}"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelDataError, match="are no manifest"):
        manifests.parse(text)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10, "kilobytes"


@pytest.mark.slow
def test_a_manifest_of_thousands_of_tensors_is_parsed_in_no_time() -> None:
    great = whole()
    parts = tuple(Part("layer.0000.safetensors", 4096 * (n + 1), 4096, SUM, (small(f"experts.{n}.weight"),)) for n in range(10_000))
    great = dataclasses.replace(
        great, files={**great.files, "layer.0000.safetensors": 4096 * 10_001},
        shards=(great.shards[0], Shard("layer", 0, parts), *great.shards[2:]),
    )  # fmt: skip
    text = manifests.dumps(great)
    began = time.process_time()
    assert manifests.parse(text) == great
    assert time.process_time() - began < 2.5


@pytest.mark.parametrize("harm", ["missing", "cut", "grown", "link", "folder"])
def test_a_file_that_is_not_what_it_was_is_named(tmp_path: Path, harm: str) -> None:
    manifest = write(tmp_path)
    path = tmp_path / "layer.0001.safetensors"
    if harm in ("cut", "grown"):
        path.write_bytes(bytes(8192 if harm == "cut" else 20480))
    else:
        path.unlink()
    if harm == "link":
        (tmp_path / "elsewhere").write_bytes(bytes(16384))
        path.symlink_to(tmp_path / "elsewhere")
    if harm == "folder":
        path.mkdir()
    with pytest.raises(ModelDataError, match=r"layer\.0001\.safetensors"):
        model_folder.check_files(tmp_path, manifest)


def test_an_untied_head_lies_in_a_file_of_its_own() -> None:
    head = Shard("head", 0, (Part("head.safetensors", 4096, 8192, SUM, (band("head.weight", 0),)),))
    made = dataclasses.replace(
        whole(), tied=False, files={**whole().files, "head.safetensors": 12288}, shards=(*whole().shards[:3], head, whole().shards[4])
    )
    assert manifests.parse(manifests.dumps(made)) == made
