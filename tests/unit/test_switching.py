"""Which model has the engine: few changes, nobody starves, what goes first goes first, and no turn is for nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from potatod.front.switching import HOLD, Demand, Turn, in_turn, next_model

PATIENCE_S = 600.0
LONG = 1e6


def busy(rank: int, *, for_s: float = LONG) -> Turn:
    """A turn with jobs, that began with nothing to read and has lasted for so long at LONG."""
    turn = Turn(LONG - for_s, cost_s=5.0)
    turn.look(LONG - for_s, rank, swept=True, running=(), reading=())
    return turn


def idle(rank: int, *, for_s: float) -> Turn:
    turn = busy(rank)
    turn.cost_s = 5.0
    turn.look(LONG - for_s, None, swept=True, running=(), reading=())
    return turn


def chosen(turn: Turn, *waiting: Demand) -> int | None:
    return next_model(turn, waiting, LONG, PATIENCE_S)


def test_a_model_keeps_the_engine_while_it_has_jobs() -> None:
    assert chosen(busy(0), Demand(1, 0, 10.0)) is None
    assert chosen(busy(1), Demand(1, 1, PATIENCE_S - 1)) is None
    assert chosen(busy(0)) is None
    assert chosen(Turn(0.0)) is None


def test_one_without_jobs_gives_it_to_whoever_waits_longest_of_those_that_go_first() -> None:
    assert chosen(Turn(0.0), Demand(1, 0, 1.0), Demand(2, 0, 2.0), Demand(3, 1, 99.0)) == 2


def test_whoever_has_waited_for_too_long_goes_before_all_others() -> None:
    late = Demand(1, 1, PATIENCE_S)
    for turn in (busy(0), busy(1), idle(0, for_s=0.0), idle(1, for_s=99.0)):
        assert chosen(turn, late, Demand(2, 0, 3.0)) == 1
    assert in_turn([Demand(2, 0, 3.0), late, Demand(3, 0, 2 * PATIENCE_S)], PATIENCE_S) == [3, 1, 2]


def test_what_goes_first_need_not_wait_for_what_goes_last() -> None:
    assert chosen(busy(1), Demand(1, 0, 0.0)) == 1
    assert chosen(busy(0), Demand(1, 1, 0.0)) is None


def test_who_asks_one_question_after_the_other_keeps_its_model_between_two_of_them() -> None:
    assert chosen(idle(0, for_s=4.9), Demand(1, 1, 10.0)) is None
    assert chosen(idle(0, for_s=5.0), Demand(1, 1, 10.0)) == 1
    assert chosen(idle(0, for_s=0.0), Demand(1, 0, 0.0)) == 1, "another who is as much in a hurry waits for no question that may never come"


@pytest.mark.parametrize("demand", [Demand(1, 0, 0.0), Demand(1, 1, 10 * PATIENCE_S)])
def test_a_turn_lasts_until_its_texts_are_read_again_and_four_times_as_long(demand: Demand) -> None:
    turn = Turn(0.0)
    turn.look(3.0, 1, swept=False, running=(), reading=())
    turn.look(5.0, 1, swept=True, running=(1, 2), reading=(1, 2))
    turn.look(7.0, 1, swept=True, running=(1, 2), reading=(2,))
    assert next_model(turn, [demand], LONG, PATIENCE_S) is None, "one of them is not read"
    turn.look(9.0, 1, swept=True, running=(1, 2, 3), reading=(3,))
    assert turn.cost_s == 9.0, "the third came later"
    assert next_model(turn, [demand], 9.0 + HOLD * 9.0 - 0.1, PATIENCE_S) is None
    assert next_model(turn, [demand], 9.0 + HOLD * 9.0, PATIENCE_S) == 1


@dataclass
class Model:
    """A machine that reads a text again in so many seconds at each turn, and then says a token a second for each job."""

    reads_s: float
    #: when each job comes: (second, rank); each has so many tokens
    comes: list[tuple[float, int]]
    tokens: int
    said: list[int] = field(default_factory=list)
    #: of the jobs, in the order in which they come: all before the first are over, those behind the last have not come
    _first: int = 0
    _last: int = 0

    def open(self, now: float) -> list[int]:
        while self._last < len(self.comes) and self.comes[self._last][0] <= now:
            self._last += 1
        while self._first < self._last and self.said[self._first] >= self.tokens:
            self._first += 1
        return [n for n in range(self._first, self._last) if self.said[n] < self.tokens]


def played(models: list[Model], until: float, load_s: float = 5.0, patience_s: float = PATIENCE_S) -> tuple[int, float]:
    """Changes, and the share of the time that went into beginnings."""
    for model in models:
        model.said = [0] * len(model.comes)
    now, at, changes, lost, swept, read = 0.0, 0, 0, 0.0, False, 0.0
    turn = Turn(0.0)
    since: dict[int, float | None] = dict.fromkeys(range(len(models)))
    while now < until:
        ranks = [min((model.comes[n][1] for n in model.open(now)), default=None) for model in models]
        for n, rank in enumerate(ranks):
            since[n] = None if rank is None or n == at else now if since[n] is None else since[n]
        ids = tuple(range(len(models[at].open(now))))
        turn.look(now, ranks[at], swept=swept, running=ids, reading=ids if read < models[at].reads_s else ())
        waiting = [Demand(n, rank, now - since[n]) for n, rank in enumerate(ranks) if n != at and rank is not None and since[n] is not None]  # type: ignore[operator]
        if (wanted := next_model(turn, waiting, now, patience_s)) is not None:
            since[at], at = (now if ranks[at] is not None else None), wanted
            turn, read, changes, lost, swept = Turn(now, turn.cost_s), 0.0, changes + 1, lost + load_s, False
            now += load_s
        elif not ids:
            now += 0.2
        elif read < models[at].reads_s:
            read, lost, now, swept = read + 1.0, lost + 1.0, now + 1.0, True
        else:
            for n in models[at].open(now):
                models[at].said[n] += 1
            now, swept = now + 1.0, True
    return changes, lost / until


def test_two_models_with_texts_that_take_longer_to_read_than_others_wait_both_come_to_their_end() -> None:
    models = [Model(700.0, [(0.0, 0)], 2000), Model(700.0, [(1.0, 0)], 2000)]
    changes, lost = played(models, 12_000.0)
    assert [model.said for model in models] == [[2000], [2000]]
    assert changes <= 4 and lost <= 0.25


def test_short_questions_to_two_models_do_not_starve_the_third() -> None:
    trickle = [(float(second), 0) for second in range(0, 7200, 15)]
    models = [Model(0.0, trickle, 15), Model(0.0, [(7.0, 1)], 100), Model(0.0, [(at + 7, 0) for at, _ in trickle], 15)]
    played(models, 7200.0)
    assert models[1].said == [100]


def test_one_who_asks_all_day_and_a_batch_share_the_machine_with_few_changes() -> None:
    models = [Model(0.0, [(2.2 * n, 0) for n in range(1500)], 2), Model(1.0, [(0.0, 1)], 100_000)]
    changes, lost = played(models, 3600.0)
    assert changes < 40 and lost < 0.1
    assert sum(said == 2 for said in models[0].said) > 1200
    assert models[1].said[0] > 100


@pytest.mark.parametrize("seed", range(10))
def test_with_jobs_for_all_of_them_all_the_time_little_goes_into_beginnings_and_all_get_on(seed: int) -> None:
    chance = random.Random(seed)
    models = [
        Model(chance.uniform(0.0, 60.0), sorted((chance.uniform(0.0, 2000.0), chance.choice([0, 1])) for _ in range(6)), chance.randrange(20, 200))
        for _ in range(3)
    ]
    _, lost = played(models, 8000.0, patience_s=chance.choice([1.0, 60.0, 600.0]))
    assert lost < 0.25
    assert all(said == model.tokens for model in models for said in model.said)
