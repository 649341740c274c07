"""`prepare --upgrade`: what another transformers named otherwise is rewritten out of the folder itself, or the source is asked for."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from factories import checkpoint, contents, prepared_folder, tensors_of
from killed import killed_at_random_moments
from safetensors.torch import load_file

from potatod import manifest as manifests
from potatod import model_folder
from potatod.errors import DoesNotFit, ModelDataError, NoSuchModel, TryAgain, UnsupportedModel
from potatod.manifest import Manifest
from potatod.store import journal, shard_file, shards, skeleton, upgrade_plan
from potatod.store import upgrade as upgrading
from potatod.store.prepare import Progress, prepare
from potatod.store.upgrade import Outcome
from potatod.store.verify import accept, verify

OLD = "4.56.0"
#: As all folders here are cut.
BANDS = 1 << 13


def upgrade(out: Path, progress=lambda _: None) -> Outcome:
    return upgrading.upgrade(out, progress, BANDS)


def write(folder: Path, manifest: Manifest) -> None:
    shard_file.write_text(folder, model_folder.NAME, manifests.dumps(manifest))


def aged(folder: Path, layers, **header) -> Path:
    """The folder as another transformers would have made it: each layer holds what ``layers(number)`` says."""
    manifest = model_folder.load(folder)
    made, files = [], dict(manifest.files)
    for shard in manifest.shards:
        if shard.kind == "layer":
            file = shard.parts[0].file
            parts, files[file] = shards.write_group(folder, file, shards.as_they_are(layers(shard.layer)))
            shard = dataclasses.replace(shard, parts=parts)
        made.append(shard)
    header = {"transformers": OLD, "fingerprint": "0" * 16, **header}
    write(folder, dataclasses.replace(manifest, files=files, shards=tuple(made), **header))
    return folder


def as_checkpoint(source: Path, prefix: str = "model.layers."):
    """Layers under the names of the checkpoint, which are those that modules had before transformers 5."""
    tensors = load_file(source / "model.safetensors")
    return lambda number: {
        name.removeprefix(f"{prefix}{number}."): value for name, value in tensors.items() if name.startswith(f"{prefix}{number}.")
    }


def old_mixtral(place: Path) -> tuple[Path, Path]:
    """A folder with every expert for itself, and the same model as the installed transformers has it."""
    source = checkpoint(place / "source", "Mixtral", "bfloat16", tokenizer=True)
    prepare(source, place / "new", band_bytes=BANDS)
    shutil.copytree(place / "new", place / "old")
    return aged(place / "old", as_checkpoint(source)), place / "new"


def renamed(folder: Path, **names: str) -> Path:
    """The folder as if layers, embedding or head had had other names in the model."""
    manifest = model_folder.load(folder)
    kinds = {"embed": names.get("embed_name"), "head": names.get("head_name")}
    made = []
    for shard in manifest.shards:
        if (name := kinds.get(shard.kind)) is not None:
            bands = [dataclasses.replace(part, tensors=(dataclasses.replace(part.tensors[0], name=name),)) for part in shard.parts]
            shard = dataclasses.replace(shard, parts=tuple(bands))
        made.append(shard)
    write(folder, dataclasses.replace(manifest, shards=tuple(made), transformers=OLD, fingerprint="0" * 16, **names))
    return folder


def assert_same_model(found: Path, wanted: Path) -> None:
    """All tensors, whole and undamaged, in the shape the daemon takes."""
    verify(found)
    ours, theirs = tensors_of(found), tensors_of(wanted)
    assert ours.keys() == theirs.keys()
    assert not [name for name, value in theirs.items() if ours[name].dtype != value.dtype or not torch.equal(ours[name], value)]
    left, right = model_folder.load(found), model_folder.load(wanted)
    for shard, other in zip(left.shards, right.shards, strict=True):
        assert [part.tensors for part in shard.parts] == [part.tensors for part in other.parts]
        assert [part.checksum for part in shard.parts] == [part.checksum for part in other.parts]
    plain = {"files": {}, "shards": ()}
    assert dataclasses.replace(left, **plain) == dataclasses.replace(right, **plain)
    assert {path.name for path in found.glob("*.safetensors")} == set(left.files)
    assert not [path for path in found.iterdir() if path.name.startswith(".")]


class Killed(Exception):
    pass


def stop_after(count: int):
    seen = []

    def progress(p: Progress) -> None:
        seen.append(p)
        if len(seen) == count + 1:
            raise Killed

    return progress


def test_where_only_the_fingerprint_differs_only_the_manifest_is_written(tmp_path):
    folder = prepared_folder(tmp_path)
    new = contents(folder)
    manifest = model_folder.load(folder)
    write(folder, dataclasses.replace(manifest, fingerprint="0" * 16, transformers=OLD))
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != model_folder.NAME}
    done = upgrade(folder)
    assert (done.changed, done.rewritten, done.before, done.now) == (True, 0, OLD, manifest.transformers)
    assert contents(folder) == new
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != model_folder.NAME} == times


def test_an_up_to_date_folder_is_not_touched(tmp_path):
    folder = prepared_folder(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    assert upgrade(folder).changed is False
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


def test_names_that_transformers_knows_become_what_it_makes_of_them(tmp_path):
    """Mixtral's router moved and its experts were fused with transformers 5: both come out as `prepare` makes them of the source."""
    old, new = old_mixtral(tmp_path)
    names = {tensor.name for part in model_folder.load(old).shards[1].parts for tensor in part.tensors}
    assert {"block_sparse_moe.gate.weight", "block_sparse_moe.experts.3.w2.weight"} <= names
    steps: list[Progress] = []
    done = upgrade(old, steps.append)
    assert (done.rewritten, done.shards) == (6, 9)
    assert (steps[0].bytes_done, steps[-1].bytes_done) == (0, steps[-1].bytes_total)
    assert_same_model(old, new)
    assert upgrade(old).changed is False


