"""Decoder layers by code of ours: transformers' mathematics, rounded where transformers rounds, and only where its code is known."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, OlmoConfig, PreTrainedModel, Qwen2Config, Qwen3Config
from transformers.models.llama import modeling_llama as llama
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from potatod import schemes
from potatod.worker import arithmetic, kernels, native
from potatod.worker.arithmetic import Arithmetic
from potatod.worker.attention import PackedAttention
from potatod.worker.banded import Banded, Piece, Scratch
from potatod.worker.machine_code import microkernel, steps_code
from potatod.worker.native import Product
from potatod.worker.native_layer import NativeLayer, Parts
from potatod.worker.selfcheck import Runner
from potatod.worker.steps import Listed, Listing, Op, StepsCode

pytestmark = pytest.mark.skipif(not native.runs_here(), reason="a processor without AVX2, or a torch without OpenMP")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
#: Of the largest: as far as a sum in another order, or another exponential, moves what is rounded twice: two units in the last place.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}
SMALL = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "llama with biases": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SMALL, sliding_window=20),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=32),
}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def code(dtype: torch.dtype, **large: int) -> StepsCode:
    return StepsCode(steps_code.compiled(name_of(dtype), **large), dtype)


class Taker:
    """Takes steps one after the other: by itself, or with the team of threads."""

    def __init__(self, threads: int) -> None:
        self._large = {"large": 1} if threads > 1 else {}

    def __call__(self, dtype: torch.dtype, rows: int, write: Callable[[Listing], object]) -> None:
        listing = Listing()
        write(listing)
        Listed(code(dtype, **self._large), listing).take(rows)


@pytest.fixture(params=[1, 3], ids=["alone", "by the team"])
def take(request: pytest.FixtureRequest) -> Iterator[Taker]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield Taker(request.param)
    torch.set_num_threads(before)


def near(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool((ours.float() - theirs.float()).abs().max() <= ROUNDING[dtype] * theirs.float().abs().max())


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestSteps:
    def test_norm(self, dtype, take):
        norm = LlamaRMSNorm(72, eps=1e-5).to(dtype)
        norm.weight.data = 1 + drawn(72, dtype=dtype, seed=2)
        x, out = drawn(5, 72, dtype=dtype), torch.empty(5, 72)
        at = {"weight": norm.weight.data_ptr(), "out": out.data_ptr(), "width": 72, "epsilon": 1e-5}
        take(dtype, 5, lambda listing: listing.step(Op.NORM, x.data_ptr(), **at))
        assert near(out, norm(x), dtype) and torch.equal(out, out.to(dtype).float())
        stored = torch.empty(5, 72, dtype=dtype)
        take(dtype, 5, lambda listing: listing.step(Op.NORM_STORED, x.data_ptr(), **at | {"out": stored.data_ptr()}))
        assert torch.equal(stored, out.to(dtype))

    def test_norm_of_every_head_in_place(self, dtype, take):
        norm = LlamaRMSNorm(16).to(dtype)
        x = drawn(3, 4, 16, dtype=dtype)
        expected = norm(x)
        take(dtype, 3, lambda listing: listing.step(
            Op.NORM_STORED, x.data_ptr(), weight=norm.weight.data_ptr(), out=x.data_ptr(), width=16, more=4, epsilon=norm.variance_epsilon
        ))  # fmt: skip
        assert near(x, expected, dtype)

    def test_turned_bit_for_bit(self, dtype, take):
        x, angles = drawn(7, 3, 32, dtype=dtype), drawn(7, 32, dtype=torch.float32, seed=1)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        expected, _ = apply_rotary_pos_emb(x[None].transpose(1, 2), x[None].transpose(1, 2), cos[None], sin[None])
        take(dtype, 7, lambda listing: listing.step(Op.TURN, x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out=x.data_ptr(), width=32, more=3))
        assert torch.equal(x, expected.transpose(1, 2)[0])

    def test_gate(self, dtype, take):
        x, other, out = 6 * drawn(3, 40, dtype=dtype), drawn(3, 40, dtype=dtype, seed=1), torch.empty(3, 40)
        x[0, :4] = torch.tensor([0.0, -200.0, 60000.0, -60000.0]).to(dtype)
        x[1, 0] = float("nan")
        take(dtype, 3, lambda listing: listing.step(Op.GATE, x.data_ptr(), other.data_ptr(), out=out.data_ptr(), width=40))
        stored = x.clone()
        take(dtype, 3, lambda listing: listing.step(Op.GATE_STORED, stored.data_ptr(), other.data_ptr(), out=stored.data_ptr(), width=40))
        torch.testing.assert_close(stored, out.to(dtype), rtol=0, atol=0, equal_nan=True)
        expected = functional.silu(x) * other
        torch.testing.assert_close(out.to(dtype), expected, rtol=ROUNDING[dtype], atol=1e-6, equal_nan=True)

    def test_added_and_widened_bit_for_bit(self, dtype, take):
        x, other, out, wide = (*(drawn(4, 24, dtype=dtype, seed=seed) for seed in (0, 1)), torch.empty(4, 24, dtype=dtype), torch.empty(4, 24))

        def write(listing: Listing) -> None:
            listing.step(Op.ADD, x.data_ptr(), other.data_ptr(), out=out.data_ptr(), width=24)
            listing.step(Op.WIDEN, out.data_ptr(), out=wide.data_ptr(), width=24)

        take(dtype, 4, write)
        assert torch.equal(out, x + other) and torch.equal(wide, (x + other).float())


def model_of(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.normal_(1.0, 0.1) if "norm" in name else parameter.normal_(0.0, 0.2)
    return model


def ours(dtype: torch.dtype, *schemes_: str) -> Arithmetic:
    """What the probe finds where torch's product is slow."""
    product = Product(microkernel.codes(name_of(dtype), schemes_ or ("raw",)), dtype)
    return dataclasses.replace(arithmetic.PLAIN, product=product, steps=code(dtype))


