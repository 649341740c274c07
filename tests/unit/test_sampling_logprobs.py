"""Log probabilities against the definition, and in an order that nothing but the logits decides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from potatod.sampling.logprobs import NEVER, logprobs

VALUES = st.lists(st.floats(-300, 300, width=16), min_size=1, max_size=30)


def _slowly(logits: NDArray[np.float32], token: int) -> float:
    values = [float(value) for value in logits]
    return values[token] - max(values) - math.log(math.fsum(math.exp(value - max(values)) for value in values))


@given(VALUES, st.integers(0, 20), st.data())
def test_they_are_those_of_the_softmax_and_the_likeliest_come_first(values: list[float], count: int, data: st.DataObject) -> None:
    logits = np.array(values, dtype=np.float32)
    logits.flags.writeable = False
    token = data.draw(st.integers(0, logits.size - 1))
    found = logprobs(logits, token, count)
    assert found.sampled == pytest.approx(_slowly(logits, token), abs=1e-9)
    best = sorted(range(logits.size), key=lambda id: (-logits[id], id))[:count]
    assert [id for id, _ in found.likeliest] == best
    for id, value in found.likeliest:
        assert value == pytest.approx(_slowly(logits, id), abs=1e-9)
        assert id != token or value == found.sampled


@given(VALUES)
def test_all_together_are_certain(values: list[float]) -> None:
    logits = np.array(values, dtype=np.float32)
    assert math.fsum(math.exp(value) for _, value in logprobs(logits, 0, logits.size).likeliest) == pytest.approx(1)


def test_a_token_that_cannot_come_has_a_number_all_the_same() -> None:
    logits = np.array([0, -np.inf, -1e30], dtype=np.float32)
    assert logprobs(logits, 1, 3).sampled == NEVER
    assert logprobs(logits, 0, 3).likeliest == ((0, 0.0), (2, NEVER), (1, NEVER))


def test_a_row_of_equal_logits_is_told_in_the_order_of_the_ids() -> None:
    found = logprobs(np.ones(100_000, dtype=np.float32), 70_000, 3)
    assert [id for id, _ in found.likeliest] == [0, 1, 2]
    assert found.sampled == pytest.approx(-math.log(100_000))