def test_a_second_upgrade_uses_the_first_names_again(tmp_path):
    old, new = old_mixtral(tmp_path)
    upgrade(old)
    assert "layer.0000.1.safetensors" in model_folder.load(old).files
    aged(old, as_checkpoint(tmp_path / "source"))
    upgrade(old)
    assert contents(old) == contents(new)


@pytest.mark.parametrize(("family", "rewritten"), [("Llama 2", {"embed", "head"}), ("Qwen2", {"embed"})])
def test_embedding_head_and_layers_are_known_by_what_they_are(tmp_path, family, rewritten):
    folder = prepared_folder(tmp_path, family)
    shutil.copytree(folder, tmp_path / "new")
    renamed(folder, layers_name="transformer.h", embed_name="transformer.wte.weight", head_name="head.out.weight")
    assert upgrade(folder).rewritten == len(rewritten)
    assert_same_model(folder, tmp_path / "new")
    assert {name for name in model_folder.load(folder).files if ".1." in name} == {f"{name}.1.safetensors" for name in rewritten}


def test_of_a_tied_head_that_was_renamed_alone_no_file_is_written(tmp_path):
    folder = prepared_folder(tmp_path, "Qwen2")
    new = contents(folder)
    renamed(folder, head_name="head.out.weight")
    assert upgrade(folder).rewritten == 0
    assert contents(folder) == new


def changed_config(folder: Path, **changes) -> None:
    page = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(page | changes))
    accept(folder)


def other_shape(folder: Path) -> None:
    changed_config(folder, intermediate_size=168)


def fewer_layers(folder: Path) -> None:
    changed_config(folder, num_hidden_layers=5, layer_types=None)


def other_vocabulary(folder: Path) -> None:
    changed_config(folder, vocab_size=328)


