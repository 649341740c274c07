"""Checkpoints in float8 blocks and fp4: synthetic files of the real layouts, against arithmetic of our own."""

from __future__ import annotations

import json

import pytest
import torch
from factories import checkpoint, tensors_of
from safetensors.torch import load_file, save_file

from potatod.errors import ModelDataError, UnsupportedModel
from potatod.store.prepare import prepare

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def with_method(source, method) -> None:
    page = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(page | {"quantization_config": method}))


def quantise_fp8(source, block: int) -> dict[str, torch.Tensor]:
    """Stores every matrix of the layers in float8 with a scale per block; returns what they stand for."""
    stored, meant = {}, {}
    for name, value in load_file(source / "model.safetensors").items():
        if ".layers." not in name or value.ndim != 2 or name.endswith("gate.weight"):
            stored[name] = meant[name] = value
            continue
        rows, columns = value.shape
        scales = torch.rand(-(-rows // block), -(-columns // block)) + 0.01
        spread = scales.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
        stored[name] = (value.float() / spread).clamp(-440, 440).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scales
        meant[name] = (stored[name].float() * spread).to(torch.bfloat16)
    save_file(stored, source / "model.safetensors")
    with_method(source, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [block, block], "activation_scheme": "dynamic"})
    return meant


def test_block_fp8_is_multiplied_out_also_where_the_last_block_is_not_whole(tmp_path):
    source = checkpoint(tmp_path / "fp8", "DeepSeek-V3", "bfloat16")
    meant = quantise_fp8(source, 32)  # kv_a_proj_with_mqa has 24 rows here, 576 in the real one: neither is whole blocks
    plain = checkpoint(tmp_path / "plain", "DeepSeek-V3", "bfloat16")
    save_file(meant, plain / "model.safetensors")
    prepare(source, tmp_path / "a")
    prepare(plain, tmp_path / "b")
    found, expected = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert "quantization_config" not in json.loads((tmp_path / "a" / "config.json").read_text())


def test_mxfp4_experts_are_unpacked_two_values_a_byte_times_their_exponent(tmp_path):
    source = checkpoint(tmp_path / "source", "gpt-oss", "bfloat16")
    tensors = load_file(source / "model.safetensors")
    meant = {}
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(120, 132, (experts, rows, columns // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        values = torch.stack([FP4[(blocks & 15).long()], FP4[(blocks >> 4).long()]], -1).flatten(-2)
        values = values * torch.exp2(scales.float() - 127)[..., None]
        meant[name] = values.flatten(-2).transpose(1, 2).to(torch.bfloat16)
    save_file(tensors, source / "model.safetensors")
    with_method(source, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    prepare(source, tmp_path / "out")
    found = tensors_of(tmp_path / "out")
    assert len(meant) == 12
    assert not [name for name, value in meant.items() if not torch.equal(found[name], value)]


def test_float8_without_its_scales_is_refused(tmp_path):
    source = checkpoint(tmp_path / "source", "DeepSeek-V3", "bfloat16")
    quantise_fp8(source, 32)
    tensors = {name: value for name, value in load_file(source / "model.safetensors").items() if "3.mlp" not in name or "scale" not in name}
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ModelDataError, match="without scales"):
        prepare(source, tmp_path / "out")


def test_scales_of_another_shape_are_refused_by_name(tmp_path):
    source = checkpoint(tmp_path / "source", "Llama 2", "bfloat16")
    quantise_fp8(source, 32)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight_scale_inv"] = torch.ones(2, 2)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ModelDataError, match=r"layers\.2\.mlp\.up_proj.*do not fit"):
        prepare(source, tmp_path / "out")


def test_a_method_that_cannot_be_read_is_refused_with_its_name(tmp_path):
    source = checkpoint(tmp_path / "source")
    with_method(source, {"quant_method": "bitsandbytes", "bits": 4})
    with pytest.raises(UnsupportedModel, match=r"\(bitsandbytes\).*take the original bf16"):
        prepare(source, tmp_path / "out")
