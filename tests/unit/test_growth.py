"""How a draft model's trees grow."""

from __future__ import annotations

import random

from potatod.trees import ROOT
from potatod.worker.growth import Growth, Reach, RoundTimes, Spread

SURE = [(5, 0.97)]
TWO_WAYS = [(5, 0.55), (6, 0.4)]


def grown(growth: Growth, candidates: list[tuple[int, float]], seconds: float = 0.01) -> int:
    """Rounds until it is enough."""
    look(growth, 1, ROOT, candidates)
    rounds = 0
    while nodes := growth.next():
        rounds += 1
        for text, node in nodes:
            look(growth, text, node, candidates)
        growth.spent(seconds)
    return rounds


def look(growth: Growth, text: int, node: int, candidates: list[tuple[int, float]]) -> None:
    for child in growth.children(text, node, candidates):
        growth.open(text, child)


def depth(growth: Growth) -> int:
    tree = growth.trees[1]
    return max(tree.depth(node) for node in range(len(tree)))


def test_where_it_is_sure_it_goes_deep_and_where_it_is_not_it_goes_wide() -> None:
    sure, unsure = (Growth({1: Reach(40, 40)}, 32, 2.0, lambda rows: 0.01) for _ in range(2))
    grown(sure, SURE)
    grown(unsure, TWO_WAYS)
    assert depth(sure) > 2 * depth(unsure)
    assert len(unsure.trees[1]) > depth(unsure) + 5 and len(sure.trees[1]) == depth(sure)


def test_it_ends_where_a_round_makes_tokens_slower() -> None:
    rounds = {round_s: grown(Growth({1: Reach(64, 64)}, 64, 1.0, lambda rows, s=round_s: s), [(5, 0.9)], round_s) for round_s in (0.01, 0.1, 0.5, 1.0)}
    assert rounds[0.01] > rounds[0.1] > rounds[0.5] >= rounds[1.0] == 0, "a round as long as a sweep brings less than a token"


def test_it_goes_no_further_than_it_may() -> None:
    growth = Growth({1: Reach(3, 3)}, 64, 100.0, lambda rows: 0.01)
    grown(growth, SURE)
    assert depth(growth) == 3
    nothing = Growth({1: Reach(0, 0)}, 64, 100.0, lambda rows: 0.01)
    assert grown(nothing, SURE) == 0 and len(nothing.trees[1]) == 0


def test_the_likelier_text_of_two_is_gone_on_with_first() -> None:
    growth = Growth({1: Reach(9, 9), 2: Reach(9, 9)}, 64, 1.0, lambda rows: 0.15 * rows)
    look(growth, 1, ROOT, [(5, 0.2)])
    look(growth, 2, ROOT, [(5, 0.9)])
    assert growth.next() == [(2, 0)]


def test_what_is_not_verified_anyway_is_not_looked_behind() -> None:
    growth = Growth({1: Reach(40, 40)}, 4, 100.0, lambda rows: 0.001)
    grown(growth, TWO_WAYS)
    assert len(growth.trees[1]) < 40, "four nodes of the likeliest are enough"


def test_ahead_it_goes_on_behind_what_may_be_guessed_and_guesses_nothing_of_that() -> None:
    growth = Growth({1: Reach(4, 6)}, 64, 100.0, lambda rows: 0.01)
    grown(growth, SURE)
    assert depth(growth) == 4 and growth.next() == []
    rounds = 0
    while nodes := growth.ahead(1.0, growth._round_s):
        rounds += 1
        for text, node in nodes:
            look(growth, text, node, SURE)
    tree = growth.tree(1)
    assert rounds == 2 and max(tree.depth(node) for node in range(len(tree))) == 6, "the text ends there"
    assert depth(growth) == 4


def test_ahead_the_likeliest_come_first_and_as_many_as_make_the_most_of_the_time() -> None:
    flat = Growth({1: Reach(9, 9)}, 64, 1e-9, lambda rows: 0.01)
    look(flat, 1, ROOT, [(token, 0.1 + token / 100) for token in range(8)])
    assert flat.next() == [] and flat.ahead(1.0, flat._round_s) == [(1, node) for node in range(7, -1, -1)], "eight rows take no longer than one"
    each = Growth({1: Reach(9, 9)}, 64, 1e-9, lambda rows: 0.01 * rows)
    look(each, 1, ROOT, [(token, 0.1 + token / 100) for token in range(8)])
    assert each.ahead(1.0, each._round_s) == [(1, 7)], "eight rows take eight times as long"


def test_ahead_no_round_takes_longer_than_there_is_time() -> None:
    growth = Growth({1: Reach(9, 9)}, 64, 1e-9, lambda rows: 0.01 + 0.001 * rows)
    look(growth, 1, ROOT, [(token, 0.1) for token in range(8)])
    assert growth.ahead(0.0109, growth._round_s) == [] and len(growth.ahead(0.0121, growth._round_s)) == 2


def test_the_spread_is_how_far_two_models_are_apart() -> None:
    """Logits that are off by a normal error of one size: what it says of the first and second is what comes."""
    chance = random.Random(3)
    for sigma in (0.1, 1.0):
        spread, right, expected = Spread(), 0.0, 0.0
        for trial in range(4000):
            logits = sorted((chance.gauss(0, 3) for _ in range(8)), reverse=True)
            truth = [value + chance.gauss(0, sigma) for value in logits]
            gaps = [logits[0] - value for value in logits]
            if trial >= 2000:
                expected += spread.chances(gaps)[0]
                right += truth.index(max(truth)) == 0
            spread.learn(gaps, truth.index(max(truth)))
        assert abs(expected - right) / 2000 < 0.06, f"of errors of {sigma} it says {expected / 2000:.2f}, and {right / 2000:.2f} are right"


def test_where_the_draft_is_sure_the_whole_chance_is_its_first_candidate_s() -> None:
    chances = Spread().chances([0.0, 9.0, 9.5, 10.0])
    assert chances[0] > 0.998 and sum(chances) < 1
    unsure = Spread().chances([0.0, 0.1, 0.1, 0.1])
    assert sum(unsure) < 0.85, "others are as likely as the last one"


def test_a_token_that_is_no_candidate_is_learned_from() -> None:
    spread = Spread()
    before = spread.value
    for _ in range(200):
        spread.learn([0.0, 1.0, 2.0], None)
    assert spread.value > before and sum(spread.chances([0.0, 1.0])) < 0.8, "who misses is far off"
    for _ in range(2000):
        spread.learn([0.0, 1.0, 2.0], 0)
    assert spread.value <= before


def test_rounds_of_a_size_that_was_not_tried_are_thought_to_take_as_long_as_a_smaller_one() -> None:
    times = RoundTimes()
    assert times(1) == 0.05
    times.add(1, 0.1)
    times.add(1, 0.1)
    assert times(1) == 0.1 and 0.1 < times(4) < 0.12
    times.add(4, 0.3)
    assert times(4) == 0.3 and times(8) > 0.3 and times(2) < 0.12


def test_rounds_that_were_not_tried_are_like_others_and_those_that_took_too_long_are_tried_again_some_time() -> None:
    between = RoundTimes()
    ahead = RoundTimes(between)
    between.add(1, 0.003)
    assert ahead(1) == 0.003
    ahead.add(8, 0.4)
    assert ahead(1) == 0.4
    for _ in range(30):
        ahead.doubt()
    assert ahead(1) < 0.02
