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
from potatod.manifest import Part, Shard, Tensor
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


def banded(layers: int, matrices: list[int], bands: int) -> SimpleNamespace:
    """Layers of matrices of so many bands of these lengths, in units of 4096 bytes; a head of one band."""

    def layer(number: int) -> Shard:
        parts, at = [], 0
        for name, length in enumerate(matrices):
            for band in range(bands):
                tensor = Tensor(f"w{name}", "uint8", (length, KB4), "raw", 0, length * KB4, band * length)
                parts.append(Part(f"layer.{number}", at * KB4, length * KB4, "0" * 16, (tensor,)))
                at += length
        return Shard("layer", number, tuple(parts))

    head = Tensor("h", "uint8", (4, KB4), "raw", 0, 4 * KB4, 0)
    shards = [*(layer(number) for number in range(layers)), Shard("head", 0, (Part("head", 0, 4 * KB4, "0" * 16, (head,)),))]
    return SimpleNamespace(layers=layers, shards=shards)


@given(st.integers(2, 8), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(2, 6), st.floats(0.1, 0.95))
@settings(max_examples=200, deadline=None)
def test_of_a_layer_one_matrix_at_most_is_resident_in_part_and_then_its_first_bands(layers, matrices, bands, share):
    manifest = banded(layers, matrices, bands)
    lengths = [(stop, part.length) for stop, part in plan.sweep_parts(manifest)]
    total = sum(n for _, n in lengths)
    made = plan.make(manifest, max(plan.smallest_pool(lengths), int(total * share)), layers_ahead=1.0)
    names = [(stop, part.tensors[0].name) for stop, part in plan.sweep_parts(manifest)]
    for layer in range(layers):
        in_part = 0
        for _, several in itertools.groupby(zip(names, made.parts, strict=True), lambda pair: pair[0]):
            homes = [part.home for (stop, _), part in several if stop == layer]
            in_part += len(set(homes)) > 1
            assert homes == sorted(homes, key=lambda home: home != "ram"), "the first bands"
        assert in_part <= 1


@given(st.integers(2, 8), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 4), st.floats(0.0, 1.1), st.floats(0.2, 1.0))
@settings(max_examples=200, deadline=None)
def test_a_card_keeps_whole_matrices_and_slots_hold_what_is_uploaded_of_any_layer(layers, matrices, bands, vram, share):
    manifest = banded(layers, matrices, bands)
    lengths = [(stop, part.length) for stop, part in plan.sweep_parts(manifest)]
    total = sum(n for _, n in lengths)
    layer = max(sum(n for s, n in lengths if s == stop) for stop in range(layers + 1))
    card = layer + int(vram * total)
    made = plan.make(manifest, max(plan.smallest_pool(lengths, card=True), int(total * share)), card)
    assert made.card_bytes + made.slots * made.slot_bytes <= card
    assert made.card_bytes + made.resident_bytes + made.streamed_bytes == total
    names = [(stop, part.tensors[0].name) for stop, part in plan.sweep_parts(manifest)]
    for _, several in itertools.groupby(zip(names, made.parts, strict=True), lambda pair: pair[0]):
        assert len({part.home == "vram" for _, part in several}) == 1
    for stop in range(layers + 1):
        assert sum(part.length for part in made.parts if part.stop == stop and part.home != "vram") <= made.slot_bytes
    at = 0
    for part in sorted((p for p in made.parts if p.home == "vram"), key=lambda p: p.home_offset):
        assert part.home_offset == at
        at += part.length


def test_the_head_is_computed_with_in_pieces_of_a_layer_whatever_is_resident():
    manifest = model([[10, 10]] * 3, [4] * 10)
    stops = [stop for stop, _ in plan.sweep_parts(manifest)]
    assert stops == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4]