def runner_of(model: PreTrainedModel, found: Arithmetic, name: str = "invariant") -> Runner:
    return Runner(model, kernels.choose(name, "packed", model.config, torch.device("cpu"), PackedAttention(), found))


def taken(model: PreTrainedModel) -> list[str]:
    """How each layer was computed last."""
    forwards = [layer.forward for layer in model.model.layers]
    return [type(forward.program).__name__ if isinstance(forward, NativeLayer) else "" for forward in forwards]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("by", ["_ByOurProduct", "_ByItsLinears"])
@torch.inference_mode()
def test_a_model_gives_what_transformers_gives(by, family, dtype):
    model = model_of(CONFIGS[family], dtype)
    prompt = [3 + at * 7 % 60 for at in range(45)]
    expected = model(torch.tensor([prompt])).logits[0]
    found = ours(dtype) if by == "_ByOurProduct" else dataclasses.replace(ours(dtype), product=None)
    runner = runner_of(model, found)
    alone = runner.run([(runner.new_kv(), prompt)], len(prompt))[0]
    assert taken(model) == [by] * 3
    assert (alone - expected).abs().max() <= (1e-4 if dtype == torch.float32 else 0.05) * expected.abs().max()
    assert torch.equal(runner.chunked(prompt), alone), "a row depends on what else is computed"


@torch.inference_mode()
def test_matrices_stored_in_fewer_bytes():
    model = model_of(CONFIGS["qwen2"], torch.bfloat16)
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            piece = Piece("int8", schemes.get("int8").pack(module.weight), torch.bfloat16, module.weight.shape)
            module.weight.data.copy_(piece.values())
    prompt = list(range(3, 40))
    expected = model(torch.tensor([prompt])).logits[0]
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            halves = module.weight.data.split([24, module.weight.shape[0] - 24])  # in bands, as they come
            pieces = [Piece("int8", schemes.get("int8").pack(half), torch.bfloat16, half.shape) for half in halves]
            module._parameters["weight"] = Banded.of(pieces, Scratch())  # type: ignore[assignment]  # as the worker binds it
    runner = runner_of(model, ours(torch.bfloat16, "int8"))
    got = runner.run([(runner.new_kv(), prompt)], len(prompt))[0]
    assert taken(model) == ["_ByOurProduct"] * 3
    assert (got - expected).abs().max() <= 0.05 * expected.abs().max()


