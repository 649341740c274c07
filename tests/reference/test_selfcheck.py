"""What the self-check finds of a family, and that it sees what is wrong."""

from __future__ import annotations

import os

import pytest
import torch
from families import FAMILIES, Family, by_name

from potatod import model_folder
from potatod.errors import UnsupportedModel
from potatod.store import skeleton as skeletons
from potatod.worker import selfcheck
from potatod.worker.arithmetic import PLAIN
from potatod.worker.attention import PackedAttention
from potatod.worker.weights import read_parts

from .conftest import make_tiny


@pytest.fixture(scope="module")
def attention() -> PackedAttention:
    return PackedAttention()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_is_served_by_the_batching_that_its_tests_use(attention, family: Family):
    assert selfcheck.check(family.config(), "reference", attention)[0] == family.batching
    if family.invariant_batching != family.batching:  # where a packed one is invariant test_families shows it
        assert selfcheck.check(family.config(), "invariant", attention)[0] == family.invariant_batching


def test_a_family_whose_answers_depend_on_how_the_prompt_is_cut_is_refused_with_the_reason(attention):
    import transformers

    config = transformers.RecurrentGemmaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=160, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, attention_window_size=16, lru_width=64,
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match=r"recurrent_gemma cannot be served exactly here: its logits in chunks .* are not transformers'"):
        selfcheck.check(config, "reference", attention)


@pytest.fixture(scope="module", params=[("Llama 3", torch.bfloat16), ("Falcon", torch.float32), ("Qwen3-Next", torch.bfloat16)],
                ids=lambda param: param[0])  # fmt: skip
def prepared(request, tmp_path_factory):
    name, dtype = request.param
    folder = make_tiny(by_name(name), dtype, tmp_path_factory.mktemp("layer")).folder
    return by_name(name), skeletons.load_config(folder), model_folder.load(folder), folder


@pytest.mark.parametrize("kernels", ["reference", "invariant", "fast"])
def test_the_first_layer_with_its_real_weights_gives_what_transformers_gives(attention, prepared, kernels):
    family, config, manifest, folder = prepared
    batching = family.invariant_batching if kernels == "invariant" else family.batching
    selfcheck.check_layer(config, manifest, folder, kernels, batching, attention, PLAIN)


def test_a_part_larger_than_one_call_reads_is_read(prepared, monkeypatch):
    _, _, manifest, folder = prepared
    part = next(shard for shard in manifest.shards if shard.kind == "layer").parts[0]
    expected = dict(read_parts(folder, [part]))
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: whole(fd, [buffers[0][:1000]], offset))
    found = dict(read_parts(folder, [part]))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_first_layer_that_computes_something_else_is_refused(attention, tmp_path, monkeypatch):
    from potatod.worker import attention as module

    folder = make_tiny(by_name("Llama 3"), torch.float32, tmp_path).folder
    right = module.attend_whole
    monkeypatch.setattr(module, "attend_whole", lambda *arguments: right(*arguments) * 1.5)
    with pytest.raises(UnsupportedModel, match="seen in its first layer with its real weights"):
        selfcheck.check_layer(skeletons.load_config(folder), model_folder.load(folder), folder, "fast", "packed", attention, PLAIN)
