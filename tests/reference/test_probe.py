"""What the probe concludes from a config."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from engine import Engine
from families import by_name

from potatod import model_folder
from potatod.config import keys
from potatod.errors import ConfigError, ModelDataError
from potatod.sources import gather
from potatod.store import skeleton as skeletons
from potatod.worker.attention import PackedAttention
from potatod.worker.model import conform
from potatod.worker.probe import find, kept, max_positions, rope_border

from .conftest import make_tiny
from .test_families import PROMPT


@pytest.mark.parametrize(("family", "tokens"), [("Llama 3", 512), ("GPT-2", 512), ("Phi-3 (long rope)", 512), ("MPT", 512)])
def test_the_context_is_what_the_model_was_made_for(family, tokens):
    assert max_positions(by_name(family).config()) == tokens


def test_a_model_without_positions_has_no_limit_of_its_own():
    assert max_positions(transformers.Mamba2Config()) == 1 << 20


@pytest.mark.parametrize(("family", "tokens"), [("Llama 3.1, 3.2", None), ("Phi-3 (short rope)", 256), ("Phi-3 (long rope)", 4)])
def test_only_longrope_has_a_border(family, tokens):
    assert rope_border(by_name(family).config()) == tokens


def test_a_folder_whose_other_tensors_have_other_shapes_is_refused(tmp_path):
    """A bias of four numbers would be added to as many outputs, and what lies behind it to the others."""
    folder = make_tiny(by_name("Phi-2"), torch.float32, tmp_path).folder
    page = json.loads((folder / "manifest.json").read_text())
    (bias,) = (t for shard in page["shards"] for part in shard["parts"] for t in part["tensors"] if t["name"] == "lm_head.bias")
    bias.update(shape=[4], length=16)
    (folder / "manifest.json").write_text(json.dumps(page))
    with pytest.raises(ModelDataError, match=r"lm_head.bias has shape \(4,\), and the model"):
        conform(skeletons.build(skeletons.load_config(folder), torch.float32), model_folder.load(folder), folder)


@pytest.mark.parametrize(
    "name", ["Llama 3", "GPT-2", "Phi-3 (short rope)", "DeepSeek-V3", "Qwen3-MoE", "Gemma 4", "Mamba 2", "Qwen3-Next", "Falcon-H1"]
)
@pytest.mark.parametrize("kernels", ["reference", "invariant"])
def test_what_a_sequence_keeps_is_known_before_it_is_there(tmp_path, name, kernels):
    """Experts, latents, states and shared keys included."""
    family = by_name(name)
    batching = family.invariant_batching if kernels == "invariant" else family.batching
    layout = kept(family.config(), torch.float32, kernels, batching, PackedAttention())
    made = make_tiny(family, torch.float32, tmp_path)
    tokens = (PROMPT * 2)[:128]  # a whole block
    with Engine(made.folder, 1 << 22, kernels=kernels, batching=batching) as engine:
        engine.sweep({1: tokens})
        found = sum(tensor.numel() * tensor.itemsize for tensor in engine.worker._sequences[1].tensors())
    assert found == layout.bytes_of(len(tokens), len(tokens))


@pytest.mark.parametrize(("family", "kernels", "said"), [("Llama 3", "reference", 'kernels = "reference"'), ("Mamba 2", "invariant", "mamba2")])
def test_keys_and_values_that_are_not_ours_to_keep_are_not_rounded(tmp_path, family, kernels, said):
    folder = make_tiny(by_name(family), torch.bfloat16, tmp_path).folder
    settings = gather(None, {}, {key: text for key in keys() if (text := {"[kv] dtype": "float8", "[worker] kernels": kernels}.get(key.label))})
    threads = torch.get_num_threads()
    try:
        with pytest.raises(ConfigError, match=said):
            find(folder, settings.settings)
    finally:  # or every test behind this one would compute with as many threads as there are cores, beside another process of tests
        torch.set_num_threads(threads)
