"""How many tokens are guessed for whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from potatod.front.speculation import LOOKUP, Speculation
from potatod.messages import Draft, Drafted, DraftText, Drawn, Guessed
from potatod.trees import Tree

SAID = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4]
NEW = [11, 12, 13, 14]


def free(_: int) -> float:
    return 1.0


def dear(more: int) -> float:
    """A row costs as much as all weights."""
    return 1.0 + more


def guessed(
    speculation: Speculation, texts: Sequence[tuple[int, Sequence[int], int]], most: int, sweep_s: Callable[[int], float]
) -> dict[int, list[int]]:
    """Where all guesses of a text are one path."""
    trees = speculation.draft(texts, most, sweep_s)
    assert not any(tree.branches() for tree in trees.values())
    return {id: tree.trunk() for id, tree in trees.items()}


def verified(speculation: Speculation, id: int, draft: list[int], accepted: int) -> None:
    tree = Tree()
    tree.add_path(draft, [0.0] * len(draft), LOOKUP)
    speculation.verified(id, tree, draft[:accepted])


def test_where_rows_are_free_as_much_is_guessed_as_may_be_right() -> None:
    speculation = Speculation(5)
    assert guessed(speculation, [(1, SAID, 9), (2, NEW, 9)], 64, free) == {1: [5, 6, 7, 8, 9]}
    assert guessed(speculation, [(1, SAID, 3)], 64, free) == {1: [5, 6, 7]}, "no more than there is room for"
    assert guessed(speculation, [(1, SAID, 9)], 2, free) == {1: [5, 6]}


def test_where_a_row_costs_a_sweep_nothing_is_guessed() -> None:
    assert guessed(Speculation(5), [(1, SAID, 9)], 64, dear) == {}


def test_the_likeliest_guesses_of_all_texts_come_first() -> None:
    speculation = Speculation(8)
    weaker = [1, 2, 7, 7, 1, 2]
    drafts = guessed(speculation, [(1, weaker, 9), (2, SAID, 9)], 4, free)
    assert len(drafts[2]) > len(drafts.get(1, [])) and sum(map(len, drafts.values())) == 4


def test_what_was_never_right_is_guessed_no_more_and_what_was_is_guessed_again() -> None:
    speculation = Speculation(5)
    for _ in range(400):
        if not (draft := guessed(speculation, [(1, SAID, 9)], 64, lambda more: 1 + 0.2 * more)):
            break
        verified(speculation, 1, draft[1], 0)
    else:
        raise AssertionError("it goes on guessing")
    other = Speculation(5)
    for _ in range(50):
        draft = guessed(other, [(1, SAID, 9)], 64, lambda more: 1 + 0.2 * more)
        verified(other, 1, draft[1], len(draft[1]))
    assert len(draft[1]) == 5
    assert other.counts.drafted == other.counts.accepted > 200


def test_as_many_are_guessed_as_make_tokens_per_second_the_most() -> None:
    speculation = Speculation(8)
    for _ in range(200):  # four of five are right
        draft = guessed(speculation, [(1, SAID, 20)], 64, free)[1]
        verified(speculation, 1, draft, 4)
        guessed(speculation, [(1, SAID, 20)], 64, free)

    def step(more: int) -> float:
        return 1.0 if more <= 3 else 3.0

    assert len(guessed(speculation, [(1, SAID, 20)], 64, step)[1]) == 3, "the fourth would make the sweep three times as long"


def test_a_question_that_is_asked_again_is_guessed_from_its_answer() -> None:
    speculation = Speculation(5)
    question, answer = list(range(20, 40)), [15, 16, 17, 18, 19]
    speculation.said(question + answer)
    assert guessed(speculation, [(2, question, 9)], 64, free) == {2: answer}
    assert speculation.verified(2, speculation._texts[2].tree, answer) == {LOOKUP: (5, 5)}
    assert guessed(Speculation(5), [(2, question, 9)], 64, free) == {}
    assert guessed(Speculation(5, lookup=False), [(2, question, 9)], 64, free) == {}


def test_what_other_texts_said_is_guessed_no_more_where_it_is_never_right() -> None:
    speculation = Speculation(5)
    speculation.said([*NEW, 15, 16, 17, 18, 19])
    for id in range(2, 200):
        tree = speculation.draft([(id, NEW, 9)], 64, free).get(id)
        if tree is None:
            return
        speculation.verified(id, tree, [])
        speculation.forget(id)
    raise AssertionError("it is guessed on and on")


class TestDraftModel:
    TEXT = DraftText(1, tuple(NEW), 30, 90, Drawn())

    def asked(self, speculation: Speculation, sweep_s: float = 1.0) -> Draft:
        draft = speculation.ask(1, [self.TEXT], 64, sweep_s, 0.0)
        assert draft is not None
        return draft

    def test_its_trees_and_what_was_looked_up_are_one_tree(self) -> None:
        speculation = Speculation(5, draft=True)
        draft = self.asked(speculation)
        speculation.told(Drafted(1, draft.number, (Guessed(1, (5, 6, 8), (-1, 0, -1), (0.9, 0.8, 0.1)),), 0.1))
        tree = speculation.draft([(1, SAID, 9)], 64, free)[1]
        assert tree.trunk() == [5, 6, 7, 8, 9] and [branch.tokens for branch in tree.branches()] == [(8,)]
        assert tree.sources[0] == {"lookup", "draft"}
        assert speculation.verified(1, tree, [5, 6]) == {"lookup": (5, 2), "draft": (3, 2)}
        assert (speculation.counts.drafted, speculation.counts.accepted) == (6, 2)
        assert speculation.by_source["draft"].accepted == 2

    def test_guesses_go_no_further_than_is_configured_and_reading_takes_half_a_sweep(self) -> None:
        speculation = Speculation(5, draft=True)
        draft = self.asked(speculation)
        assert (draft.texts[0].most, draft.texts[0].room) == (5, 90) and draft.reads == 64
        speculation.told(Drafted(1, draft.number, (), 2.0, 2.0, 200))
        assert self.asked(speculation, 10.0).reads == 500

    def test_one_that_does_not_pay_is_asked_again_later(self) -> None:
        speculation, asked = Speculation(5, draft=True), 0
        for _ in range(200):
            if (draft := speculation.ask(1, [self.TEXT], 64, 1.0, 0.0)) is not None:
                asked += 1
                speculation.told(Drafted(1, draft.number, (Guessed(1, (5,), (-1,), (0.5,)),), 0.5))
                speculation.verified(1, Tree(), [])
        assert 12 <= asked <= 36

    def test_one_that_pays_goes_on(self) -> None:
        speculation = Speculation(5, lookup=False, draft=True)
        for _ in range(100):
            draft = self.asked(speculation)
            speculation.told(Drafted(1, draft.number, (Guessed(1, (5,), (-1,), (0.5,)),), 0.5))
            speculation.verified(1, speculation.draft([(1, SAID, 9)], 64, free)[1], [5])

    def test_what_was_looked_up_is_not_to_its_credit(self) -> None:
        speculation, asked = Speculation(5, draft=True), 0
        for _ in range(200):
            draft = speculation.ask(1, [self.TEXT], 64, 1.0, 0.0)
            if draft is not None:
                asked += 1
                speculation.told(Drafted(1, draft.number, (Guessed(1, (9,), (-1,), (0.9,)),), 1.0))
            speculation.verified(1, speculation.draft([(1, SAID, 9)], 64, free)[1], [5, 6, 7])
        assert 12 <= asked <= 36, "lookup's guesses are right, its own are not"

    def test_one_that_has_failed_is_asked_again_when_the_engine_was_started_anew(self) -> None:
        speculation = Speculation(5, draft=True)
        speculation.told(Drafted(1, self.asked(speculation).number, (), 0.0, failed="it broke"))
        speculation.restarted()
        assert self.asked(speculation) and not speculation.failed

    def test_one_that_has_failed_is_not_asked(self) -> None:
        speculation = Speculation(5, draft=True)
        speculation.told(Drafted(1, self.asked(speculation).number, (), 0.0, failed="it broke"))
        assert speculation.ask(1, [self.TEXT], 64, 1.0, 0.0) is None and speculation.failed == "it broke"
