"""The closed form of a sweep's time, against the pipeline event by event."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import sweep_s

from potatod import plan
from potatod.forecast import Forecast, Rates, forecast

from .test_plan import model

RATES = Rates(disk=500e6, compute=((1, 10e9), (4, 4e9), (16, 2e9)), layer_s=0.001)


def llama(layers: int, share: float) -> plan.Plan:
    """Layers of seven matrices, in the proportions of a Llama, and a head of eight bands; a pool of so much of it."""
    manifest = model([[4, 1, 1, 4, 14, 14, 14]] * layers, [24] * 8)
    return plan.make(manifest, int(share * sum(part.length for _, part in plan.sweep_parts(manifest))))


def simulated(made: plan.Plan, rates: Rates) -> float:
    """Every part costs its share of the layer's own time."""
    heaviest = max(made.parts, key=lambda part: part.stop).stop

    def compute_s(parts: list[plan.Placed]) -> float:
        return sum(part.length for part in parts) / rates.compute_at(1) + (rates.layer_s if parts[0].stop != heaviest else 0.0)

    return sweep_s(made, rates.disk, compute_s)


@given(layers=st.integers(12, 60), share=st.floats(0.2, 0.97), slower=st.sampled_from([0.05, 0.1, 0.2, 0.4, 2.5, 5, 20]))
@settings(max_examples=60)
def test_a_sweep_takes_as_long_as_its_slowest_link_where_one_is_clearly_the_slowest(layers, share, slower):
    """``slower``: seconds of computing for a second of reading."""
    made = llama(layers, share)
    weights = made.resident_bytes + made.streamed_bytes
    disk = 500e6
    rates = Rates(disk, ((1, weights / (slower * made.streamed_bytes / disk)),), 0.0)
    assert simulated(made, rates) == pytest.approx(forecast(made, layers, rates).sweep_s, rel=0.07)


@given(layers=st.integers(12, 60), share=st.floats(0.2, 0.97), slower=st.floats(0.05, 20))
@settings(max_examples=60)
def test_no_sweep_is_faster_than_forecast_and_none_slower_than_its_links_one_after_the_other(layers, share, slower):
    made = llama(layers, share)
    weights = made.resident_bytes + made.streamed_bytes
    rates = Rates(500e6, ((1, weights / (slower * made.streamed_bytes / 500e6)),), 0.0)
    said = forecast(made, layers, rates)
    assert said.sweep_s * 0.999 <= simulated(made, rates) <= (said.disk_s + said.compute_s) * 1.001


def test_a_model_that_is_all_resident_computes_and_reads_nothing():
    said = forecast(llama(20, 1.0), 20, RATES)
    assert said.disk_s == 0 and said.bottleneck == "compute"


def test_seconds_per_byte_lie_on_lines_between_what_was_measured_and_grow_with_the_rows_beyond():
    assert RATES.compute_at(1) == pytest.approx(10e9)
    assert RATES.compute_at(4) == pytest.approx(4e9)
    assert 1 / RATES.compute_at(10) == pytest.approx((1 / 4e9 + 1 / 2e9) / 2)
    assert 1 / RATES.compute_at(32) == pytest.approx(2 / 2e9)


def test_a_token_is_a_sweep_shared_by_the_sequences_in_it():
    said = Forecast(rows=16, disk_s=2.0, compute_s=1.0)
    assert (said.sweep_s, said.token_s, said.bottleneck) == (2.0, 0.125, "disk")
