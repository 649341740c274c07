"""What followed the same words earlier is proposed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potatod.front.lookup import LONGEST, SHORTEST, Lookup


def test_what_followed_the_longest_stretch_is_proposed() -> None:
    lookup = Lookup()
    tokens = [1, 2, 3, 4, 50, 51, 52, 9, 2, 3, 60, 61, 8, 1, 2, 3, 4]
    assert lookup.propose(tokens, 2) == [([50, 51], 4)]
    assert lookup.propose([*tokens, 50], 3) == [([51, 52, 9], 5)]


def test_of_equally_long_stretches_the_newest_counts() -> None:
    assert Lookup().propose([1, 2, 70, 5, 1, 2, 80, 6, 1, 2], 1) == [([80], 2)]


def test_what_repeats_itself_goes_on_repeating() -> None:
    assert Lookup().propose([9, 1, 2, 3, 1, 2, 3], 7) == [([1, 2, 3, 1, 2, 3, 1], 3)]


def test_where_nothing_was_said_before_nothing_is_proposed() -> None:
    assert Lookup().propose([1, 2, 3, 4, 5], 4) == []
    assert Lookup().propose([1], 4) == []


def test_other_ways_to_go_on_begin_with_other_tokens() -> None:
    tokens = [1, 2, 50, 3, 1, 2, 60, 4, 9, 1, 2, 70, 5, 9, 1, 2]
    assert Lookup().propose(tokens, 2, ways=2) == [([70, 5], 3), ([60, 4], 2)]
    assert Lookup().propose(tokens, 1, ways=9) == [([70], 3), ([60], 2), ([50], 2)]


def slowly(tokens: list[int], most: int) -> list[tuple[list[int], int]]:
    for length in range(LONGEST, SHORTEST - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                after = tokens[end : end + most]
                return [([after[at % len(after)] for at in range(most)], length)]
    return []


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 9))
def test_token_by_token_it_finds_what_a_search_of_the_whole_text_finds(tokens: list[int], most: int) -> None:
    lookup = Lookup()
    for end in range(1, len(tokens) + 1):
        assert lookup.propose(tokens[:end], most) == slowly(tokens[:end], most)
