"""Frequency and presence penalties and biases against the plainest way to write them, over the answer and not the prompt."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from guessing import paths_of
from hypothesis import given
from hypothesis import strategies as st
from schedulers import scheduler

from potatod.front.sequence import Sequence
from potatod.messages import Drawn, Row
from potatod.sampling.params import Sampling
from potatod.sampling.processors import Scores, process
from potatod.sampling.sampler import sample
from potatod.worker.candidates import Noise, candidates

from .test_speculation_distribution import LOGITS, VOCABULARY, Guesses

SIZE = 12
IDS = st.integers(0, SIZE + 2)  # some beyond the scores
NUMBERS = st.floats(-2, 2, width=16)  # exact sums, so that the slow way may add in any order
BIASES = st.dictionaries(IDS, st.floats(-100, 100, width=16), max_size=5).map(lambda biases: tuple(biases.items()))


def slowly(logits: Scores, answer: list[int], frequency: float, presence: float, biases: tuple[tuple[int, float], ...]) -> list[float]:
    counts, added = Counter(answer), dict(biases)
    return [
        float(np.float32(logit + np.float32(added.get(token, 0)))) - counts[token] * frequency - (counts[token] > 0) * presence
        for token, logit in enumerate(logits)
    ]


@given(st.integers(0, 1000), st.lists(IDS, max_size=9), st.lists(IDS, max_size=9), NUMBERS, NUMBERS, BIASES)
def test_scores_are_those_of_the_plain_way(
    seed: int, prompt: list[int], answer: list[int], frequency: float, presence: float, biases: tuple[tuple[int, float], ...]
) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, SIZE).astype(np.float32)
    logits.flags.writeable = False
    sampling = Sampling(frequency_penalty=frequency, presence_penalty=presence, logit_bias=biases)
    found = process(logits, prompt + answer, sampling, len(prompt))
    np.testing.assert_allclose(found, slowly(logits, answer, frequency, presence, biases), rtol=0, atol=1e-5)


def test_what_is_not_asked_for_touches_nothing() -> None:
    logits = np.arange(4, dtype=np.float32)
    assert process(logits, [1, 2, 3], Sampling(), 1) is logits


def test_a_token_of_the_prompt_is_as_likely_as_before() -> None:
    logits = np.array([0, 3, 2], dtype=np.float32)
    sampling = Sampling(presence_penalty=2.0)
    assert sample(logits, [1, 1], sampling, 0, 2, 2) == 1
    assert sample(logits, [1, 1], sampling, 0, 2, 1) == 2


def test_a_bias_of_a_hundred_decides_at_every_temperature() -> None:
    logits = np.random.default_rng(0).normal(0, 3, SIZE).astype(np.float32)
    for temperature in (0.0, 1.0):
        never = Sampling(temperature, seed=3, logit_bias=((int(logits.argmax()), -100.0),))
        always = Sampling(temperature, seed=3, logit_bias=((4, 100.0),))
        assert all(sample(logits, [], always, 0, position) == 4 for position in range(50))
        assert all(sample(logits, [], never, 0, position) != logits.argmax() for position in range(50))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trees_of_guesses_give_the_text_that_comes_one_by_one(temperature: float) -> None:
    """Each token is penalised by those before it on its own path."""
    for seed in range(20):
        sampling = Sampling(temperature, seed=seed, frequency_penalty=0.7, presence_penalty=0.5, logit_bias=((2, 0.5), (3, -1.0)))
        prompt = [random.Random(seed).randrange(VOCABULARY) for _ in range(5)]
        alone = list(prompt)
        while len(alone) < 60:
            alone.append(_next(alone, sampling))
        text, sweeps = _by_trees(prompt, sampling, 60)
        assert text == alone
        assert sweeps < 55, "nothing was guessed right"
        neutral = list(prompt)
        while len(neutral) < 60:
            neutral.append(_next(neutral, Sampling(temperature, seed=seed)))
        assert text != neutral


def _next(tokens: list[int], sampling: Sampling) -> int:
    return sample(LOGITS[tokens[-1]], tokens, sampling, 0, len(tokens), 5)


def _by_trees(prompt: list[int], sampling: Sampling, length: int) -> tuple[list[int], int]:
    s, sweeps = scheduler(running=1, drafter=Guesses()), 0
    sequence = Sequence(1, list(prompt), needs_logits=True, most=length + 9)
    s.add(sequence)
    while len(sequence.tokens) < length:
        sweep = s.compose(1)
        assert sweep is not None
        sweeps += 1
        s.orders()
        s.completed(sweep.number, [Row(1, logits_row=0)] * sweep.steps[0].wanted)
        paths, known, at = paths_of(sweep.steps[0]), list(sequence.tokens), 0
        while at is not None and sweep.steps[0].want != "nothing":
            assert known + paths[at] == sequence.tokens
            at = s.append(1, _next(sequence.tokens, sampling))
    return sequence.tokens[:length], sweeps


def test_a_draft_model_guesses_what_would_be_sampled_with_these_values() -> None:
    logits = np.random.default_rng(1).normal(0, 1, 40).astype(np.float32)
    tokens = [3, 3, 9, 11, 11, 11]
    for temperature in (0.0, 1.0):
        for seed in range(30):
            sampling = Sampling(temperature, seed=seed, frequency_penalty=0.5, presence_penalty=0.5, logit_bias=((7, 2.0), (8, -9.0)))
            drawn = Drawn(
                temperature, seed=seed, frequency_penalty=0.5, presence_penalty=0.5, logit_bias=((7, 2.0), (8, -9.0)), prompt_tokens=2
            )  # fmt: skip
            best, _ = candidates(logits, tokens, drawn, Noise(40))
            assert best[0] == sample(logits, tokens, sampling, 0, len(tokens), 2)
