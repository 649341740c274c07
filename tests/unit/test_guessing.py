"""What the draft model is told of texts, and when."""

from __future__ import annotations

import pytest

from potatod.front.cost import CostModel
from potatod.front.guessing import LONGEST_DRAFTS, Guessing
from potatod.front.sequence import Sequence
from potatod.messages import Draft, Drafted, DraftText


class Told:
    """A draft model that is always asked."""

    def ask(self, epoch: int, texts: list[DraftText], nodes: int, sweep_s: float, spare_s: float) -> Draft:
        return Draft(epoch, 1, tuple(texts), nodes, 64, sweep_s, spare_s)

    def told(self, drafted: Drafted) -> None:
        pass


def guessing(stream_s: float) -> Guessing:
    return Guessing(Told(), CostModel(lambda tokens: 0.5 + 0.01 * tokens, stream_s), None, 9)  # type: ignore[arg-type]


def decoding(id: int, tokens: int, most: int, **how: bool) -> Sequence:
    sequence = Sequence(id, list(range(tokens)), most=most, **how)
    sequence.held = tokens - 1
    return sequence


@pytest.mark.parametrize(("stream_s", "spare_s", "told"), [(2.0, 1.09, [1, 2, 3]), (0.1, 0.0, [1, 2])], ids=["weights stream", "all resident"])
def test_a_prompt_that_has_not_begun_is_read_where_weights_are_waited_for(stream_s: float, spare_s: float, told: list[int]) -> None:
    begun, new = Sequence(2, list(range(50)), most=400), Sequence(3, list(range(30)), most=400)
    begun.held = 30
    ask = guessing(stream_s).consult(1, [decoding(1, 20, 400), begun, new], prefill=40)
    assert ask is not None and ask.spare_s == pytest.approx(spare_s)
    assert [text.sequence for text in ask.texts] == told
    assert [text.most > 0 for text in ask.texts] == [True, False, False][: len(told)]
    lengths = [20, 50, 20] if spare_s else [20, 30]
    assert [len(text.tokens) for text in ask.texts] == lengths, "no more of prompts than is held, or will be behind the sweep"


def test_nothing_is_asked_where_nothing_has_begun_and_nothing_streams() -> None:
    assert guessing(0.1).consult(1, [Sequence(1, [1, 2, 3], most=9)], prefill=40) is None


def test_guesses_go_to_the_end_of_a_text_as_far_as_a_sweep_takes_them_and_what_is_looked_at_ahead_to_its_end() -> None:
    ask = guessing(2.0).consult(1, [decoding(1, 20, 400), decoding(2, 20, 30), decoding(3, 20, 400, needs_logits=True)], prefill=0)
    assert ask is not None
    assert [(text.most, text.room) for text in ask.texts] == [(LONGEST_DRAFTS, 379), (9, 9), (9, 379)]
