"""What a sequence's KV takes."""

from __future__ import annotations

import pytest

from potatod.kv_layout import BLOCK, KvGroup, KvLayout, blocks, first_kept

WINDOWED = KvLayout((KvGroup(None, 10), KvGroup(200, 1)), state_bytes=7)


def test_a_sequence_takes_whole_blocks() -> None:
    assert [blocks(tokens) for tokens in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, 1, 2]
    assert KvLayout((KvGroup(None, 10),)).bytes_of(BLOCK + 1) == 2 * BLOCK * 10


def test_layers_with_a_window_keep_what_it_reaches_and_one_block_more() -> None:
    for length in range(5 * BLOCK):
        reached = max(0, length - 200 + 1) // BLOCK  # the block of the oldest key that the next token sees
        assert max(0, reached - 1) == first_kept(200, length)
    assert WINDOWED.bytes_of(10 * BLOCK) == 7 + 10 * BLOCK * 10 + 3 * BLOCK
    assert WINDOWED.bytes_of(10 * BLOCK, chunk=BLOCK) == 7 + 10 * BLOCK * 10 + 4 * BLOCK, "of what came together the first sees more"


@pytest.mark.parametrize("budget", [0, 7, 5000, 20_000, 1 << 20])
def test_affordable_is_the_longest_sequence_that_fits(budget: int) -> None:
    tokens = WINDOWED.affordable(budget, 10_000, chunk=64)
    assert tokens == 0 or WINDOWED.bytes_of(tokens, min(64, tokens)) <= budget
    assert tokens == 10_000 or WINDOWED.bytes_of(tokens + 1, min(64, tokens + 1)) > budget


def test_json_brings_the_same_layout_back() -> None:
    assert KvLayout.from_json(WINDOWED.to_json()) == WINDOWED
