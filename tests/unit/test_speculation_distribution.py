"""What is sampled with trees of guesses has the distribution of what is sampled one by one: it is the same tokens, and those have it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from guessing import paths_of
from schedulers import scheduler

from potatod.front.sequence import Sequence
from potatod.messages import Draft, Drafted, DraftText, Row
from potatod.sampling.params import Sampling
from potatod.sampling.sampler import sample
from potatod.trees import Tree

VOCABULARY = 8
#: Of the next token, by the last one.
LOGITS = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32) * 1.5
TEMPERATURE = 0.8
DRAWS = 100_000
LENGTH = 500
#: Of chi-square with 7 degrees of freedom; eight are looked at, so that one of ten thousand runs would be above by chance. The seeds are fixed.
MOST = 34.0


class Guesses:
    """Every which way, and mostly what is likely."""

    def __init__(self) -> None:
        self.chance = random.Random(5)

    def draft(self, texts: list[tuple[int, list[int], int]], most: int, sweep_s: object) -> dict[int, Tree]:
        trees = {}
        for id, tokens, room in texts:
            tree = Tree()
            for _ in range(3):
                path, last = [], tokens[-1]
                for _ in range(min(room, 4)):
                    last = int(LOGITS[last].argmax()) if self.chance.random() < 0.6 else self.chance.randrange(VOCABULARY)
                    path.append(last)
                tree.add_path(path, [1.0] * len(path), "test")
            trees[id] = tree.only(range(len(tree)))
        return trees

    def ask(self, epoch: int, texts: list[DraftText], nodes: int, sweep_s: float) -> Draft | None:
        return None

    def told(self, drafted: Drafted) -> None:
        pass

    def restarted(self) -> None:
        pass

    def verified(self, id: int, guesses: Tree, accepted: list[int]) -> dict[str, tuple[int, int]]:
        return {}

    def forget(self, id: int) -> None:
        pass

    def said(self, tokens: list[int]) -> None:
        pass


def drawn(tokens: list[int], sampling: Sampling) -> int:
    return sample(LOGITS[tokens[-1]], tokens, sampling, 0, len(tokens))


def by_trees(seed: int) -> tuple[list[int], int]:
    """A text, and sweeps that it took."""
    s, sampling, sweeps = scheduler(running=1, drafter=Guesses()), Sampling(temperature=TEMPERATURE, seed=seed), 0
    sequence = Sequence(1, [0], needs_logits=True, most=LENGTH + 9)
    s.add(sequence)
    while len(sequence.tokens) < LENGTH:
        sweep = s.compose(1)
        assert sweep is not None
        sweeps += 1
        (step,) = sweep.steps
        s.orders()
        s.completed(sweep.number, [Row(1, logits_row=0)] * step.wanted)
        paths, known, at = paths_of(step), list(sequence.tokens), 0
        while at is not None:
            assert known + paths[at] == sequence.tokens
            at = s.append(1, drawn(sequence.tokens, sampling))
    return sequence.tokens[:LENGTH], sweeps


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_hundred_thousand_tokens() -> None:
    counts, sweeps = np.zeros((VOCABULARY, VOCABULARY)), 0
    for seed in range(DRAWS // LENGTH):
        text, took = by_trees(seed)
        sweeps += took
        alone = [0]
        while len(alone) < LENGTH:
            alone.append(drawn(alone, Sampling(temperature=TEMPERATURE, seed=seed)))
        assert text == alone
        np.add.at(counts, (text[:-1], text[1:]), 1)
    assert sweeps < 0.7 * DRAWS, "hardly anything was guessed right"
    powers = np.exp(LOGITS.astype(np.float64) / TEMPERATURE)
    expected = counts.sum(axis=1, keepdims=True) * powers / powers.sum(axis=1, keepdims=True)
    assert (((counts - expected) ** 2 / expected).sum(axis=1) < MOST).all()
