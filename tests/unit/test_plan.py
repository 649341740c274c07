"""Homes, ring and residents, without a model or a process."""

from __future__ import annotations

import itertools
from collections import deque
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potatod import plan
from potatod.errors import DoesNotFit
from potatod.manifest import Part, Shard
from potatod.pool import Ring

KB4 = 4096


def model(layers: list[list[int]], bands: list[int]) -> SimpleNamespace:
    """A manifest of these part lengths, in units of 4096 bytes."""

    def shard(kind: str, layer: int, lengths: list[int]) -> Shard:
        parts, at = [], 0
        for length in lengths:
            parts.append(Part(f"{kind}.{layer}", at * KB4, length * KB4, "0" * 16, ()))
            at += length
        return Shard(kind, layer, tuple(parts))

    return SimpleNamespace(layers=len(layers), shards=[*(shard("layer", i, parts) for i, parts in enumerate(layers)), shard("head", 0, bands)])


_models = st.builds(
    model,
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=8),
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
)


@given(_models, st.floats(0, 1.1))
@settings(max_examples=300, deadline=None)
def test_every_pool_between_the_smallest_and_the_whole_model_gives_a_plan_that_fits_it(manifest, share):
    lengths = [(stop, part.length) for stop, part in plan.sweep_parts(manifest)]
    total = sum(n for _, n in lengths)
    least = min(plan.smallest_pool(lengths), total)
    budget = least + int((total - least) * share) if total > least else least
    made = plan.make(manifest, budget)
    assert made.pool_bytes <= budget
    assert made.resident_bytes + made.streamed_bytes == total
    _residents_do_not_overlap(made)
    _one_sweep_goes_through(made)


def _residents_do_not_overlap(made: plan.Plan) -> None:
    at = 0
    for part in sorted((p for p in made.parts if p.home == "ram"), key=lambda p: p.home_offset):
        assert part.home_offset == at
        at += part.length
    assert at == made.ring_offset


def _one_sweep_goes_through(made: plan.Plan) -> None:
    """Three sweeps through the ring, the reader as far ahead as it can: what is computed together must come to lie there together."""
    ring = Ring(made.ring_offset, made.ring_bytes)
    streamed = [p for p in made.parts if p.home == "disk"]
    groups = 3 * [list(parts) for _, parts in itertools.groupby(streamed, lambda part: part.stop)]
    to_read = deque(p for group in groups for p in group)
    held: deque[int] = deque()
    for group in groups:
        while to_read and (offset := ring.take(to_read[0].length)) is not None:
            held.append(offset)
            to_read.popleft()
        assert len(held) >= len(group), "the ring is too small for what is computed together"
        for _ in group:
            ring.give(held.popleft())


def test_a_pool_that_is_too_small_is_refused_with_the_size_that_works():
    manifest = model([[10, 20]] * 3, [5, 5])
    with pytest.raises(DoesNotFit) as refused:
        plan.make(manifest, 69 * KB4)
    assert f"{(30 + 2 * 20) * KB4 // 1024}KiB" in str(refused.value)
    assert plan.make(manifest, 70 * KB4).streamed_bytes > 0


def test_a_pool_for_everything_needs_no_ring():
    made = plan.make(model([[10, 20], [10, 20]], [5, 5]), 70 * KB4)
    assert made.ring_bytes == 0 and made.streamed_bytes == 0, "70 units hold all 70"


def test_residents_are_spread_so_that_every_layer_streams_about_the_same():
    manifest = model([[2, 30, 30, 90, 90]] * 28, [80] * 6)
    made = plan.make(manifest, 28 * 120 * KB4)
    streamed = [sum(p.length for p in made.parts if p.stop == i and p.home == "disk") for i in range(28)]
    assert max(streamed) - min(streamed) <= 90 * KB4
    assert made.ring_bytes < 3.5 * max(streamed)


def test_small_parts_are_always_resident_before_large_ones():
    manifest = model([[2, 30, 30, 90, 90]] * 8, [80] * 2)
    made = plan.make(manifest, 8 * 100 * KB4)
    assert all(p.home == "ram" for p in made.parts if p.length == 2 * KB4)
