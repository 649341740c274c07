"""How many tokens are guessed for whom."""

from __future__ import annotations

from potatod.front.speculation import Speculation

SAID = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4]
NEW = [11, 12, 13, 14]


def free(_: int) -> float:
    return 1.0


def dear(more: int) -> float:
    """A row costs as much as all weights."""
    return 1.0 + more


def test_where_rows_are_free_as_much_is_guessed_as_may_be_right() -> None:
    speculation = Speculation(5)
    assert speculation.draft([(1, SAID, 9), (2, NEW, 9)], 64, free) == {1: [5, 6, 7, 8, 9]}
    assert speculation.draft([(1, SAID, 3)], 64, free) == {1: [5, 6, 7]}, "no more than there is room for"
    assert speculation.draft([(1, SAID, 9)], 2, free) == {1: [5, 6]}


def test_where_a_row_costs_a_sweep_nothing_is_guessed() -> None:
    assert Speculation(5).draft([(1, SAID, 9)], 64, dear) == {}


def test_the_likeliest_guesses_of_all_texts_come_first() -> None:
    speculation = Speculation(8)
    weaker = [1, 2, 7, 7, 1, 2]
    drafts = speculation.draft([(1, weaker, 9), (2, SAID, 9)], 4, free)
    assert len(drafts[2]) > len(drafts.get(1, [])) and sum(map(len, drafts.values())) == 4


def test_what_was_never_right_is_guessed_no_more_and_what_was_is_guessed_again() -> None:
    speculation = Speculation(5)
    for _ in range(400):
        if not (draft := speculation.draft([(1, SAID, 9)], 64, lambda more: 1 + 0.2 * more)):
            break
        speculation.verified(1, len(draft[1]), 0)
    else:
        raise AssertionError("it goes on guessing")
    other = Speculation(5)
    for _ in range(50):
        draft = other.draft([(1, SAID, 9)], 64, lambda more: 1 + 0.2 * more)
        other.verified(1, len(draft[1]), len(draft[1]))
    assert len(draft[1]) == 5
    assert (other.counts.drafted, other.counts.accepted) == (other.counts.drafted, other.counts.drafted)


def test_as_many_are_guessed_as_make_tokens_per_second_the_most() -> None:
    speculation = Speculation(8)
    for _ in range(200):  # four of five are right
        draft = speculation.draft([(1, SAID, 20)], 64, free)[1]
        speculation.verified(1, len(draft), 4)
        speculation.draft([(1, SAID, 20)], 64, free)

    def step(more: int) -> float:
        return 1.0 if more <= 3 else 3.0

    assert len(speculation.draft([(1, SAID, 20)], 64, step)[1]) == 3, "the fourth would make the sweep three times as long"
