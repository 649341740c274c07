"""Grouped attention beside the families' own: the same mathematics, keys and values not repeated."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from potatod.worker import attention
from potatod.worker.attention import as_family, grouped


def eager_of(family: str):
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}").eager_attention_forward


def drawn(heads: int, kv_heads: int, count: int, keys: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, heads, count, 32, generator=generator).to(dtype)
    key, value = (torch.randn(1, kv_heads, keys, 32, generator=generator).to(dtype) for _ in range(2))
    late = torch.arange(keys)[None, :] > torch.arange(keys - count, keys)[:, None]
    mask = torch.zeros(1, 1, count, keys, dtype=dtype).masked_fill(late, torch.finfo(dtype).min)
    module = SimpleNamespace(num_key_value_groups=heads // kv_heads, training=False)
    return module, query, key, value, mask


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (12, 2), (8, 1)])
@pytest.mark.parametrize("masked", [True, False])
def test_in_fp32_it_is_what_llama_computes_but_for_rounding(heads, kv_heads, masked):
    module, query, key, value, mask = drawn(heads, kv_heads, 5, 48, torch.float32)
    arguments = (eager_of("llama"), module, query, key, value, mask if masked else None, {"scaling": 0.2})
    assert torch.allclose(grouped(*arguments), as_family(*arguments), atol=1e-6)


def test_in_bf16_it_is_no_further_from_the_truth_than_llama():
    module, query, key, value, mask = drawn(12, 2, 7, 64, torch.bfloat16)
    arguments = (eager_of("llama"), module, query, key, value, mask, {"scaling": 0.2})
    truth = as_family(eager_of("llama"), module, query.float(), key.float(), value.float(), mask.float(), {"scaling": 0.2})
    ours, theirs = ((form(*arguments).float() - truth).abs().mean() for form in (grouped, as_family))
    assert grouped(*arguments).dtype == torch.bfloat16
    assert ours <= 1.05 * theirs


@pytest.mark.parametrize(
    ("family", "alike"), [("mistral", True), ("qwen2", True), ("qwen3", True), ("mixtral", True), ("gemma2", False), ("gpt_oss", False)]
)
def test_families_that_attend_otherwise_keep_their_own(family, alike):
    assert attention._attends_as_llama(eager_of(family)) is alike


def test_keys_of_fewer_tokens_than_are_stored_need_no_copy_of_their_own():
    module, query, key, value, mask = drawn(12, 2, 5, 48, torch.float32)
    stored = torch.zeros(2, 1, 2, 128, 32)
    stored[0, :, :, :48], stored[1, :, :, :48] = key, value
    part = grouped(eager_of("llama"), module, query, stored[0][:, :, :48], stored[1][:, :, :48], mask, {"scaling": 0.2})
    assert torch.equal(part, grouped(eager_of("llama"), module, query, key, value, mask, {"scaling": 0.2}))