def tied(folder: Path) -> None:
    changed_config(folder, tie_word_embeddings=True)


def new_bias(folder: Path) -> None:
    changed_config(folder, mlp_bias=True)


def unknown_name(folder: Path) -> None:
    prefix = "model.layers."
    tensors = {name: value for name, value in tensors_of(folder).items() if name.startswith(prefix)}

    def layers(number: int) -> dict[str, torch.Tensor]:
        own = f"{prefix}{number}."
        return {name.removeprefix(own).replace("up_proj", "upward"): value for name, value in tensors.items() if name.startswith(own)}

    aged(folder, layers)


def surplus(folder: Path) -> None:
    tensors = tensors_of(folder)
    prefix = "model.layers.{}."
    aged(folder, lambda n: {
        **{name.removeprefix(prefix.format(n)): value for name, value in tensors.items() if name.startswith(prefix.format(n))},
        "mlp.scale": torch.ones(3),
    })  # fmt: skip


REFUSED = [
    (other_shape, r"model\.layers\.0\.mlp\.gate_proj\.weight has the shape \[160, 64\] and needs \[168, 64\]"),
    (fewer_layers, "it has 6 layers and the model 5"),
    (other_vocabulary, r"model\.embed_tokens\.weight has the shape \[320, 64\] and needs \[328, 64\]"),
    (tied, "head and embedding are two in it and one in the model"),
    (new_bias, r"nothing in it becomes model\.layers\.0\.mlp\.gate_proj\.bias"),
    (unknown_name, r"nothing in it becomes model\.layers\.0\.mlp\.up_proj\.weight"),
    (surplus, r"its model\.layers\.0\.mlp\.scale has no place in the model"),
]


@pytest.mark.parametrize(("change", "why"), REFUSED, ids=lambda case: getattr(case, "__name__", ""))
def test_what_is_not_certain_needs_the_source_and_nothing_is_written(tmp_path, change, why):
    folder = prepared_folder(tmp_path)
    change(folder)
    before = contents(folder)
    with pytest.raises(UnsupportedModel, match=f"cannot be upgraded to .* from itself .{why}.*prepare the model again from its source") as caught:
        upgrade(folder)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before


def test_values_that_would_be_rearranged_need_the_source(tmp_path, monkeypatch):
    """Whether they were rearranged already when they were stored cannot be told from the folder."""
    old, _ = old_mixtral(tmp_path)
    monkeypatch.setattr(upgrade_plan, "_CERTAIN", ())
    before = contents(old)
    with pytest.raises(UnsupportedModel, match=r"mlp\.experts\.gate_up_proj would have to be rearranged out of model\.layers\.0\.block_sparse_moe"):
        upgrade(old)
    assert contents(old) == before


def test_an_expert_that_is_missing_leaves_the_folder_as_it_was(tmp_path):
    source = checkpoint(tmp_path / "source", "Mixtral", "bfloat16")
    prepare(source, tmp_path / "out")
    layers = as_checkpoint(source)
    aged(tmp_path / "out", lambda n: {name: value for name, value in layers(n).items() if n != 4 or "experts.1.w3" not in name})
    before = contents(tmp_path / "out")
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.4\.mlp\.experts.*from its source"):
        upgrade(tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_what_transformers_itself_ignores_in_checkpoints_is_left_out(tmp_path, monkeypatch):
    folder = prepared_folder(tmp_path)
    shutil.copytree(folder, tmp_path / "new")
    surplus(folder)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"mlp\.scale$"])
    upgrade(folder)
    assert_same_model(folder, tmp_path / "new")


def test_what_is_needed_in_more_bits_than_were_stored_needs_the_source(tmp_path, monkeypatch):
    old, _ = old_mixtral(tmp_path)
    before = contents(old)
    monkeypatch.setattr(transformers.MixtralForCausalLM, "_keep_in_fp32_modules_strict", {"gate"})
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.0\.mlp\.gate\.weight is needed in float32, more than was stored"):
        upgrade(old)
    assert contents(old) == before


