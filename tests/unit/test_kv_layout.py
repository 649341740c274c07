"""What a sequence's KV takes."""

from __future__ import annotations

import pytest

from potatod.kv_layout import BLOCK, KvGroup, KvLayout, blocks, first_kept, first_read

WINDOWED = KvLayout((KvGroup(None, 10), KvGroup(200, 1)), state_bytes=7)


def test_a_sequence_takes_whole_blocks() -> None:
    assert [blocks(tokens) for tokens in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, 1, 2]
    assert KvLayout((KvGroup(None, 10),)).bytes_of(BLOCK + 1) == 2 * BLOCK * 10


def test_layers_with_a_window_keep_what_it_reaches_and_one_block_more() -> None:
    for length in range(5 * BLOCK):
        reached = max(0, length - 200 + 1) // BLOCK  # the block of the oldest key that the next token sees
        assert max(0, reached - 1) == first_kept(200, length)
    assert WINDOWED.bytes_of(2 * BLOCK) == 7 + 2 * BLOCK * 11


def test_what_a_sequence_takes_at_most_is_never_less_than_it_does_and_grows_with_its_tokens() -> None:
    for window in (1, 40, 128, 200, 512):
        layout = KvLayout((KvGroup(window, 1),))
        for chunk in (1, 64, 90, 512):
            for start in range(0, 8 * BLOCK, 7):
                taken = (blocks(start + chunk) - first_kept(window, start)) * BLOCK
                assert taken <= layout.bytes_of(start + chunk, chunk) <= layout.bytes_of(start + chunk + 1, chunk)


def test_what_is_read_to_go_on_is_always_kept_a_little_further_on() -> None:
    for window in (1, 40, 128, 200, 512):
        for length in range(8 * BLOCK):
            assert all(first_read(window, length) >= first_kept(window, later) for later in range(length, length + 40))


@pytest.mark.parametrize("budget", [0, 7, 5000, 20_000, 1 << 20])
def test_affordable_is_the_longest_sequence_that_fits(budget: int) -> None:
    tokens = WINDOWED.affordable(budget, 10_000, chunk=64)
    assert tokens == 0 or WINDOWED.bytes_of(tokens, min(64, tokens)) <= budget
    assert tokens == 10_000 or WINDOWED.bytes_of(tokens + 1, min(64, tokens + 1)) > budget


def test_json_brings_the_same_layout_back() -> None:
    assert KvLayout.from_json(WINDOWED.to_json()) == WINDOWED
