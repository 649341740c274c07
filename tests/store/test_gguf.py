"""GGUF files: values as transformers' own loader has them, metadata as config and tokenizer, damage as a sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from factories import tensors_of
from ggufs import F16, F32, Q8, write_gguf
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from potatod import model_folder
from potatod.errors import ModelDataError, UnsupportedModel
from potatod.store import skeleton
from potatod.store.gguf_file import names_once
from potatod.store.prepare import prepare


def expected(file: Path, out: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """By the loader of ``from_pretrained(gguf_file=…)``."""
    model = skeleton.build(skeleton.load_config(out), dtype).model
    with names_once():
        found = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model, torch_dtype=dtype)["tensors"]
    return {name: value.to(dtype) for name, value in found.items()}  # what a fusing processor left in fp32 is cast by the loader


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("architecture", "head"), [("llama", True), ("llama", False), ("qwen3moe", True), ("gemma3", False)])
def test_values_are_those_of_transformers_own_loader(tmp_path, architecture, head, dtype):
    file = write_gguf(tmp_path / "model.gguf", architecture, head=head)
    prepare(file, tmp_path / "out", dtype=dtype)
    found, wanted = tensors_of(tmp_path / "out"), expected(file, tmp_path / "out", getattr(torch, dtype))
    assert found.keys() == wanted.keys()
    assert not [name for name, value in wanted.items() if found[name].dtype != value.dtype or not torch.equal(found[name], value)]
    assert model_folder.load(tmp_path / "out").tied is not head


@pytest.mark.parametrize("architecture", ["llama", "qwen3moe", "gemma3"])
def test_the_config_is_what_transformers_makes_of_the_file(tmp_path, architecture):
    file = write_gguf(tmp_path / "model.gguf", architecture)
    prepare(file, tmp_path / "out")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file="model.gguf").get_text_config().to_dict()
    ours = skeleton.load_config(tmp_path / "out").to_dict()
    ignored = {"_name_or_path", "_model_name_or_path", "architectures", "dtype", "transformers_version"}
    assert {k: v for k, v in ours.items() if k not in ignored} == {k: v for k, v in theirs.items() if k not in ignored}


def test_tokenizer_and_template_come_out_of_the_metadata(tmp_path):
    file = write_gguf(tmp_path / "model.gguf")
    prepare(file, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "<|im_start|>he ab  12\n<unused3>é"
    assert ours(text).input_ids == theirs(text).input_ids
    assert (ours.bos_token, ours.eos_token, ours.chat_template) == (theirs.bos_token, theirs.eos_token, theirs.chat_template)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize(("kind", "dtype"), [(Q8, "bfloat16"), (F16, "float16"), (F32, "float32")])
def test_auto_is_the_files_own_type_or_bfloat16_for_blocks(tmp_path, kind, dtype):
    prepare(write_gguf(tmp_path / "model.gguf", kind=kind), tmp_path / "out")
    assert model_folder.load(tmp_path / "out").dtype == dtype


@pytest.mark.parametrize("keep", [3, 20, 700, 0.5, 0.999])
def test_a_file_cut_anywhere_says_so(tmp_path, keep):
    file = write_gguf(tmp_path / "model.gguf")
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ModelDataError, match=r"model\.gguf is (cut short|not a GGUF file)"):
        prepare(file, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_file_that_says_nonsense_of_its_alignment_is_damaged(tmp_path):
    with pytest.raises(ModelDataError, match="how it is aligned"):
        prepare(write_gguf(tmp_path / "model.gguf", extra=lambda writer: writer.add_uint32("general.alignment", 0)), tmp_path / "out")


def test_a_tensor_type_that_is_unknown_is_named(tmp_path):
    file = write_gguf(tmp_path / "model.gguf")
    data = file.read_bytes()
    at = data.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 16
    file.write_bytes(data[:at] + (199).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(UnsupportedModel, match=r"blk.0.ffn_up.weight is of ggml's type 199, which potatod does not know"):
        prepare(file, tmp_path / "out")


def test_an_architecture_that_transformers_does_not_know_is_named(tmp_path):
    with pytest.raises(UnsupportedModel, match="potatoes"):
        prepare(write_gguf(tmp_path / "model.gguf", "potatoes"), tmp_path / "out")


def test_one_part_of_a_split_file_is_refused(tmp_path):
    file = write_gguf(tmp_path / "model.gguf", extra=lambda w: w.add_uint16("split.count", 3))
    with pytest.raises(UnsupportedModel, match="one of 3 parts"):
        prepare(file, tmp_path / "out")


def test_a_missing_tensor_is_named(tmp_path):
    file = write_gguf(tmp_path / "model.gguf")
    file.write_bytes(file.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_op.weight"))
    with pytest.raises(ModelDataError, match=r"nothing for model\.layers\.1\.mlp\.up_proj\.weight"):
        prepare(file, tmp_path / "out")


def test_smollm2_has_the_values_and_the_tokenizer_of_transformers(tmp_path):
    default = Path(__file__).resolve().parents[2] / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file = Path(os.environ.get("POTATO_TEST_GGUF", default))
    if not file.exists():
        pytest.skip(f"no real GGUF file: neither POTATO_TEST_GGUF nor {default} is there (`make demo` fetches it)")
    prepare(file, tmp_path / "out", dtype="bfloat16")
    found, wanted = tensors_of(tmp_path / "out"), expected(file, tmp_path / "out", torch.bfloat16)
    assert found.keys() == wanted.keys() and len(found) == 272
    assert not [name for name, value in wanted.items() if not torch.equal(found[name], value)]
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Hello <|im_start|>user  wörld 12345\n\n\tdef f(): pass"
    assert ours(text).input_ids == theirs(text).input_ids
