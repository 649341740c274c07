"""Tokens are drawn from the softmax of the processed scores, and nothing but their arguments decides which."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from potatod.errors import InternalError
from potatod.sampling.params import Sampling
from potatod.sampling.processors import process
from potatod.sampling.sampler import needs_logits, sample


def _logits(size: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def test_greedy_takes_the_first_of_the_likeliest_tokens() -> None:
    logits = np.array([0, 5, 1, 5], dtype=np.float32)
    assert sample(logits, [], Sampling(), 0, 0) == 1


def test_greedy_looks_at_scores_after_the_repetition_penalty() -> None:
    logits = np.array([4, 5, -1], dtype=np.float32)
    assert sample(logits, [1], Sampling(repetition_penalty=2.0), 0, 1) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=8),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.05, repetition_penalty=1.3),
    ],
)
def test_frequencies_over_positions_pass_a_chi_square_test(sampling: Sampling) -> None:
    """20,000 draws; the statistic stays below its mean and five standard deviations. Seeded, so it is certain."""
    logits, context, draws = _logits(24), [3, 5, 5], 20_000
    scores = process(logits, context, sampling).astype(np.float64)
    probabilities = np.exp(scores - scores.max())
    expected = draws * probabilities / probabilities.sum()
    counts = np.bincount(
        [sample(logits, context, sampling, 0, position) for position in range(draws)], minlength=logits.size
    )
    possible = expected > 0
    assert not counts[~possible].any()
    common = possible & (expected >= 5)
    observed = np.append(counts[common], counts[~common].sum())
    predicted = np.append(expected[common], expected[~common].sum())
    seen = predicted > 0
    statistic = ((observed[seen] - predicted[seen]) ** 2 / predicted[seen]).sum()
    freedom = seen.sum() - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def test_choices_at_one_position_are_independent_draws() -> None:
    """Over 4,000 choices two equally likely tokens come about equally often, and one choice does not tell the next."""
    logits = np.zeros(2, dtype=np.float32)
    drawn = np.array([sample(logits, [], Sampling(temperature=1.0, seed=7), choice, 0) for choice in range(4000)])
    assert abs(drawn.mean() - 0.5) < 0.04
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.08


@given(st.integers(0, (1 << 63) - 1), st.integers(0, 3), st.integers(0, 100_000))
def test_the_same_arguments_give_the_same_token(seed: int, choice: int, position: int) -> None:
    logits, sampling = _logits(50), Sampling(temperature=1.0, seed=seed)
    assert sample(logits, [], sampling, choice, position) == sample(logits.copy(), [], sampling, choice, position)


@given(st.integers(0, 1000), st.floats(0.01, 5), st.integers(0, 60), st.floats(0.01, 1), st.floats(0, 1))
def test_a_token_that_the_processors_removed_is_never_drawn(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature, top_k, top_p, min_p, 1.2, seed=seed)
    logits, context = _logits(50, seed), list(range(10))
    token = sample(logits, context, sampling, 0, len(context))
    assert np.isfinite(process(logits, context, sampling)[token])


def test_logits_are_never_written_into() -> None:
    logits = _logits(50)
    logits.flags.writeable = False
    sample(logits, [1, 2], Sampling(0.5, 10, 0.9, 0.01, 1.1), 0, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
def test_logits_that_are_no_numbers_give_an_error_and_no_token(value: float, sampling: Sampling) -> None:
    logits = _logits(50)
    logits[17] = value
    with pytest.raises(InternalError, match="no numbers"):
        sample(logits, [], sampling, 0, 0)


#: Of each field a value that is not neutral.
VALUES: dict[str, Any] = {
    "temperature": 0.5, "top_k": 2, "top_p": 0.1, "min_p": 0.9, "repetition_penalty": 5.0, "seed": 7, "max_tokens": 3, "stop": ("a",),
    "frequency_penalty": 2.0, "presence_penalty": 2.0, "logit_bias": ((0, 100.0),), "top_logprobs": 0, "json_schema": "{}",
}  # fmt: skip
DO_WITHOUT_LOGITS = {"top_k", "top_p", "min_p", "seed", "max_tokens", "stop"}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Sampling)])
def test_whatever_may_choose_another_token_than_the_likeliest_needs_the_logits(name: str) -> None:
    sampling, logits = Sampling(**{name: VALUES[name]}), _logits(50)
    assert needs_logits(sampling) == (name not in DO_WITHOUT_LOGITS)
    assert needs_logits(sampling) or process(logits, [1, 2], sampling) is logits
