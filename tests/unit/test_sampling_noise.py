"""Noise is a function of (seed, choice, position, token) and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potatod.sampling.noise import gumbel

_words = st.integers(0, (1 << 63) - 1)


def test_the_numbers_are_these_on_every_machine_and_for_ever() -> None:
    expected = [
        -0.21149238866487194,
        3.015425023206237,
        0.06798480683308573,
        1.978238590843862,
        0.7216040942046152,
        1.7441219450363297,
        1.2435758444100262,
        -0.6360224432342033,
    ]
    np.testing.assert_allclose(gumbel(seed=42, choice=1, position=7, size=8), expected, rtol=1e-13)


@given(_words, st.integers(0, 1000), _words, st.integers(1, 300), st.integers(1, 300))
def test_a_tokens_noise_does_not_depend_on_how_many_tokens_there_are(
    seed: int, choice: int, position: int, size: int, other: int
) -> None:
    short, long = sorted((size, other))
    np.testing.assert_array_equal(
        gumbel(seed, choice, position, short), gumbel(seed, choice, position, long)[:short], strict=True
    )


@pytest.mark.parametrize("other", [(2, 0, 5), (1, 1, 5), (1, 0, 6)])
def test_another_seed_choice_or_position_gives_other_noise(other: tuple[int, int, int]) -> None:
    assert not np.intersect1d(gumbel(1, 0, 5, 1000), gumbel(*other, 1000)).size


def test_neighbouring_positions_are_not_shifts_of_each_other() -> None:
    """A counter that shared its words with the position would give the same numbers a few places apart."""
    streams = np.concatenate([gumbel(3, 0, position, 4096) for position in range(32)])
    assert np.unique(streams).size == streams.size


@given(_words, _words)
def test_noise_is_never_infinite_and_never_nan(seed: int, position: int) -> None:
    assert np.isfinite(gumbel(seed, 0, position, 4096)).all()


def test_the_extreme_words_of_the_generator_give_finite_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Extreme:
        def __init__(self, **_: object) -> None:
            pass

        def random_raw(self, size: int) -> np.ndarray:
            return np.array([0, (1 << 64) - 1], dtype=np.uint64)

    monkeypatch.setattr(np.random, "Philox", Extreme)
    lowest, highest = gumbel(0, 0, 0, 2)
    assert lowest == pytest.approx(-np.log(53 * np.log(2)))
    assert highest == pytest.approx(53 * np.log(2))


def test_noise_has_the_mean_and_variance_of_the_gumbel_distribution() -> None:
    noise = gumbel(2026, 0, 0, 1_000_000)
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=5 * 1.283 / 1000)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.02)