def test_a_flipped_bit_gets_no_new_checksum(tmp_path):
    old, _ = old_mixtral(tmp_path)
    part = model_folder.load(old).shards[3].parts[0]
    data = bytearray((old / part.file).read_bytes())
    data[part.offset + 77] ^= 8
    (old / part.file).write_bytes(data)
    before = contents(old)
    with pytest.raises(ModelDataError, match=r"is damaged: layer 2 \(layer\.0002\.safetensors at byte"):
        upgrade(old)
    assert contents(old) == before


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_interrupted_it_is_the_old_model_and_the_next_run_goes_on(tmp_path, count):
    old, new = old_mixtral(tmp_path)
    before = contents(old)
    with pytest.raises(Killed):
        upgrade(old, stop_after(count))
    verify(old)
    assert before.items() <= contents(old).items()
    written = {path: path.stat().st_mtime_ns for path in old.glob("*.1.safetensors")}
    assert len(written) == count
    steps: list[Progress] = []
    upgrade(old, steps.append)
    assert steps[0].bytes_before == sum(path.stat().st_size for path in written)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert_same_model(old, new)


#: Upgrades as the command does, but sleeps after each shard, so that a kill can land anywhere.
SLOW = ("from potatod.store.upgrade import upgrade", "upgrade(Path(sys.argv[1]), lambda _: time.sleep(0.05), 1 << 13)")


def test_killed_at_random_moments_the_folder_is_the_old_model_or_the_new_one(tmp_path):
    old, new = old_mixtral(tmp_path)
    assert killed_at_random_moments(*SLOW, old, chance=random.Random(3), longest_s=0.6, look=lambda: verify(old)) > 0
    upgrade(old)  # one that was killed between the manifest and the last of the old files has left some
    assert_same_model(old, new)


def test_old_files_that_a_kill_left_beside_the_new_manifest_are_cleared_away(tmp_path, monkeypatch):
    old, new = old_mixtral(tmp_path)
    monkeypatch.setattr(upgrading.Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        upgrade(old)
    monkeypatch.undo()
    assert (old / "layer.0000.safetensors").exists() and (old / "layer.0000.1.safetensors").exists()
    assert upgrade(old).changed is False
    assert_same_model(old, new)


def test_a_prepare_of_the_same_folder_is_waited_for(tmp_path):
    old, _ = old_mixtral(tmp_path)
    with journal.Journal(old, "another", upgrading=True), pytest.raises(TryAgain, match="another"):
        upgrade(old)


def test_force_makes_an_upgraded_folder_anew_without_leaving_its_files(tmp_path):
    old, new = old_mixtral(tmp_path)
    upgrade(old)
    prepare(tmp_path / "source", old, force=True, band_bytes=BANDS)
    assert contents(old) == contents(new)


def test_room_is_needed_for_what_is_rewritten_and_no_more(tmp_path, monkeypatch):
    old, _ = old_mixtral(tmp_path)
    usage = type("usage", (), {"free": 1 << 10})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DoesNotFit, match=r"needs \d+ more bytes of disk and 1024 are free") as caught:
        upgrade(old)
    needed = int(re.search(r"needs (\d+)", str(caught.value))[1])
    new = sum((tmp_path / "new" / f"layer.{n:04d}.safetensors").stat().st_size for n in range(6))
    assert needed == new + (16 << 20)


def test_a_folder_that_is_no_model_is_said(tmp_path):
    with pytest.raises(NoSuchModel):
        upgrade(tmp_path)


def test_the_fingerprint_is_the_installed_models(tmp_path):
    old, _ = old_mixtral(tmp_path)
    upgrade(old)
    built = skeleton.build(skeleton.load_config(old), torch.bfloat16)
    assert model_folder.load(old).fingerprint == skeleton.fingerprint(built)