@torch.inference_mode()
def test_what_is_bound_anew_is_what_is_computed_with():
    model = model_of(CONFIGS["llama"], torch.float32)
    runner = runner_of(model, ours(torch.float32))
    before = runner.run([(runner.new_kv(), [5, 6, 7])], 3)[0]
    for module in model.model.layers.modules():
        module._parameters.update({name: nn.Parameter(value * 1.5) for name, value in module._parameters.items() if value is not None})
    after = runner.run([(runner.new_kv(), [5, 6, 7])], 3)[0]
    expected = model_of(CONFIGS["llama"], torch.float32)
    for parameter in expected.model.layers.parameters():
        parameter.mul_(1.5)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, expected(torch.tensor([[5, 6, 7]])).logits[0], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_weights_that_there_is_no_code_for_are_the_linear_layers_to_multiply_with():
    model = model_of(CONFIGS["llama"], torch.float32)
    prompt = list(range(3, 20))
    expected = model(torch.tensor([prompt])).logits[0]
    runner = runner_of(model, ours(torch.float32, "int8"))  # and they are raw
    got = runner.run([(runner.new_kv(), prompt)], len(prompt))[0]
    assert taken(model) == ["_ByItsLinears"] * 3
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("changed", [{"intermediate_size": 172}, {"intermediate_size": 170}, {"hidden_size": 60, "head_dim": 16}])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_widths_that_are_no_whole_vectors_are_transformers_to_compute(changed, rows):
    model = model_of(LlamaConfig(**SMALL | changed), torch.float32)
    prompt = [5, 6, 7][:rows]
    expected = model(torch.tensor([prompt])).logits[0]
    runner = runner_of(model, dataclasses.replace(ours(torch.float32), product=None), "fast")
    torch.testing.assert_close(runner.run([(runner.new_kv(), prompt)], rows)[0], expected, rtol=1e-4, atol=1e-4)
    assert taken(model) == ["NoneType"] * 3


@torch.inference_mode()
def test_angles_of_another_dtype_are_transformers_to_turn_by():
    model = model_of(CONFIGS["llama"], torch.bfloat16)
    rotary = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda x, position_ids: rotary(x.float(), position_ids)
    own = []
    for layer in model.model.layers:
        layer.forward = lambda hidden_states, *_, **__: own.append(1) or hidden_states  # bf16 times fp32 is fp32, which its products refuse
    runner = runner_of(model, ours(torch.bfloat16), "fast")
    runner.run([(runner.new_kv(), [5, 6, 7])], 3)
    assert own == [1] * 3


class _OtherMLP(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class _OtherNorm(LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + 1


def other_rotation(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return q, k


def _in_another_file(**names: Any) -> type:
    """Llama's attention, word for word, where some names mean something else."""
    forward = inspect.unwrap(llama.LlamaAttention.forward)
    return type("Other", (llama.LlamaAttention,), {"forward": FunctionType(forward.__code__, {**forward.__globals__, **names})})


@pytest.mark.parametrize("what", ["mlp", "norm", "activation", "linear", "rotation", "half", "head", "layer"])
def test_a_layer_that_differs_in_one_part_is_not_taken(what):
    config = LlamaConfig(**SMALL | ({"head_dim": 8} if what == "head" else {}) | ({"hidden_act": "gelu"} if what == "activation" else {}))
    layer: Any = model_of(config, torch.float32).model.layers[0]
    assert what in ("head", "activation") or Parts.of(layer) is not None
    if what == "mlp":
        layer.mlp.__class__ = _OtherMLP
    elif what == "norm":
        layer.post_attention_layernorm.__class__ = _OtherNorm
    elif what == "linear":
        layer.mlp.up_proj.__class__ = type("Other", (nn.Linear,), {"forward": lambda self, x: x})
    elif what == "rotation":
        layer.self_attn.__class__ = _in_another_file(apply_rotary_pos_emb=other_rotation)
    elif what == "half":
        rotation = inspect.unwrap(apply_rotary_pos_emb)
        other = FunctionType(rotation.__code__, {**rotation.__globals__, "rotate_half": lambda x: x})
        layer.self_attn.__class__ = _in_another_file(apply_rotary_pos_emb=other)
    elif what == "layer":
        layer.__class__ = type("Other", (type(layer),), {"forward": lambda self, hidden_states, **_: hidden_states})
    assert Parts.of(layer) is None


def test_another_familys_layer_is_not_taken():
    assert Parts.of(model_of(OlmoConfig(**SMALL), torch.float32).model.layers[0]) is None
