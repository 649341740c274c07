"""What `prepare` stores is what transformers loads: every name, dtype and bit."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from factories import checkpoint, tensors_of
from safetensors.torch import load_file, save_file

from potatod import model_folder
from potatod.store import skeleton
from potatod.store.prepare import prepare

FAMILIES = [
    "Llama 2", "Llama 3.1, 3.2", "Gemma 2", "Gemma 3", "Qwen3-MoE", "Mixtral", "GPT-2", "GPT-NeoX", "Falcon",
    "Phi-3 (short rope)", "gpt-oss", "DeepSeek-V3", "Cohere", "Llama 4", "OPT", "Jamba", "Mamba 2",
]  # fmt: skip


def loaded(source, dtype) -> dict[str, torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    state = model.state_dict()
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        names = [name for name, value in model.named_parameters(remove_duplicate=False) if value is model.get_output_embeddings().weight]
        embed = next(name for name, _ in model.named_parameters() if name in names)
        state = {name: value for name, value in state.items() if name not in names or name == embed}
    return state


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [n for n, value in expected.items() if found[n].dtype != value.dtype or not torch.equal(found[n], value)]
    assert not different


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_the_one_from_pretrained_gives(tmp_path, family):
    source = checkpoint(tmp_path / "source", family, "bfloat16")
    assert prepare(source, tmp_path / "out", band_bytes=1 << 13)
    assert_equal(tensors_of(tmp_path / "out"), loaded(source, torch.bfloat16))
    manifest = model_folder.load(tmp_path / "out")
    built = skeleton.build(skeleton.load_config(tmp_path / "out"), torch.bfloat16)
    assert skeleton.fingerprint(built) == manifest.fingerprint, "the folder's config makes another model than the source's"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", ["Qwen3-MoE", "DeepSeek-V3", "gpt-oss"])
def test_another_dtype_is_cast_as_transformers_casts_it(tmp_path, family, dtype):
    source = checkpoint(tmp_path / "source", family, "float32")
    prepare(source, tmp_path / "out", dtype=dtype)
    assert_equal(tensors_of(tmp_path / "out"), loaded(source, getattr(torch, dtype)))
    assert model_folder.load(tmp_path / "out").dtype == dtype


def test_auto_takes_the_dtype_of_the_weights_where_the_config_names_none(tmp_path):
    source = checkpoint(tmp_path / "source", dtype="float16")
    page = json.loads((source / "config.json").read_text())
    page.pop("dtype")
    (source / "config.json").write_text(json.dumps(page))
    prepare(source, tmp_path / "out")
    assert model_folder.load(tmp_path / "out").dtype == "float16"


def test_a_checkpoint_in_several_files_is_read_through_its_index(tmp_path):
    source = checkpoint(tmp_path / "source", "Mixtral", "bfloat16", shard_size="200KB")
    assert len(list(source.glob("*.safetensors"))) > 3
    prepare(source, tmp_path / "out")
    assert_equal(tensors_of(tmp_path / "out"), loaded(source, torch.bfloat16))


def test_a_tied_head_is_bands_of_the_embeddings_own_bytes(tmp_path):
    source = checkpoint(tmp_path / "source", "Qwen2", "bfloat16")
    prepare(source, tmp_path / "out", band_bytes=1 << 13)
    manifest = model_folder.load(tmp_path / "out")
    head = next(shard for shard in manifest.shards if shard.kind == "head")
    assert manifest.tied and not (tmp_path / "out" / "head.safetensors").exists()
    assert len(head.parts) > 2 and {part.file for part in head.parts} == {"embed.safetensors"}
    assert {part.tensors[0].name for part in head.parts} == {"lm_head.weight"}


def test_a_head_that_differs_from_the_embedding_is_kept_though_the_config_says_tied(tmp_path):
    source = checkpoint(tmp_path / "source", "Llama 2")
    page = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(page | {"tie_word_embeddings": True}))
    prepare(source, tmp_path / "out")
    assert not model_folder.load(tmp_path / "out").tied
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(tensors_of(tmp_path / "out")["lm_head.weight"], load_file(source / "model.safetensors")["lm_head.weight"])


def test_a_tied_checkpoint_may_hold_only_the_head(tmp_path):
    source = checkpoint(tmp_path / "source", "Qwen2")
    tensors = load_file(source / "model.safetensors")
    embed = tensors.pop("model.embed_tokens.weight")
    save_file({**tensors, "lm_head.weight": embed}, source / "model.safetensors")
    prepare(source, tmp_path / "out")
    assert torch.equal(tensors_of(tmp_path / "out")["model.embed_tokens.weight"], embed)


_TEXT = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
_MULTIMODAL = {
    "gemma3": {"text_config": _TEXT, "vision_config": _VISION, "mm_tokens_per_image": 4},
    "mistral3": {
        "text_config": {"model_type": "mistral", **_TEXT}, "vision_config": {"model_type": "pixtral", **_VISION, "head_dim": 16},
    },
    "llama4": {
        "text_config": {**_TEXT, "num_local_experts": 2, "intermediate_size_mlp": 160, "interleave_moe_layer_step": 1},
        "vision_config": {**_VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
}  # fmt: skip


@pytest.mark.parametrize("model_type", _MULTIMODAL)
def test_of_a_multimodal_checkpoint_the_text_part_is_taken(tmp_path, model_type):
    config = transformers.AutoConfig.for_model(model_type, **_MULTIMODAL[model_type])
    torch.manual_seed(0)
    whole = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.normal_()
    whole.save_pretrained(tmp_path / "source")
    prepare(tmp_path / "source", tmp_path / "out")
    found = tensors_of(tmp_path / "out")
    text = whole.model.language_model if hasattr(whole, "model") else whole.language_model.model
    for name, value in text.state_dict().items():
        assert torch.equal(found[f"model.{name}"], value)
    tied = model_folder.load(tmp_path / "out").tied
    assert len(found) == len(text.state_dict()) + (0 if tied else 1)
    if not tied:
        assert torch.equal(found["lm_head.weight"], whole.get_output_embeddings().weight)
    assert skeleton.load_config(tmp_path / "out").model_type == config.get_text_config().model_type
