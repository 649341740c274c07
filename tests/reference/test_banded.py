"""A matrix in several places is a matrix: whatever is computed with it has the bits that it has with the whole."""

from __future__ import annotations

import pytest
import torch
from engine import Engine
from families import by_name
from torch.nn import functional

from potatod import model_folder
from potatod.plan import Plan
from potatod.worker import native
from potatod.worker.banded import Banded, Piece, Scratch
from potatod.worker.kernels import linear_by

from .test_families import PROMPT, expected_logits, expected_tokens, small_pool


def _matrix(dtype: torch.dtype) -> tuple[torch.Tensor, list[Piece]]:
    """(96, 64), and the same in three places."""
    whole = torch.randn(96, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    return whole, [Piece.of(rows.clone()) for rows in (whole[:32], whole[32:40], whole[40:])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_functions_that_need_the_whole_get_it(dtype, rows):
    whole, pieces = _matrix(dtype)
    banded = Banded.of(pieces, Scratch())
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.inference_mode():
        assert torch.equal(functional.linear(x, banded), functional.linear(x, whole))
        assert torch.equal(x @ banded.t(), x @ whole.t())
        assert torch.equal(banded[3:50], whole[3:50])
        assert torch.equal(functional.linear(x, weight=banded, bias=whole[:, 0]), functional.linear(x, whole, whole[:, 0]))


def test_what_it_says_of_itself_puts_nothing_together():
    whole, pieces = _matrix(torch.bfloat16)
    banded = Banded.of(pieces, Scratch()).requires_grad_()
    assert (banded.shape, banded.dtype, banded.dim(), banded.size(0)) == (whole.shape, whole.dtype, 2, 96)
    assert banded.requires_grad and banded._whole is None
    assert banded.device == whole.device


def test_memory_is_used_again_for_the_next_layer():
    scratch = Scratch()
    first = Banded.of(_matrix(torch.float32)[1], scratch)
    second = Banded.of(_matrix(torch.float32)[1], scratch)
    assert first.together().data_ptr() == first.together().data_ptr() != second.together().data_ptr()
    scratch.begin()
    assert Banded.of(_matrix(torch.float32)[1], scratch).together().data_ptr() == first._whole.data_ptr()


@pytest.mark.skipif(not native.runs_here(), reason="this processor does not run the code")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_our_own_product_multiplies_piece_by_piece_with_the_same_bits(dtype, rows):
    from potatod.worker.machine_code import microkernel

    product = native.Product(microkernel.codes(dtype, ["raw"]), getattr(torch, dtype))
    whole, pieces = _matrix(product.dtype)
    banded = Banded.of(pieces, Scratch())
    x = torch.randn(1, rows, 64, generator=torch.Generator().manual_seed(3)).to(product.dtype)
    for bias in (None, torch.randn(96).to(product.dtype)):
        assert torch.equal(*(linear_by(product.attempt, x, weight, bias) for weight in (banded, whole)))
    assert banded._whole is None


def _in_part(plan: Plan, folder) -> int:
    """Matrices of which some bands are resident and others not."""
    homes: dict[tuple[int, str], set[str]] = {}
    for part, (shard, stored) in zip(plan.parts, _stored(folder), strict=True):
        if shard.kind == "layer":
            homes.setdefault((part.stop, stored.tensors[0].name), set()).add(part.home)
    return sum(len(each) > 1 for each in homes.values())


def _stored(folder):
    shards = model_folder.load(folder).shards
    layers = sorted((shard for shard in shards if shard.kind == "layer"), key=lambda shard: shard.layer)
    return [(shard, part) for shard in [*layers, *(s for s in shards if s.kind == "head")] for part in shard.parts]


@pytest.mark.parametrize("name", ["Llama 3", "Qwen2", "Gemma 3", "GPT-2", "Falcon", "Mamba"])
def test_matrices_that_are_resident_in_part_have_the_bits_of_transformers(tiny, name):
    family = by_name(name)
    made = tiny(family, torch.float32)
    least = small_pool(made.banded)
    total = sum(part.length for _, part in _stored(made.banded))
    in_part = 0
    for pool in (least, least + (total - least) // 3, least + (total - least) // 2):
        with Engine(made.banded, pool, kernels="reference", batching=family.batching) as engine:
            in_part += _in_part(engine.plan, made.banded)
            assert torch.equal(engine.sweep({1: PROMPT[:31]})[1], expected_logits(made.model, PROMPT[:31]))
            assert engine.greedy(2, PROMPT[:9], 4) == expected_tokens(made.model, PROMPT[:9], 4)
    assert in_part > 0, "no plan had one"
