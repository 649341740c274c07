"""Sources that cannot become a model folder: one sentence each that says what, where and what to do."""

from __future__ import annotations

import json

import pytest
import torch
from factories import checkpoint, prepared_folder
from safetensors.torch import load_file, save_file

from potatod.errors import ModelDataError, NoSuchModel, PotatoError, UnsupportedModel, UsageError
from potatod.store.prepare import prepare


def change_config(source, **changes) -> None:
    page = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(page | changes))


def change_tensors(source, change) -> None:
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors")


def no_config(source):
    (source / "config.json").unlink()


def broken_config(source):
    (source / "config.json").write_text("{")


def config_list(source):
    (source / "config.json").write_text("[]")


def unknown_architecture(source):
    change_config(source, model_type="potatoformer")


def remote_code(source):
    change_config(source, model_type="potatoformer", auto_map={"AutoModel": "modeling.Potato"})


def kernels(source):
    change_config(source, use_kernels=True)


def not_a_language_model(source):
    change_config(source, model_type="vit")


def nonsense_size(source):
    change_config(source, hidden_size="large")


def pickle(source):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


def only_gguf(source):
    (source / "model.safetensors").rename(source / "model.gguf")


def no_weights(source):
    (source / "model.safetensors").unlink()


def foreign_safetensors(source):
    (source / "model.safetensors").rename(source / "consolidated.safetensors")


def truncated(source):
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-100])


def truncated_header(source):
    (source / "model.safetensors").write_bytes(b"\x10\x00")


def missing_tensor(source):
    change_tensors(source, lambda t: t.pop("model.layers.3.mlp.up_proj.weight"))


def missing_norm(source):
    change_tensors(source, lambda t: t.pop("model.norm.weight"))


def missing_embedding(source):
    change_tensors(source, lambda t: t.pop("model.embed_tokens.weight"))


def missing_head(source):
    change_tensors(source, lambda t: t.pop("lm_head.weight"))


def wrong_shape(source):
    change_tensors(source, lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 64)}))


def wrong_embedding(source):
    change_tensors(source, lambda t: t.update({"model.embed_tokens.weight": torch.zeros(10, 64)}))


def missing_file(source):
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def climbing_index(source):
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))


def index_without_map(source):
    (source / "model.safetensors.index.json").write_text("{}")


def lying_index(source):
    index = {"weight_map": {"model.norm.wait": "model.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def broken_tokenizer(source):
    (source / "tokenizer.json").write_text("not json")


def broken_sentencepiece(source):
    (source / "tokenizer.model").write_bytes(b"\x00\x01nothing")


CASES = [
    (no_config, NoSuchModel, "no config.json"),
    (broken_config, ModelDataError, r"cannot read .*config\.json"),
    (config_list, ModelDataError, "must hold a JSON object"),
    (unknown_architecture, UnsupportedModel, '"potatoformer" is not known'),
    (remote_code, UnsupportedModel, "needs code of its own"),
    (kernels, UnsupportedModel, "use_kernels"),
    (not_a_language_model, UnsupportedModel, "not a language model"),
    (nonsense_size, PotatoError, "hidden_size"),
    (pickle, UnsupportedModel, "is a pickle.*save_pretrained"),
    (only_gguf, NoSuchModel, r"name it: .*model\.gguf"),
    (no_weights, NoSuchModel, "holds no weights"),
    (foreign_safetensors, NoSuchModel, "consolidated"),
    (truncated, ModelDataError, r"model\.safetensors is not a whole safetensors file"),
    (truncated_header, ModelDataError, r"model\.safetensors is not a whole safetensors file"),
    (missing_tensor, ModelDataError, r"nothing for model\.layers\.3\.mlp\.up_proj\.weight"),
    (missing_norm, ModelDataError, r"nothing for model\.norm\.weight"),
    (missing_embedding, ModelDataError, r"nothing for model\.embed_tokens\.weight"),
    (missing_head, ModelDataError, "tie_word_embeddings"),
    (wrong_shape, ModelDataError, r"layers\.1\.mlp\.up_proj\.weight has the shape \[3, 64\].* \[160, 64\]"),
    (wrong_embedding, ModelDataError, r"embed_tokens\.weight has the shape \[10, 64\].* \[320, 64\]"),
    (missing_file, ModelDataError, r"model-00002-of-00002\.safetensors is missing"),
    (climbing_index, ModelDataError, "not a safetensors file of the folder"),
    (index_without_map, ModelDataError, "weight_map"),
    (lying_index, ModelDataError, r"model\.norm\.wait lies in model\.safetensors, and it does not"),
    (broken_tokenizer, ModelDataError, r"cannot read .*tokenizer\.json"),
    (broken_sentencepiece, ModelDataError, "cannot load the tokenizer in"),
]


@pytest.mark.parametrize(("spoil", "error", "sentence"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_a_bad_source_is_refused_in_one_sentence(tmp_path, spoil, error, sentence):
    source = checkpoint(tmp_path / "source")
    spoil(source)
    with pytest.raises(error, match=sentence) as caught:
        prepare(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_place_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NoSuchModel, match="nowhere is neither a file, nor a folder, nor a hub id"):
        prepare(tmp_path / "nowhere", tmp_path / "out")


def test_a_pickle_named_itself_is_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedModel, match="is a pickle"):
        prepare(tmp_path / "model.pt", tmp_path / "out")


def test_a_model_folder_is_no_source(tmp_path):
    with pytest.raises(UsageError, match="model folder already"):
        prepare(prepared_folder(tmp_path), tmp_path / "out")


def test_a_dtype_that_is_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match='"int3" is not one of auto'):
        prepare(tmp_path, tmp_path / "out", dtype="int3")


def test_auto_map_of_an_architecture_that_transformers_has_is_dropped(tmp_path):
    source = checkpoint(tmp_path / "source")
    change_config(source, auto_map={"AutoModelForCausalLM": "modeling_llama.Llama"})
    prepare(source, tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
