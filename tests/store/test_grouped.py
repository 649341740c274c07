"""Checkpoints of integers in groups: synthetic files of the real layouts, against arithmetic of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import checkpoint, tensors_of
from safetensors.torch import load_file, save_file

from potatod import model_folder, schemes
from potatod.errors import ModelDataError, PotatoError, UnsupportedModel
from potatod.store.checkpoint import open_folder
from potatod.store.prepare import prepare
from potatod.store.quantised import dequantised
from potatod.worker.weights import read_parts

#: Where AWQ puts eight outputs into a word.
AWQ = [0, 2, 4, 6, 1, 3, 5, 7]
Tensors = dict[str, torch.Tensor]


def packed(integers: torch.Tensor, bits: int, order: list[int] | None = None) -> torch.Tensor:
    """(rows, integers) → (rows, words) int32, one integer after the other."""
    count = 32 // bits
    words = torch.zeros(integers.shape[0], -(-integers.shape[1] // count), dtype=torch.int64)
    for word in range(words.shape[1]):
        for place in range(count):
            column = word * count + (order[place] if order else place)
            if column < integers.shape[1]:
                words[:, word] |= (integers[:, column].long() & (1 << bits) - 1) << bits * place
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def drawn(shape: torch.Size, bits: int, group: int, seed: int, *, zeros: int | None, scale_dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """(out, in) integers, (out, groups) scales and zeros; ``zeros``: the same for all, any (None), or small ones (0)."""
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = shape
    groups = -(-inputs // group)
    integers = torch.randint(0, 1 << bits, (outputs, inputs), generator=generator)
    scales = (torch.rand(outputs, groups, generator=generator) * 0.01 + 0.001).to(scale_dtype)
    found = torch.full((outputs, groups), zeros or 0)
    if not zeros:
        found = torch.randint(0, 8 if zeros == 0 else 1 << bits, (outputs, groups), generator=generator)
    return integers, scales, found


def meaning(integers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, group_of: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return ((integers - zeros[:, group_of]).double() * scales.double()[:, group_of]).to(dtype)


def quantise(
    source: Path, kind: str, method: dict[str, Any], dtype: torch.dtype, *, bits: int = 4, group: int = 32, zeros: int | None, order: bool = False
) -> Tensors:  # fmt: skip
    """Stores every matrix of the layers so; returns what they stand for."""
    stored, meant = {}, {}
    scale_dtype = torch.float16 if kind in ("gptq", "awq") else torch.bfloat16
    for number, (name, value) in enumerate(load_file(source / "model.safetensors").items()):
        if ".layers." not in name or value.ndim != 2:
            stored[name] = meant[name] = value
            continue
        stem, inputs = name.removesuffix(".weight"), value.shape[1]
        own_group = inputs if group < 0 else group
        integers, scales, offsets = drawn(value.shape, bits, own_group, number, zeros=zeros, scale_dtype=scale_dtype)
        group_of = torch.arange(inputs) // own_group
        if order:
            group_of = group_of[torch.randperm(inputs, generator=torch.Generator().manual_seed(number))]
        meant[name] = meaning(integers, scales, offsets, group_of, dtype)
        if kind == "gptq":
            fewer = 0 if method.get("checkpoint_format") == "gptq_v2" else 1
            stored |= {
                f"{stem}.qweight": packed(integers, bits).t().contiguous(),
                f"{stem}.qzeros": packed((offsets - fewer).t(), bits), f"{stem}.scales": scales.t().contiguous(), f"{stem}.g_idx": group_of.int(),
            }  # fmt: skip
        elif kind == "awq":
            stored |= {
                f"{stem}.qweight": packed(integers.t(), 4, AWQ), f"{stem}.qzeros": packed(offsets.t(), 4, AWQ),
                f"{stem}.scales": scales.t().contiguous(),
            }  # fmt: skip
        elif kind == "packed":
            stored |= {
                f"{stem}.weight_packed": packed(integers, bits), f"{stem}.weight_scale": scales, f"{stem}.weight_shape": torch.tensor(value.shape),
            }  # fmt: skip
            if not zeros:
                stored[f"{stem}.weight_zero_point"] = packed(offsets.t(), bits).t().contiguous()
        else:
            stored |= {name: (integers - 128).to(torch.int8), f"{stem}.weight_scale": scales, f"{stem}.input_scale": torch.ones(1)}
    save_file({name: value.contiguous() for name, value in stored.items()}, source / "model.safetensors")
    page = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(page | {"quantization_config": method}))
    return meant


def compressed(bits: int, form: str = "pack-quantized") -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {"weights": {"num_bits": bits, "type": "int"}}}}


#: name: (kind, method, how the integers are, the scheme that keeps them)
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "GPTQ, symmetric": ("gptq", {"quant_method": "gptq", "bits": 4}, {"zeros": 8}, "q4_0"),
    "GPTQ, a group for all": ("gptq", {"quant_method": "gptq", "bits": 4, "group_size": -1}, {"zeros": 8, "group": -1}, "q4_0"),
    "GPTQ v2, 8 bits": ("gptq", {"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2"}, {"zeros": 128, "bits": 8}, "q8_0"),
    "GPTQ, zeros": ("gptq", {"quant_method": "gptq", "bits": 4}, {"zeros": None}, "raw"),
    "GPTQ, columns by their activations": ("gptq", {"quant_method": "gptq", "bits": 4, "desc_act": True}, {"zeros": 8, "order": True}, "raw"),
    "GPTQ, 2 bits": ("gptq", {"quant_method": "gptq", "bits": 2}, {"zeros": 2, "bits": 2}, "raw"),
    "AWQ": ("awq", {"quant_method": "awq", "bits": 4, "version": "gemm"}, {"zeros": None}, "raw"),
    "AWQ, symmetric": ("awq", {"quant_method": "awq", "bits": 4}, {"zeros": 8}, "q4_0"),
    "compressed, symmetric": ("packed", compressed(4), {"zeros": 8}, "q4_0"),
    "compressed, groups of 16": ("packed", compressed(4), {"zeros": 8, "group": 16}, "raw"),
    "compressed, zeros": ("packed", compressed(4), {"zeros": None}, "raw"),
    "compressed, zeros whose products have few bits": ("packed", compressed(4), {"zeros": 0}, "q4_1"),
    "compressed, 8 bits": ("packed", compressed(8), {"zeros": 128, "bits": 8}, "q8_0"),
    "compressed, int8 by rows": ("int8", compressed(8, "int-quantized"), {"zeros": 128, "bits": 8, "group": -1}, "q8_0"),
}


def made(tmp_path: Path, name: str) -> tuple[Path, Tensors]:
    kind, method, how, _ = KINDS[name]
    dtype = "float16" if kind in ("gptq", "awq") else "bfloat16"
    source = checkpoint(tmp_path / "source", "Llama 3", dtype, hidden_size=64, intermediate_size=96, num_key_value_heads=4)
    return source, quantise(source, kind, method, getattr(torch, dtype), **how)


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_the_integers_less_their_zeros_times_their_scales(tmp_path, name):
    source, meant = made(tmp_path, name)
    prepare(source, tmp_path / "out")
    found = tensors_of(tmp_path / "out")
    assert not [name for name, value in meant.items() if name in found and not torch.equal(found[name], value)]
    assert sum(".layers." in name for name in found) == sum(".layers." in name for name in meant)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("name", KINDS)
def test_and_are_kept_as_they_are_where_a_scheme_holds_exactly_that(tmp_path, name):
    source, meant = made(tmp_path, name)
    said: list[str] = []
    prepare(source, tmp_path / "out", dtype="keep", notice=said.append)
    manifest = model_folder.load(tmp_path / "out")
    of_layers = [(shard.layer, part) for shard in manifest.shards if shard.kind == "layer" for part in shard.parts]
    stored = {tensor.scheme for _, part in of_layers for tensor in part.tensors if len(tensor.shape) == 2}
    assert stored == {KINDS[name][3]}
    assert any("no form that can be kept" in sentence for sentence in said) or stored != {"raw"}
    for layer, part in of_layers:
        for own, value in read_parts(tmp_path / "out", [part]):
            expected = meant[f"model.layers.{layer}.{own}"]
            values = value.pieces[0].values() if hasattr(value, "pieces") else value
            assert torch.equal(values, expected), own


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"quant_method": "gptq", "bits": 3}, '"bits": 3'),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
        (compressed(4) | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24"),
        (compressed(4) | {"transform_config": {"config_groups": {"R4": {}}}}, "transform_config"),
        (compressed(3), "num_bits"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:head": {}}}, "dynamic"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"bits": 4}, "without a name"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, method, said):
    source = checkpoint(tmp_path / "source", "Llama 3", "float16")
    page = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(page | {"quantization_config": method}))
    with pytest.raises(UnsupportedModel, match=said):
        prepare(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["GPTQ, symmetric", "AWQ", "compressed, zeros", "compressed, int8 by rows"])
def test_a_part_that_is_missing_or_of_another_shape_is_said(tmp_path, name):
    source, _ = made(tmp_path, name)
    whole = load_file(source / "model.safetensors")
    ends = sorted({key.rpartition("q_proj")[2] for key in whole if ".0.self_attn.q_proj." in key} - {".input_scale", ".g_idx"})
    for end in ends:
        key = next(key for key in whole if key.endswith(f"0.self_attn.q_proj{end}"))
        save_file(whole | {key: torch.cat([whole[key], whole[key]]).contiguous()}, source / "model.safetensors")
        with pytest.raises(ModelDataError, match="q_proj"):
            prepare(source, tmp_path / f"out{end}")
    for end in set(ends) - {".weight_zero_point", ".weight_scale"}:
        save_file({key: value for key, value in whole.items() if not key.endswith(f"q_proj{end}")}, source / "model.safetensors")
        with pytest.raises(ModelDataError, match="q_proj"):
            prepare(source, tmp_path / f"without{end}")


@pytest.mark.parametrize("name", ["GPTQ, symmetric", "AWQ", "compressed, zeros", "compressed, int8 by rows"])
@pytest.mark.parametrize(
    "bad", [torch.zeros(()), torch.zeros(0, 4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32), torch.zeros(2, 2, 2, dtype=torch.int8),
            torch.zeros(8, 8, dtype=torch.uint8), torch.ones(3, 5, dtype=torch.float16), torch.ones(128, 0, dtype=torch.bfloat16)],
    ids=lambda bad: f"{list(bad.shape)} {bad.dtype}",
)  # fmt: skip
def test_whatever_a_part_is_it_is_said_in_a_sentence(tmp_path, name, bad):
    source, _ = made(tmp_path, name)
    whole = load_file(source / "model.safetensors")
    for key in [key for key in whole if ".0.self_attn.q_proj." in key and not key.endswith(".input_scale")]:
        if bad.dim() == 0 and key.endswith("_scale"):
            continue  # one for all is a scale
        if whole[key].shape != bad.shape or whole[key].dtype != bad.dtype:
            save_file(whole | {key: bad}, source / "model.safetensors")
            with pytest.raises(PotatoError, match="q_proj"):
                prepare(source, tmp_path / f"out{key.rpartition('.')[2]}")


def test_a_group_that_is_not_there_is_said(tmp_path):
    source, _ = made(tmp_path, "GPTQ, symmetric")
    whole = load_file(source / "model.safetensors")
    key = next(key for key in whole if key.endswith("q_proj.g_idx"))
    save_file(whole | {key: whole[key] + 1}, source / "model.safetensors")
    with pytest.raises(ModelDataError, match="q_proj"):
        prepare(source, tmp_path / "out")


def test_float8_with_a_scale_for_each_row(tmp_path):
    source = checkpoint(tmp_path / "source", "Llama 3", "bfloat16")
    stored, meant = {}, {}
    for number, (name, value) in enumerate(load_file(source / "model.safetensors").items()):
        stored[name] = meant[name] = value
        if ".layers." in name and value.ndim == 2:
            scales = torch.rand(len(value) if number % 2 else 1, 1) + 0.01
            stored[name] = (value.float() / scales).clamp(-440, 440).to(torch.float8_e4m3fn)
            stored[f"{name}_scale"] = scales
            meant[name] = (stored[name].float() * scales).bfloat16()
    save_file(stored, source / "model.safetensors")
    page = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(page | {"quantization_config": compressed(8, "float-quantized")}))
    prepare(source, tmp_path / "out")
    found = tensors_of(tmp_path / "out")
    assert not [name for name, value in meant.items() if name in found and not torch.equal(found[name], value)]


def test_float8_in_blocks_is_not_taken_for_rows(tmp_path):
    """Of a matrix with as many blocks as rows, too."""
    source = checkpoint(tmp_path / "source", "Llama 3", "bfloat16", hidden_size=64, intermediate_size=96)
    whole = load_file(source / "model.safetensors")
    name = next(name for name in whole if name.endswith("0.mlp.down_proj.weight"))
    whole |= {name: whole[name].to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(2, 32)}
    save_file(whole, source / "model.safetensors")
    page = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(page | {"quantization_config": compressed(8, "float-quantized")}))
    with pytest.raises(UnsupportedModel, match="of blocks"):
        prepare(source, tmp_path / "out")


@pytest.mark.parametrize(("kind", "columns"), [("packed", 96), ("awq", 96)])
def test_a_last_group_may_be_shorter_where_the_config_says_how_long_they_are(tmp_path, kind, columns):
    method = {"quant_method": "awq", "bits": 4, "group_size": 64}
    if kind == "packed":
        method = compressed(4)
        method["config_groups"]["group_0"]["weights"]["group_size"] = 64
    source = checkpoint(tmp_path / "source", "Llama 3", "float16", hidden_size=64, intermediate_size=columns)
    meant = quantise(source, kind, method, torch.float16, group=64, zeros=None)
    prepare(source, tmp_path / "out")
    found = tensors_of(tmp_path / "out")
    assert not [name for name, value in meant.items() if name in found and not torch.equal(found[name], value)]


def test_rows_are_those_of_the_whole(tmp_path):
    for kind, method in (("gptq", KINDS["GPTQ, zeros"][1]), ("awq", KINDS["AWQ"][1]), ("packed", compressed(4))):
        source = checkpoint(tmp_path / kind, "Llama 3", "float16", hidden_size=64, intermediate_size=96)
        quantise(source, kind, method, torch.float16, zeros=None)
        for name, lazy in dequantised(open_folder(source), method, torch.float16).items():
            if name.endswith("up_proj.weight"):
                assert torch.equal(torch.cat([lazy.rows(first, min(first + 7, 96)) for first in range(0, 96, 7)]), lazy[...])


def test_every_scheme_that_keeps_them_is_one_of_ggufs():
    assert {kind[3] for kind in KINDS.values()} - {"raw"} <= set(schemes.GGML)
