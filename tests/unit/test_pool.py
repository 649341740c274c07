"""The pool's book-keeping: who may write where."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potatod import pool


@given(size=st.integers(1, 64), lengths=st.lists(st.integers(1, 64), max_size=60), picks=st.lists(st.integers(0, 10)))
@settings(max_examples=300)
def test_extents_that_are_live_never_overlap_and_never_leave_the_ring(size, lengths, picks):
    ring = pool.Ring(1000, size)
    live: list[tuple[int, int]] = []
    picks = iter(picks)
    for length in (n for n in lengths if n <= size):
        offset = ring.take(length)
        while offset is None:
            assert live, "an empty ring refuses nothing that is not larger than itself"
            freed = live.pop(next(picks, 0) % len(live))
            ring.give(freed[0])
            offset = ring.take(length)
        assert offset >= 1000 and offset + length <= 1000 + size
        assert all(offset + length <= at or at + n <= offset for at, n in live)
        live.append((offset, length))


@given(parts=st.lists(st.integers(1, 50), min_size=1, max_size=12), rounds=st.integers(1, 5))
@settings(max_examples=300)
def test_a_ring_of_the_sum_plus_the_largest_holds_the_set_wherever_it_begins(parts, rounds):
    """What the plan's smallest pool rests on: sum S and largest P are live at once in S + P bytes."""
    ring = pool.Ring(0, sum(parts) + max(parts))
    for _ in range(rounds):
        held = [ring.take(length) for length in parts]
        assert None not in held
        for offset in held:
            ring.give(offset)


def test_space_comes_back_in_the_order_it_was_handed_out():
    ring = pool.Ring(0, 10)
    first, second = ring.take(5), ring.take(5)
    ring.give(second)
    assert ring.take(5) is None, "the oldest is still out"
    ring.give(first)
    assert ring.take(10) == 0


def test_two_mappings_of_one_pool_see_the_same_bytes():
    fd = pool.create(8192)
    a, b = pool.Pool(os.dup(fd)), pool.Pool(fd)
    a.extent(4096, 4)[:] = b"abcd"
    assert bytes(b.extent(4096, 4)) == b"abcd"


def test_an_extent_outside_the_pool_is_our_own_mistake():
    whole = pool.Pool(pool.create(4096))
    with pytest.raises(AssertionError):
        whole.extent(4000, 200)
