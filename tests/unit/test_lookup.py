"""What followed the same words earlier is proposed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potatod.front.lookup import LONGEST, SHORTEST, Lookup, Way


def test_what_followed_the_longest_stretch_is_proposed() -> None:
    lookup = Lookup()
    tokens = [1, 2, 3, 4, 50, 51, 52, 9, 2, 3, 60, 61, 8, 1, 2, 3, 4]
    assert lookup.propose(tokens, 2) == [Way([50, 51], 4)]
    assert lookup.propose([*tokens, 50], 3) == [Way([51, 52, 9], 5)]


def test_of_equally_long_stretches_the_newest_counts() -> None:
    assert Lookup().propose([1, 2, 70, 5, 1, 2, 80, 6, 1, 2], 1) == [Way([80], 2)]


def test_what_repeats_itself_goes_on_repeating() -> None:
    assert Lookup().propose([9, 1, 2, 3, 1, 2, 3], 7) == [Way([1, 2, 3, 1, 2, 3, 1], 3)]


def test_where_nothing_was_said_before_nothing_is_proposed() -> None:
    assert Lookup().propose([1, 2, 3, 4, 5], 4) == []
    assert Lookup().propose([1], 4) == []


def test_other_ways_to_go_on_begin_with_other_tokens() -> None:
    tokens = [1, 2, 50, 3, 1, 2, 60, 4, 9, 1, 2, 70, 5, 9, 1, 2]
    assert Lookup().propose(tokens, 2, ways=2) == [Way([70, 5], 3), Way([60, 4], 2)]
    assert Lookup().propose(tokens, 1, ways=9) == [Way([70], 3), Way([60], 2), Way([50], 2)]


def copied(tokens: list[int], most: int) -> list[int]:
    """What goes on with what is copied, when the text has come token by token."""
    lookup, ways = Lookup(), []
    for end in range(1, len(tokens) + 1):
        ways = lookup.propose(tokens[:end], most)
    return next((way.tokens for way in reversed(ways) if not way.length), ways[0].tokens if ways else [])


SAID = [1, 2, 3, 40, 5, 6, 40, 7, 8, 9, 40, 10, 11, 12]


def test_what_was_put_for_a_token_is_put_there_again() -> None:
    assert copied([*SAID, 0, 1, 2, 3, 50], 9) == [5, 6, 50, 7, 8, 9, 50, 10, 11]
    assert copied([*SAID, 0, 1, 2, 3, 50, 5, 6, 50, 7], 3) == [8, 9, 50]


def test_what_is_as_it_was_is_not_changed_any_more() -> None:
    assert copied([*SAID, 0, 1, 2, 3, 50, 5, 6, 40, 7, 8], 4) == [9, 40, 10, 11]


def test_where_something_is_put_in_or_left_out_it_goes_on_behind_it() -> None:
    assert copied([*SAID, 0, 1, 2, 3, 50, 51, 52, 5], 2) == [6, 50], "three for one"
    assert copied([*SAID, 0, 1, 2, 3, 6], 1) == [5]
    assert copied([*SAID, 0, 1, 2, 3, 6, 40], 2) == [7, 8], "two were left out"


def test_what_goes_on_otherwise_is_not_copied_any_more() -> None:
    lookup = Lookup()
    tokens = [*SAID, 0, 1, 2, 3]
    assert lookup.propose(tokens, 2)
    for other in range(100, 112):
        tokens = [*tokens, other]
        ways = lookup.propose(tokens, 2)
    assert ways == []


def slowly(tokens: list[int], most: int) -> list[Way]:
    for length in range(LONGEST, SHORTEST - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                after = tokens[end : end + most]
                return [Way([after[at % len(after)] for at in range(most)], length)]
    return []


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 9))
def test_token_by_token_it_finds_what_a_search_of_the_whole_text_finds(tokens: list[int], most: int) -> None:
    lookup = Lookup()
    for end in range(1, len(tokens) + 1):
        ways = lookup.propose(tokens[:end], most)
        assert [way for way in ways if way.length] == slowly(tokens[:end], most)
        assert all(len(way.tokens) == most for way in ways)
