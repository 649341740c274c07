"""Exactness, family by family: a pool of at most three layers, everything else streamed.

Two claims. *reference*: one sequence, unchunked, has transformers' bits. *invariant*: whatever shares the sweep, however the prompt is cut,
and after a restart, a sequence has the bits it has alone, and the tokens that transformers gives.
"""

from __future__ import annotations

import random

import pytest
import torch
from engine import Engine
from families import ALL, FAMILIES, VOCABULARY, Family

from potatod import model_folder
from potatod.plan import smallest_pool, sweep_parts
from potatod.worker.attention import TILES

LENGTHS = (1, 5, 31, 64, 67)
GREEDY_TOKENS = 16
#: Tokens of each text before the engine ends, and after: of the prompt's last row, and of a row of one token.
BEFORE = AFTER = 2
PROMPT = torch.randint(3, VOCABULARY, (100,), generator=torch.Generator().manual_seed(1)).tolist()

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def families(turn: int) -> pytest.MarkDecorator:
    """Every family, in one of the dtypes by turns: two claims with other turns have both. Each claim in both is left to `make test-all`."""
    return pytest.mark.parametrize(("family", "dtype"), [
        pytest.param(family, dtype, id=f"{name}-{family.name}")
        for at, (name, dtype) in enumerate(DTYPES.items())
        for number, family in enumerate(FAMILIES)
        if ALL or (number + turn) % 2 == at
    ])  # fmt: skip


def small_pool(folder) -> int:
    """Bytes for three of the largest layers at most, and not all of the model."""
    lengths = [(stop, part.length) for stop, part in sweep_parts(model_folder.load(folder))]
    layers = [sum(n for s, n in lengths if s == stop) for stop in range(6)]
    least = smallest_pool(lengths)
    assert least <= 3 * max(layers), "the smallest pool is larger than three layers"
    return least


@torch.inference_mode()
def expected_logits(model, prompt: list[int]) -> torch.Tensor:
    """transformers' logits of the last row."""
    return model(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1].float()


@torch.inference_mode()
def expected_tokens(model, prompt: list[int], count: int) -> list[int]:
    """transformers' greedy continuation."""
    out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


@families(0)
def test_one_sequence_has_the_bits_of_transformers(tiny, family: Family, dtype):
    made = tiny(family, dtype)
    with Engine(made.folder, small_pool(made.folder), kernels="reference", batching=family.batching) as engine:
        assert engine.plan.streamed_bytes > 0
        for number, length in enumerate(LENGTHS):
            logits = expected_logits(made.model, PROMPT[:length])
            got = engine.sweep({number: PROMPT[:length]})[number]
            assert torch.equal(got, logits), f"logits after {length} tokens differ by {(got - logits).abs().max():.2g}"
        prompt = PROMPT[: LENGTHS[-1]]
        assert engine.greedy(99, prompt, GREEDY_TOKENS) == expected_tokens(made.model, prompt, GREEDY_TOKENS)


@families(1)
def test_a_sequence_has_the_same_bits_alone_packed_chunked_and_restarted(tiny, family: Family, dtype):
    made = tiny(family, dtype)
    short = family.invariant_batching == "tokens"  # a pass for each of them: by construction the same, and slow
    prompts = {1: PROMPT[: 21 if short else 67], 2: PROMPT[10 : 19 if short else 41], 3: PROMPT[:5], 4: PROMPT[33 : 51 if short else 100]}
    engine_as = {"batching": family.invariant_batching, "tile": TILES[len(family.name) % 2]}
    with Engine(made.banded, small_pool(made.banded), **engine_as) as engine:
        alone = {n: _alone(engine, n, prompt, BEFORE + AFTER) for n, prompt in prompts.items()}
    shuffled = random.Random(family.name)
    with Engine(made.banded, small_pool(made.banded), **engine_as) as engine:
        first = _together(engine, prompts, BEFORE, shuffled)
    with Engine(made.banded, small_pool(made.banded), **engine_as) as engine:  # a new engine: all KV is gone
        resumed = {n: prompt + [t for t, _ in first[n]] for n, prompt in prompts.items()}
        second = _together(engine, resumed, AFTER, shuffled)
    for n in prompts:
        for (token, logits), (token_alone, logits_alone) in zip(first[n] + second[n], alone[n], strict=True):
            assert token == token_alone
            assert torch.equal(logits, logits_alone), f"sequence {n}: bits depend on what else is in the sweep"
    assert [t for t, _ in alone[1]] == expected_tokens(made.model, prompts[1], BEFORE + AFTER)


def _alone(engine: Engine, sequence: int, prompt: list[int], count: int) -> list[tuple[int, torch.Tensor]]:
    out = []
    tokens = prompt
    for _ in range(count):
        logits = engine.sweep({sequence: tokens})[sequence]
        out.append((int(logits.argmax()), logits))
        tokens = [out[-1][0]]
    engine.drop(sequence)
    return out


def _together(engine: Engine, prompts: dict[int, list[int]], count: int, shuffled: random.Random):
    """All at once: random chunks of prompts beside decode steps, sequences joining one after the other."""
    left = {n: list(prompt) for n, prompt in prompts.items()}
    out: dict[int, list[tuple[int, torch.Tensor]]] = {n: [] for n in prompts}
    joined = 0
    while any(len(made) < count for made in out.values()):
        joined = min(len(prompts), joined + 1)
        chunks = {}
        for n in list(prompts)[:joined]:
            if len(out[n]) < count:
                size = shuffled.choice([1, 3, 8, 20, 50])
                chunks[n], left[n] = left[n][:size], left[n][size:]
        known = {n: engine.held(n) + len(chunk) + len(left[n]) for n, chunk in chunks.items()}
        for n, logits in engine.sweep(chunks, known=known).items():
            if not left[n] and len(out[n]) < count:  # the prompt is complete: this row is a token
                out[n].append((int(logits.argmax()), logits))
                left[n] = [out[n][-1][0]]
    return out


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 16])
def test_bands_of_a_head_of_real_size_have_the_bits_of_the_whole(dtype, rows):
    """What lets the head stream in bands. (At widths of 64, which no real model has, one bit in half a million differs.)"""
    generator = torch.Generator().manual_seed(rows)
    weight = (torch.randn(16384, 576, generator=generator) * 0.02).to(dtype)
    for _ in range(10):
        x = torch.randn(1, rows, 576, generator=generator).to(dtype)
        bands = torch.cat([torch.nn.functional.linear(x, weight[at : at + 4096]) for at in range(0, 16384, 4096)], -1)
        assert torch.equal(bands, torch.nn.functional.linear(x, weight))
