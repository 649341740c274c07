"""What was said in texts that are over is found again."""

from __future__ import annotations

import random

from potatod.front.earlier import Earlier
from potatod.front.lookup import LONGEST, Way

TEXT = [1, 2, 3, 4, 5, 6, 7, 8, 9]


def earlier(*texts: list[int], kept: int = 1000) -> Earlier:
    made = Earlier(kept)
    for text in texts:
        made.add(text)
    return made


def test_what_followed_the_same_words_in_another_text_is_proposed() -> None:
    assert earlier(TEXT).propose([20, 1, 2, 3, 4], 3) == Way([5, 6, 7], 4)


def test_three_words_are_no_stretch() -> None:
    assert earlier(TEXT).propose([20, 21, 2, 3, 4], 3) is None


def test_nothing_is_proposed_beyond_the_end_of_a_text() -> None:
    known = earlier(TEXT, [30, 31])
    assert known.propose([4, 5, 6, 7], 9) == Way([8, 9], 4)
    assert known.propose([6, 7, 8, 9], 9) is None
    assert known.propose([8, 9, 30, 31], 9) is None, "no stretch goes over a border"
    assert known.propose([9, -1, 30, 31], 9) is None


def test_the_longest_stretch_counts_and_of_equally_long_ones_the_newest() -> None:
    known = earlier([1, 2, 3, 4, 50], [2, 3, 4, 5, 60], [1, 2, 3, 4, 70], [9, 2, 3, 4, 80])
    assert known.propose([7, 1, 2, 3, 4], 1) == Way([70], 4)


def test_short_texts_and_none_are_answered() -> None:
    assert earlier().propose(TEXT, 3) is None
    known = earlier([], [5], TEXT)
    assert known.propose([], 3) is None and known.propose([1], 3) is None and known.propose([1, 2, 3, 4], 0) is None
    assert known.propose([1, 2, 3, 4], 2) == Way([5, 6], 4)


def test_the_oldest_texts_are_left_out() -> None:
    known = earlier(kept=100)
    for number in range(50):
        known.add([1000 + number * 10 + at for at in range(10)])
    assert known.propose([1000, 1001, 1002, 1003], 3) is None
    assert known.propose([1490, 1491, 1492, 1493], 3) == Way([1494, 1495, 1496], 4)


def test_of_a_text_that_is_too_long_the_end_is_kept() -> None:
    known = earlier(list(range(500)), kept=100)
    assert known.propose([490, 491, 492, 493], 2) == Way([494, 495], 4)
    assert known.propose([10, 11, 12, 13], 2) is None


def test_it_finds_what_a_search_of_all_texts_finds() -> None:
    drawn = random.Random(3)
    for _ in range(200):
        texts = [[drawn.randrange(3) for _ in range(drawn.randrange(30))] for _ in range(4)]
        asked = [drawn.randrange(3) for _ in range(drawn.randrange(2, 20))]
        lengths = [
            next((n for n in range(min(LONGEST, end, len(asked)), 0, -1) if text[end - n : end] == asked[-n:]), 0)
            for text in texts
            for end in range(len(text))
        ]
        best = max(lengths, default=0)
        found = earlier(*texts).propose(asked, 5)
        assert (found.length if found else 0) == (best if best >= 4 else 0)
        if found:
            held = [text[end:] for text in texts for end in range(len(text)) if text[max(0, end - best) : end] == asked[-best:]]
            assert any(after[: len(found.tokens)] == found.tokens for after in held)
