"""`prepare --dtype`: which matrix is stored how, what is said where that is otherwise, and a model folder as a source."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from factories import checkpoint, contents, tensors_of
from ggufs import write_gguf

from potatod import machine, memory, model_folder
from potatod import manifest as manifests
from potatod.errors import ModelDataError, UsageError
from potatod.memory import Available
from potatod.store.outline import outline
from potatod.store.prepare import prepare
from potatod.store.verify import verify


def wide(place, dtype=torch.bfloat16, **overrides):
    """A checkpoint whose matrices suit every scheme."""
    options = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300, **overrides}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**options), dtype=dtype)
    model.save_pretrained(place)
    return place


def schemes(folder):
    """By tensor, of layer 0, head and embedding."""
    shards = [shard for shard in model_folder.load(folder).shards if shard.layer == 0]
    return {tensor.name: tensor.scheme for shard in shards for part in shard.parts for tensor in part.tensors}


def test_matrices_get_the_scheme_and_what_is_small_or_decides_much_does_not(tmp_path):
    prepare(wide(tmp_path / "source"), tmp_path / "out", dtype="int4")
    found = schemes(tmp_path / "out")
    assert found["self_attn.q_proj.weight"] == found["mlp.down_proj.weight"] == "int4"
    assert found["input_layernorm.weight"] == found["model.norm.weight"] == found["model.embed_tokens.weight"] == "raw"
    assert found["lm_head.weight"] == "int8", "as elsewhere in the field"
    assert manifests.stored_as(model_folder.load(tmp_path / "out")) == "int4 of bfloat16"
    verify(tmp_path / "out")


@pytest.mark.parametrize(
    ("dtype", "asked", "ram", "scheme"),
    [
        (torch.bfloat16, "auto", 800 << 20, "packed"),
        (torch.bfloat16, "auto", 810 << 20, "raw"),
        (torch.bfloat16, "bfloat16", 800 << 20, "raw"),
        (torch.bfloat16, "int4", 800 << 20, "int4"),
        (torch.float16, "auto", 800 << 20, "raw"),
        (torch.float16, "bfloat16,packed", 810 << 20, "packed"),
    ],
)
def test_what_is_bf16_and_would_stream_is_packed_by_itself_and_that_is_said(tmp_path, monkeypatch, dtype, asked, ram, scheme):
    source = wide(tmp_path / "source", dtype)
    monkeypatch.setattr(memory, "available", lambda: Available(ram, 0))
    monkeypatch.setattr(machine, "runs_our_code", lambda: True)
    said: list[str] = []
    prepare(source, tmp_path / "out", dtype=asked, notice=said.append)
    assert schemes(tmp_path / "out")["mlp.down_proj.weight"] == scheme
    assert any("are stored packed" in sentence for sentence in said) == (asked == "auto" and scheme == "packed")
    assert manifests.stored_as(outline(str(source), asked)[0]) == manifests.stored_as(model_folder.load(tmp_path / "out"))
    monkeypatch.setattr(memory, "available", lambda: Available(1 << 50, 0))
    assert manifests.stored_as(outline(str(source), asked, ram)[0]) == manifests.stored_as(model_folder.load(tmp_path / "out"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stops", [1, 2])
def test_what_was_begun_packed_is_gone_on_with_packed_whatever_the_ram_is_then(tmp_path, monkeypatch, tied, stops):
    source = wide(tmp_path / "source", tie_word_embeddings=tied)
    monkeypatch.setattr(memory, "available", lambda: Available(0, 0))

    class Stopped(Exception):
        pass

    told = []

    def stop(progress):
        told.append(progress)
        if len(told) > stops:
            raise Stopped

    with pytest.raises(Stopped):
        prepare(source, tmp_path / "out", progress=stop)
    monkeypatch.setattr(memory, "available", lambda: Available(1 << 50, 0))
    prepare(source, tmp_path / "out")
    prepare(source, tmp_path / "packed", dtype="packed")
    assert schemes(tmp_path / "out") == schemes(tmp_path / "packed")
    assert manifests.stored_as(model_folder.load(tmp_path / "out")) == "packed of bfloat16"
    assert not prepare(source, tmp_path / "out"), "it is finished, whatever the RAM"


@pytest.mark.parametrize(("ours", "card"), [(False, False), (True, True)])
def test_where_nothing_decodes_packed_weights_quickly_they_stay_as_they_are(tmp_path, monkeypatch, ours, card):
    source = wide(tmp_path / "source")
    monkeypatch.setattr(memory, "available", lambda: Available(0, 0))
    monkeypatch.setattr(machine, "runs_our_code", lambda: ours)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    prepare(source, tmp_path / "out")
    assert manifests.stored_as(model_folder.load(tmp_path / "out")) == "bfloat16"


def test_modules_can_differ(tmp_path):
    prepare(wide(tmp_path / "source"), tmp_path / "out", dtype="int4,*.down_proj.weight=int8,lm_head.weight=raw,*.self_attn.*=packed")
    found = schemes(tmp_path / "out")
    assert (found["mlp.down_proj.weight"], found["mlp.up_proj.weight"], found["lm_head.weight"]) == ("int8", "int4", "raw")
    assert found["self_attn.o_proj.weight"] == "packed"


@pytest.mark.parametrize(
    ("dtype", "says"),
    [
        ("int3", '"int3" is not one of auto'),
        ("int4,*.down_proj.weight=int3", '"int3" is not one of raw'),
        ("int4,int8", "says twice"),
        ("float16,bfloat16", "says twice"),
        ("*.down_porj.weight=int8", 'no linear layer\'s weight is called "\\*.down_porj.weight"; there are such as lm_head.weight'),
    ],
)
def test_what_is_no_dtype_and_no_module_is_named(tmp_path, dtype, says):
    with pytest.raises(UsageError, match=says):
        prepare(wide(tmp_path / "source"), tmp_path / "out", dtype=dtype)


def test_a_width_that_the_scheme_cannot_take_gets_the_next_better_one_and_that_is_said(tmp_path):
    said = []
    source = wide(tmp_path / "source", hidden_size=144, intermediate_size=200, num_attention_heads=4)
    prepare(source, tmp_path / "out", dtype="int4", notice=said.append)
    found = schemes(tmp_path / "out")
    assert (found["self_attn.q_proj.weight"], found["mlp.down_proj.weight"]) == ("int8", "int8")
    assert any("q_proj.weight and 11 more: stored as int8, since int4 needs rows of a multiple of 32 columns" in each for each in said), said


def test_packed_holds_bf16_and_says_so_of_anything_else(tmp_path):
    said = []
    prepare(wide(tmp_path / "source", torch.float16), tmp_path / "out", dtype="packed", notice=said.append)
    assert set(schemes(tmp_path / "out").values()) == {"raw"}
    assert any("packed holds bf16 and not float16" in each for each in said)


def test_weights_without_a_window_stay_as_they_are(tmp_path):
    source = wide(tmp_path / "source", tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    bits = torch.randint(-(1 << 15), 1 << 15, (256, 2560), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    scattered = bits.to(torch.int16).view(torch.bfloat16)
    model.model.layers[0].mlp.up_proj.weight.data = scattered[:, :128].nan_to_num(0).clone()
    model.lm_head.weight.data = scattered.reshape(-1)[: 300 * 128].view(300, 128).nan_to_num(0).clone()
    model.save_pretrained(source)
    said = []
    prepare(source, tmp_path / "out", dtype="packed", notice=said.append)
    found = schemes(tmp_path / "out")
    assert (found["mlp.up_proj.weight"], found["mlp.gate_proj.weight"], found["lm_head.weight"]) == ("raw", "packed", "raw")
    assert any("exponents lie too far apart" in each for each in said)
    verify(tmp_path / "out")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["packed", "int8", "int4"])
def test_a_model_folder_stored_otherwise_is_what_its_source_would_have_become(tmp_path, dtype, tied):
    source = wide(tmp_path / "source", tie_word_embeddings=tied)
    prepare(source, tmp_path / "plain")
    prepare(source, tmp_path / "one", dtype=dtype)
    prepare(tmp_path / "plain", tmp_path / "other", dtype=dtype)
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    assert one.keys() == other.keys()
    assert all(one[name] == other[name] for name in one if name.endswith(".safetensors"))


def test_packed_becomes_bf16_again(tmp_path):
    prepare(wide(tmp_path / "source"), tmp_path / "plain")
    prepare(tmp_path / "plain", tmp_path / "packed", dtype="packed")
    prepare(tmp_path / "packed", tmp_path / "again", dtype="bfloat16")
    plain, again = tensors_of(tmp_path / "plain"), tensors_of(tmp_path / "again")
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_what_has_lost_bits_is_no_source(tmp_path):
    prepare(wide(tmp_path / "source"), tmp_path / "out", dtype="int4")
    with pytest.raises(UsageError, match="is stored as int4, int8 already"):
        prepare(tmp_path / "out", tmp_path / "other", dtype="packed")


def test_a_model_folder_is_not_copied_for_nothing(tmp_path):
    prepare(wide(tmp_path / "source"), tmp_path / "out")
    with pytest.raises(UsageError, match="is a model folder already: start it with"):
        prepare(tmp_path / "out", tmp_path / "other")


def test_a_flipped_bit_of_the_folder_gets_no_new_checksum(tmp_path):
    prepare(wide(tmp_path / "source"), tmp_path / "plain")
    file = tmp_path / "plain" / "layer.0001.safetensors"
    data = bytearray(file.read_bytes())
    data[-5000] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelDataError, match="is damaged: layer 1"):
        prepare(tmp_path / "plain", tmp_path / "out", dtype="int8")


@pytest.mark.parametrize("family", ["Mixtral", "GPT-2", "DeepSeek-V3", "Falcon-H1"])
@pytest.mark.parametrize("dtype", ["packed", "int8", "int4"])
def test_families_with_other_modules_are_prepared_whole(tmp_path, family, dtype):
    prepare(checkpoint(tmp_path / "source", family, "bfloat16"), tmp_path / "out", dtype=dtype, notice=lambda _: None)
    model_folder.check_files(tmp_path / "out", model_folder.load(tmp_path / "out"))
    assert "raw" in schemes(tmp_path / "out").values()


@pytest.mark.parametrize("dtype", ["int8", "int4", "int4,*.down_proj.weight=int8"])
def test_a_plan_knows_what_prepare_will_write(tmp_path, dtype):
    source = wide(tmp_path / "source")
    prepare(source, tmp_path / "out", dtype=dtype)
    written, drawn = dataclasses.asdict(model_folder.load(tmp_path / "out")), dataclasses.asdict(outline(str(source / "config.json"), dtype)[0])
    assert written["files"] == drawn["files"]
    assert [len(shard["parts"]) for shard in written["shards"]] == [len(shard["parts"]) for shard in drawn["shards"]]


def test_and_of_packed_about(tmp_path):
    prepare(wide(tmp_path / "source", hidden_size=512, intermediate_size=1024), tmp_path / "out", dtype="packed")
    written, drawn = model_folder.load(tmp_path / "out"), outline(str(tmp_path / "source"), "packed")[0]
    assert sum(drawn.files.values()) == pytest.approx(sum(written.files.values()), rel=0.03)


def test_a_gguf_file_that_is_kept_is_as_large_as_it_was(tmp_path):
    file = write_gguf(tmp_path / "model.gguf")
    prepare(file, tmp_path / "out", dtype="keep")
    assert "q8_0" in schemes(tmp_path / "out").values()
    written = model_folder.load(tmp_path / "out")
    assert outline(str(file), "keep")[0].files == written.files
    layers = [tensor for shard in written.shards if shard.kind == "layer" for part in shard.parts for tensor in part.tensors]
    kept = [tensor for tensor in layers if tensor.scheme == "q8_0"]
    assert len(kept) == 10, "those of fewer than 64 rows are not"
    for tensor in kept:
        blocks = tensor.shape[0] * tensor.shape[1] // 32
        assert blocks * 34 <= tensor.length < blocks * 34 + 16 * tensor.shape[0], "records are padded, and no more"


def test_what_a_file_has_in_no_form_that_can_be_kept_is_said(tmp_path):
    said = []
    prepare(wide(tmp_path / "source"), tmp_path / "out", dtype="keep", notice=said.append)
    assert set(schemes(tmp_path / "out").values()) == {"raw"}
    assert any("and 14 more: stored as raw, since the file has it in no form that can be kept" in each for each in said), said


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_rounded_to_some(tmp_path, dtype, value):
    source = wide(tmp_path / "source")
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    model.save_pretrained(source)
    with pytest.raises(ModelDataError, match=rf"mlp.up_proj.weight has weights that are no numbers, which {dtype} cannot hold"):
        prepare(source, tmp_path / "out", dtype=dtype)
    prepare(source, tmp_path / "plain")


def test_interrupted_it_goes_on_and_becomes_the_same(tmp_path, monkeypatch):
    from potatod.store import prepare as preparing

    source = wide(tmp_path / "source")
    prepare(source, tmp_path / "whole", dtype="packed")
    head = preparing.Preparation._head
    monkeypatch.setattr(preparing.Preparation, "_head", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", dtype="packed")
    monkeypatch.setattr(preparing.Preparation, "_head", head)
    prepare(source, tmp_path / "out", dtype="packed")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
