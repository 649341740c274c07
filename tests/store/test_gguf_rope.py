"""Scaled positions in GGUF files: the original's frequencies, bit for bit, or a refusal that names what is scaled."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch
import transformers
from ggufs import HEADS, HIDDEN, write_gguf

from potatod.errors import UnsupportedModel
from potatod.store import gguf_rope, skeleton
from potatod.store.prepare import prepare

HEAD = HIDDEN // HEADS
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def divisors(theta: float, width: int, factor: float, low: float = 1.0, high: float = 4.0, length: float = 8192) -> np.ndarray:
    """By what each frequency is divided, from the published description of Llama 3.1: short waves stay, long ones are divided by
    the factor, between them the frequency goes over smoothly."""
    turns = length * theta ** -(np.arange(0, width, 2) / width) / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - share) / factor + share)


def original(theta: float, **scaling) -> transformers.PreTrainedConfig:
    """The config that the file was once made from."""
    return transformers.LlamaConfig(
        vocab_size=300, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=2,
        head_dim=HEAD, max_position_embeddings=128, rope_parameters={"rope_theta": theta, **scaling},
    )  # fmt: skip


def turning(config) -> tuple[torch.Tensor, float]:
    """Frequencies and attention factor of the model's first rotary embedding."""
    embedding = next(module for module in skeleton.build(config, torch.float32).model.modules() if hasattr(module, "inv_freq"))
    return embedding.inv_freq, embedding.attention_scaling


def assert_turns_alike(folder, config) -> None:
    found = skeleton.load_config(folder)
    assert found.rope_parameters == config.rope_parameters
    (ours, our_factor), (theirs, their_factor) = turning(found), turning(config)
    assert torch.equal(ours, theirs) and our_factor == their_factor


def keys(architecture: str = "llama", **values):
    """Keys below ARCH.rope, dots written as two underscores."""

    def add(writer) -> None:
        for name, value in values.items():
            key = f"{architecture}.rope.{name.replace('__', '.')}"
            add_value = writer.add_string if isinstance(value, str) else writer.add_uint32 if isinstance(value, int) else writer.add_float32
            add_value(key, value)

    return add


@pytest.mark.parametrize("factor", [8.0, 16.0, 32.0])
def test_divisors_of_llama_3_are_its_published_scaling(tmp_path, factor):
    tensors = {"rope_freqs.weight": divisors(500000.0, HEAD, factor)}
    assert 1.0 < tensors["rope_freqs.weight"][4] < factor, "one frequency lies where both ends are mixed"
    prepare(write_gguf(tmp_path / "model.gguf", theta=500000.0, tensors=tensors), tmp_path / "out")
    assert_turns_alike(tmp_path / "out", original(500000.0, **{**LLAMA3, "factor": factor}))


@pytest.mark.parametrize("factor", [2.0, 8.0, 16.0, 32.0, 64.0])
@pytest.mark.parametrize("width", [64, 80, 96, 128, 256])
def test_they_are_known_at_real_sizes(width, factor):
    def config_with(scaling):
        rope = {"rope_theta": 500000.0, **scaling}
        return transformers.LlamaConfig(hidden_size=4 * width, num_attention_heads=4, head_dim=width, rope_parameters=rope)

    values = torch.tensor(divisors(500000.0, width, factor), dtype=torch.float32)
    found = gguf_rope.scaling_of("llama", {}, {"rope_freqs.weight": values}, config_with)
    assert found == {**LLAMA3, "factor": factor}


