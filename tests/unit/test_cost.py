"""The cost model: planned first, then as measured."""

from __future__ import annotations

import random

import pytest

from potatod.front.cost import CostModel


def planned(tokens: int) -> float:
    return 0.1 + 0.01 * tokens


def test_before_anything_is_measured_the_plan_holds() -> None:
    costs = CostModel(planned, 2.0)
    assert costs.sweep_s(10, 1000) == 2.0
    assert costs.sweep_s(300, 1000) == pytest.approx(3.1)


@pytest.mark.parametrize("waits", [True, False], ids=["while weights stream", "with everything resident"])
def test_it_finds_what_a_token_and_what_a_key_cost(waits: bool) -> None:
    costs = CostModel(planned, 1.0)
    noise = random.Random(1)
    for _ in range(64):
        tokens = noise.choice((1, 4, 16, 64))
        keys = tokens * noise.choice((10, 1000, 4000))
        computed = (1.7 * planned(tokens) + 2e-5 * keys) * noise.uniform(0.95, 1.05)
        seconds = max(10.0, computed) if waits else computed
        costs.observe(tokens, keys, seconds, seconds - computed)
    for tokens, keys in ((1, 100), (16, 16_000), (64, 64_000)):
        assert costs.compute_s(tokens, keys) == pytest.approx(1.7 * planned(tokens) + 2e-5 * keys, rel=0.1)
    assert costs.stream_s == (10.0 if waits else 1.0)


def test_sweeps_that_are_all_alike_only_scale_the_plan() -> None:
    costs = CostModel(planned, 0.0)
    for _ in range(64):
        costs.observe(1, 50, 3 * planned(1), 0.0)
    assert costs.compute_s(1, 50) == pytest.approx(3 * planned(1), rel=0.1)
    assert costs.compute_s(64, 3200) == pytest.approx(3 * planned(64), rel=0.2)


def test_what_was_measured_long_ago_is_forgotten() -> None:
    costs = CostModel(planned, 0.0)
    for scale in (1.0, 5.0):
        for _ in range(100):
            costs.observe(4, 0, scale * planned(4), 0.0)
    assert costs.compute_s(4, 0) == pytest.approx(5 * planned(4), rel=0.1)


def test_free_are_the_tokens_that_hide_behind_streaming() -> None:
    costs = CostModel(planned, 2.0)
    free = costs.free(4, 400, 1000, 0.0)
    assert costs.compute_s(4 + free, 0) <= 2.0 < costs.compute_s(4 + free + 1, 0)
    assert CostModel(planned, 2.0).free(4, 400, 50, 0.0) == 50, "no more than are asked for"


def test_where_nothing_streams_a_sweep_grows_by_the_share_and_no_more() -> None:
    costs = CostModel(planned, 0.0)
    assert costs.free(4, 0, 1000, 0.0) == 0
    free = costs.free(4, 0, 1000, 0.5)
    assert costs.compute_s(4 + free, 0) <= 1.5 * costs.compute_s(4, 0) < costs.compute_s(4 + free + 1, 0)


def test_a_sweep_that_only_waited_teaches_nothing() -> None:
    costs = CostModel(planned, 0.0)
    costs.observe(1, 1, 2.0, 2.0)
    assert costs.sweep_s(1, 1) == planned(1)
