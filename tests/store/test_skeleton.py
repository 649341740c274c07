"""The model without weights: built from a config alone, never from code of a checkpoint's own."""

from __future__ import annotations

import json

import pytest
import torch
from factories import prepared_folder
from families import FAMILIES

from potatod.errors import ModelDataError, NoSuchModel, UnsupportedModel
from potatod.store import skeleton


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_nothing_outside_parameters_is_on_meta_and_layers_embedding_and_head_are_found(family):
    built = skeleton.build(family.config(), torch.bfloat16)
    assert len(built.layers) == 6 and built.model.get_submodule(built.layers_name) is built.layers
    assert not built.model.training
    for name in (built.embed_name, built.head_name):
        assert built.model.get_parameter(name).shape == (320, 64)
    assert all(parameter.is_meta for parameter in built.model.parameters())
    assert not [name for name, buffer in built.model.named_non_persistent_buffers() if buffer.is_meta]


def test_while_a_model_is_built_its_matrices_take_no_memory():
    with skeleton._ParametersOnMeta():
        assert torch.nn.Linear(64, 64).weight.is_meta and torch.nn.Embedding(64, 64).weight.is_meta
        assert torch.zeros(1 << 11, 1 << 10).is_meta and torch.ones((1 << 11, 1 << 10)).is_meta
        assert not torch.zeros(8).is_meta and not torch.arange(8).is_meta and not torch.empty(8, device="cpu").is_meta


def test_the_fingerprint_changes_with_a_shape_and_with_nothing_else():
    config = FAMILIES[0].config()
    before = skeleton.fingerprint(skeleton.build(config, torch.float32))
    assert skeleton.fingerprint(skeleton.build(config, torch.bfloat16)) == before
    config.intermediate_size += 8
    assert skeleton.fingerprint(skeleton.build(config, torch.float32)) != before


@pytest.mark.parametrize(("change", "error", "sentence"), [
    ({"auto_map": {"AutoModel": "x.Y"}}, UnsupportedModel, "needs code of its own"),
    ({"use_kernels": True}, UnsupportedModel, "needs code of its own"),
    ({"kernel_config": {"a": "b"}}, UnsupportedModel, "needs code of its own"),
    ({"quantization_config": {"quant_method": "fp8"}}, UnsupportedModel, "quantised"),
    ({"model_type": "nothing"}, UnsupportedModel, '"nothing" is not known'),
    ({"model_type": 7}, ModelDataError, "names no"),
    ({"num_hidden_layers": "six"}, ModelDataError, "not a valid config"),
])  # fmt: skip
def test_a_folders_config_that_asks_for_more_than_a_model_is_refused(tmp_path, change, error, sentence):
    folder = prepared_folder(tmp_path)
    page = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(page | change))
    with pytest.raises(error, match=sentence):
        skeleton.load_config(folder)


def test_a_folder_without_a_config_is_said(tmp_path):
    with pytest.raises(NoSuchModel, match=r"no config\.json"):
        skeleton.load_config(tmp_path)


def test_sizes_that_make_no_model_are_a_sentence():
    config = FAMILIES[0].config()
    config.num_attention_heads = 0
    with pytest.raises(UnsupportedModel, match="cannot build a llama"):
        skeleton.build(config, torch.float32)