@pytest.mark.parametrize("values", [
    divisors(500000.0, HEAD, 8.0, low=2.0), divisors(500000.0, HEAD, 8.0, high=8.0), divisors(500000.0, HEAD, 8.0, length=4096),
    divisors(10000.0, HEAD, 8.0), divisors(500000.0, 2 * HEAD, 8.0), divisors(500000.0, HEAD, 8.0) * (1 + 1e-5), np.full(8, 4.0),
], ids=["low", "high", "length", "theta", "width", "inexact", "even"])  # fmt: skip
def test_divisors_of_no_published_scaling_are_refused(tmp_path, values):
    file = write_gguf(tmp_path / "model.gguf", theta=500000.0, tensors={"rope_freqs.weight": values})
    with pytest.raises(UnsupportedModel, match=r"rope factors \(rope_freqs\.weight\) of no published llama3 scaling.*original safetensors"):
        prepare(file, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_divisors_that_divide_nothing_are_no_scaling(tmp_path):
    prepare(write_gguf(tmp_path / "model.gguf", tensors={"rope_freqs.weight": np.ones(HEAD // 2)}), tmp_path / "out")
    assert_turns_alike(tmp_path / "out", original(10000.0, rope_type="default"))


@pytest.mark.parametrize("values", [
    {"scaling__type": "linear", "scaling__factor": 4.0}, {"scaling__factor": 4.0}, {"scale_linear": 4.0},
    {"scaling__type": "linear", "scaling__factor": 4.0, "scaling__original_context_length": 128, "scaling__attn_factor": 1.0},
])  # fmt: skip
def test_linear_scaling_is_stated(tmp_path, values):
    prepare(write_gguf(tmp_path / "model.gguf", extra=keys(**values)), tmp_path / "out")
    assert_turns_alike(tmp_path / "out", original(10000.0, rope_type="linear", factor=4.0))


def test_a_factor_that_fp32_rounds_is_the_one_that_was_meant(tmp_path):
    prepare(write_gguf(tmp_path / "model.gguf", extra=keys(scaling__type="linear", scaling__factor=2.7)), tmp_path / "out")
    assert_turns_alike(tmp_path / "out", original(10000.0, rope_type="linear", factor=2.7))


@pytest.mark.parametrize("values", [
    {"scaling__type": "none", "scaling__factor": 4.0}, {"scaling__type": "linear", "scaling__factor": 1.0}, {"scaling__type": "linear"},
    {"scaling__original_context_length": 64},
])  # fmt: skip
def test_what_scales_nothing_is_no_scaling(tmp_path, values):
    prepare(write_gguf(tmp_path / "model.gguf", extra=keys(**values)), tmp_path / "out")
    assert_turns_alike(tmp_path / "out", original(10000.0, rope_type="default"))


@pytest.mark.parametrize(("values", "stated"), [
    ({"scaling__original_context_length": 32}, {"original_max_position_embeddings": 32}),
    ({}, {"original_max_position_embeddings": 128}),
    (
        {"scaling__original_context_length": 32, "scaling__yarn_beta_fast": 24.0, "scaling__yarn_beta_slow": 2.0,
         "scaling__yarn_ext_factor": 1.0, "scaling__yarn_attn_factor": 1.0, "scaling__yarn_log_multiplier": 0.0},
        {"original_max_position_embeddings": 32, "beta_fast": 24.0, "beta_slow": 2.0},
    ),
])  # fmt: skip
def test_yarn_is_stated(tmp_path, values, stated):
    file = write_gguf(tmp_path / "model.gguf", extra=keys(scaling__type="yarn", scaling__factor=4.0, **values))
    prepare(file, tmp_path / "out")
    assert_turns_alike(tmp_path / "out", original(10000.0, rope_type="yarn", factor=4.0, **stated))
    assert turning(skeleton.load_config(tmp_path / "out"))[1] == pytest.approx(0.1 * math.log(4.0) + 1.0)


def test_other_architectures_whose_layers_turn_alike_are_scaled_too(tmp_path):
    extra = keys("qwen3moe", scaling__type="yarn", scaling__factor=4.0, scaling__original_context_length=32)
    prepare(write_gguf(tmp_path / "model.gguf", "qwen3moe", extra=extra), tmp_path / "out")
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
    assert skeleton.load_config(tmp_path / "out").rope_parameters == expected


def gemma(**values):
    def extra(writer) -> None:
        writer.add_sliding_window(16)
        keys("gemma3", scaling__type="linear", scaling__factor=8.0, **values)(writer)

    return extra


def test_of_gemma_3_only_the_full_layers_are_scaled(tmp_path):
    prepare(write_gguf(tmp_path / "model.gguf", "gemma3", theta=1000000.0, extra=gemma(freq_base_swa=10000.0)), tmp_path / "out")
    assert skeleton.load_config(tmp_path / "out").rope_parameters == {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }


LINEAR, YARN = {"scaling__type": "linear", "scaling__factor": 2.0}, {"scaling__type": "yarn", "scaling__factor": 4.0}


@pytest.mark.parametrize(("architecture", "extra", "tensors", "what"), [
    ("llama", keys(scaling__type="longrope", scaling__factor=4.0), (), "longrope rope scaling"),
    ("llama", keys(**LINEAR, scaling__attn_factor=1.2), (), "linear rope scaling with attn_factor = 1.2"),
    ("llama", keys(**LINEAR, scaling__alpha=1000.0), (), "linear rope scaling with alpha"),
    ("llama", keys(scaling__factor="much"), (), "rope scaling by 'much'"),
    ("llama", keys(scaling__type="linear", scaling__factor=0.5), (), "linear rope scaling by 0.5"),
    ("llama", keys(scaling__attn_factor=1.2), (), "a rope scaling attn_factor"),
    ("llama", keys(**YARN, scaling__yarn_log_multiplier=0.1), (), "yarn rope scaling with yarn_log_multiplier"),
    ("llama", keys(**YARN, scaling__yarn_ext_factor=0.5), (), "yarn rope scaling with yarn_ext_factor"),
    ("llama", keys(**YARN, scaling__yarn_attn_factor=2.0), (), "yarn rope scaling with yarn_attn_factor"),
    ("llama", keys(**LINEAR), ("rope_freqs.weight",), r"rope factors \(rope_freqs.weight\)"),
    ("llama", keys(), ("rope_factors_long.weight",), r"rope factors \(rope_factors_long.weight\)"),
    ("qwen3moe", keys("qwen3moe"), ("rope_freqs.weight",), r"rope factors \(rope_freqs.weight\)"),
    ("qwen3moe", keys("qwen3moe", **LINEAR, dimension_count=8), (), "linear rope scaling of qwen3moe"),
    ("gemma3", keys("gemma3", **YARN), (), "yarn rope scaling of gemma3"),
    ("gemma3", keys("gemma3", **LINEAR), (), "linear rope scaling of gemma3"),
    ("gemma3", gemma(freq_base_swa=20000.0), (), "linear rope scaling of gemma3"),
])  # fmt: skip
def test_what_is_not_certain_is_refused_by_name(tmp_path, architecture, extra, tensors, what):
    values = dict.fromkeys(tensors, divisors(10000.0, HEAD, 8.0))
    file = write_gguf(tmp_path / "model.gguf", architecture, extra=extra, tensors=values)
    with pytest.raises(UnsupportedModel, match=f"has {what}.*, which cannot be stated in transformers' words with certainty.*original") as caught:
        prepare(file, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_divisors_that_are_all_one_beside_a_scaling_by_keys_are_refused_too(tmp_path):
    file = write_gguf(tmp_path / "model.gguf", extra=keys(**LINEAR), tensors={"rope_freqs.weight": np.ones(HEAD // 2)})
    with pytest.raises(UnsupportedModel, match="rope factors"):
        prepare(file, tmp_path / "out")


def test_the_type_that_gguf_itself_writes_is_read(tmp_path):
    def extra(writer) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)

    prepare(write_gguf(tmp_path / "model.gguf", extra=extra), tmp_path / "out")
    assert_turns_alike(tmp_path / "out", original(10000.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=32))
