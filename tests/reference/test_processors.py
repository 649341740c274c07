"""Our processors against those that transformers' ``generate`` would apply, in the order in which it applies them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation import logits_process as theirs

from potatod.sampling import processors as ours
from potatod.sampling.params import Sampling, of_model

Scores = NDArray[np.float32]
VOCABULARY = 1000
CONTEXT = [1, 5, 5, 999, 17, 400, 1]


def _random(seed: int, spread: float = 4.0) -> Scores:
    return np.random.default_rng(seed).normal(0, spread, VOCABULARY).astype(np.float32)


def _tied(seed: int) -> Scores:
    """Logits as a bf16 or quantised head gives them: few different values, so ties at every border."""
    return np.round(_random(seed, 2.0)).astype(np.float32)


def _theirs(processor: Callable[..., torch.Tensor], scores: Scores) -> Scores:
    result: Scores = processor(torch.tensor([CONTEXT]), torch.from_numpy(scores.copy())[None])[0].numpy()
    return result


def _same(mine: Scores, other: Scores) -> None:
    assert mine.dtype == np.float32
    np.testing.assert_array_equal(np.isfinite(mine), np.isfinite(other), "the sets of kept tokens differ")
    np.testing.assert_allclose(mine, other, rtol=1e-6)


def _same_up_to_equals(mine: Scores, other: Scores, before: Scores) -> None:
    """Where top-p cuts among equal logits torch's unstable sort leaves open which stay: as many do, and everything
    that is better or worse is as in transformers."""
    np.testing.assert_allclose(np.sort(mine), np.sort(other), rtol=1e-6)
    parted = np.isfinite(mine) != np.isfinite(other)
    assert np.unique(before[parted]).size <= 1, "tokens that are not equal were treated differently"


SINGLE = [
    *[(lambda s, v=v: ours.temperature(s, v), theirs.TemperatureLogitsWarper(v)) for v in (0.01, 0.7, 1.7, 100.0)],
    *[(lambda s, k=k: ours.top_k(s, k), theirs.TopKLogitsWarper(k)) for k in (1, 2, 40, 999, 1000, 5000)],
    *[(lambda s, p=p: ours.top_p(s, p), theirs.TopPLogitsWarper(p)) for p in (1e-6, 0.1, 0.5, 0.9, 0.95, 0.999)],
    *[(lambda s, p=p: ours.min_p(s, p), theirs.MinPLogitsWarper(p)) for p in (1e-6, 0.02, 0.1, 0.5, 1.0)],
    *[
        (lambda s, r=r: ours.repetition_penalty(s, CONTEXT, r), theirs.RepetitionPenaltyLogitsProcessor(r))
        for r in (0.001, 0.8, 1.05, 1.3, 1000.0)
    ],
]


@pytest.mark.parametrize("make", [_random, _tied])
@pytest.mark.parametrize("number", range(len(SINGLE)))
def test_each_processor_keeps_the_same_tokens_with_the_same_scores(number: int, make: Callable[[int], Scores]) -> None:
    mine, other = SINGLE[number]
    for seed in range(20):
        scores = make(seed)
        if make is _tied and isinstance(other, theirs.TopPLogitsWarper):
            _same_up_to_equals(mine(scores), _theirs(other, scores), scores)
        else:
            _same(mine(scores), _theirs(other, scores))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("spread", [0.1, 2.0, 4.0])
def test_top_p_over_a_large_vocabulary_keeps_the_same_tokens(p: float, spread: float) -> None:
    """Flat and steep: both where sorting the best tokens is enough and where all must be sorted."""
    for seed in range(3):
        scores = np.random.default_rng(seed).normal(0, spread, 50_000).astype(np.float32)
        mine, other = ours.top_p(scores, p), _theirs(theirs.TopPLogitsWarper(p), scores)
        assert abs(np.isfinite(mine).sum() - np.isfinite(other).sum()) <= 1, "one token at the border is rounding"
        both = np.isfinite(mine) & np.isfinite(other)
        assert np.isfinite(mine).sum() - both.sum() <= 1
        np.testing.assert_array_equal(mine[both], scores[both])


def test_equal_logits_everywhere_are_cut_to_as_many_as_in_transformers() -> None:
    scores = np.zeros(VOCABULARY, dtype=np.float32)
    for p in (0.1, 0.3, 0.7, 0.9):
        _same_up_to_equals(ours.top_p(scores, p), _theirs(theirs.TopPLogitsWarper(p), scores), scores)


def test_ids_beyond_the_logits_are_as_harmless_as_in_transformers() -> None:
    scores = _random(0)
    beyond = torch.tensor([[*CONTEXT, VOCABULARY, VOCABULARY + 7]])
    processed = theirs.RepetitionPenaltyLogitsProcessor(1.3)(beyond, torch.from_numpy(scores.copy())[None])[0].numpy()
    _same(ours.repetition_penalty(scores, beyond[0].tolist(), 1.3), processed)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=0
    )
    return LlamaForCausalLM(config)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 1 << 30), st.booleans(), st.sampled_from([0.0, 0.3, 0.8, 1.0, 1.4]),
    st.sampled_from([0, 1, 5, 50, 2000]), st.sampled_from([0.2, 0.9, 0.95, 1.0]), st.sampled_from([0.0, 0.05, 0.3]),
    st.sampled_from([1.0, 0.9, 1.1]),
)  # fmt: skip
def test_whole_pipelines_equal_what_generate_would_apply(
    model: LlamaForCausalLM,
    seed: int,
    tied: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
) -> None:
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    config = GenerationConfig(
        do_sample=not sampling.greedy, temperature=temperature or None, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=penalty,
    )  # fmt: skip
    pipeline = model._get_logits_processor(config, input_ids_seq_length=len(CONTEXT))
    scores = _tied(seed) if tied else _random(seed)
    mine, other = ours.process(scores, CONTEXT, sampling), _theirs(pipeline, scores)
    if tied and top_p < 1:
        penalised = ours.process(scores, CONTEXT, Sampling(repetition_penalty=penalty))
        _same_up_to_equals(mine, other, penalised)
    else:
        _same(mine, other)


def test_a_sampling_models_missing_values_are_those_of_transformers() -> None:
    defaults = GenerationConfig._get_default_generation_params()
    sampling = of_model({"do_sample": True})
    for name in ("temperature", "top_k", "top_p", "repetition_penalty"):
        assert getattr(sampling, name) == defaults[name], name
    assert defaults.get("min_p") is None
    assert sampling.min_p == 0
