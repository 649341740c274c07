"""Log probabilities of an answer's tokens: those of the logits, one a token, the same with guesses, for whoever comes later, and after a kill."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from potato_client.protocol import TokenLogprob
from potatod.sampling.logprobs import logprobs

from .front_harness import END, Front, Heard, logits
from .test_front_guessing import Guesses

StartFront = Callable[..., Front]


def told(heard: Heard) -> list[TokenLogprob]:
    """Checks that there is one for each token of each piece."""
    for piece in heard.of("Piece"):
        assert tuple(one.token_id for one in piece.logprobs) == piece.token_ids
    return [one for piece in heard.of("Piece") for one in piece.logprobs]


def expected(prompt: str, ids: list[int], count: int) -> list[tuple[float, list[tuple[int, float]]]]:
    tokens, found = list(prompt.encode()), []
    for token in ids:
        one = logprobs(logits(tokens), token, count)
        found.append((one.sampled, list(one.likeliest)))
        tokens.append(token)
    return found


PENALISED = {"frequency_penalty": 1.5, "logit_bias": ((ord("q"), 3.0),)}


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3, "top_k": 5}, PENALISED], ids=["greedy", "sampled", "penalised"])
@pytest.mark.parametrize("prompt", ["abcdefgh|", "?aaaa|"])
def test_they_are_those_of_the_raw_logits_with_and_without_guesses(start: StartFront, prompt: str, options: dict[str, Any]) -> None:
    found = []
    for speculation in (True, False):
        front = start(speculation=speculation, draft=speculation and prompt[0] != "?", max_context=256)
        front.engine_up(drafter=Guesses())
        heard = front.client().answer(prompt, max_tokens=60, top_logprobs=4, **options)
        found.append(told(heard))
        front.close()
    assert found[0] == found[1]
    assert len(found[0]) == 60
    raw = [(one.logprob, [(other.token_id, other.logprob) for other in one.alternatives]) for one in found[0]]
    assert raw == expected(prompt, [one.token_id for one in found[0]], 4)
    assert all(one.text_bytes == bytes([one.token_id]) for one in found[0])


def test_asking_for_them_changes_no_text_and_who_asks_for_none_gets_none(start: StartFront) -> None:
    front = start()
    worker = front.engine_up()
    without = front.client().answer("abcab|", max_tokens=20)
    assert all(step.want != "logits" for sweep in worker.sweeps for step in sweep.steps)
    assert all(piece.logprobs == () for piece in without.of("Piece"))
    own = front.client().answer("abcab|", max_tokens=20, top_logprobs=0)
    assert own.text == without.text
    assert [(one.token_id, one.alternatives) for one in told(own)] == [(token, ()) for token in without.token_ids]


def test_text_that_is_held_back_takes_the_log_probabilities_of_its_tokens_with_it(start: StartFront) -> None:
    front = start(max_context=512)
    front.engine_up()
    heard = front.client().answer("Zwölf 東京 🙂$|", top_logprobs=1)
    assert heard.text == "Zwölf 東京 🙂"
    assert b"".join(one.text_bytes for one in told(heard)) == heard.text.encode()
    held = front.client().answer("abcdab|", max_tokens=40, stop=("dabab", "cx"), top_logprobs=1)
    assert (held.text, held.last.reason) == ("abc", "stop")
    assert b"".join(one.text_bytes for one in told(held)) == b"abc"


def test_all_of_a_vocabulary_s_tokens_can_be_alternatives_special_ones_too(start: StartFront) -> None:
    front = start()
    front.engine_up()
    (one,) = told(front.client().answer("ab$|", max_tokens=1, top_logprobs=20))
    assert one.text_bytes == b"a" and one.alternatives[0].token_id == one.token_id and len(one.alternatives) == 20
    last = told(front.client().answer("ab$|", max_tokens=3, logit_bias=((END, -100.0),), top_logprobs=2))[-1]
    assert (last.alternatives[0].token_id, last.alternatives[0].text_bytes) == (END, b"<end>")
    assert last.token_id != END and last.logprob < -40


def test_they_are_the_same_after_a_kill_for_whoever_attaches_and_where_a_client_goes_on(start: StartFront) -> None:
    first = start(speculation=False)
    first.engine_up(delay_s=0.01)
    options: dict[str, Any] = {"temperature": 0.9, "seed": 11, "top_logprobs": 3, "max_tokens": 60}
    whole = told(first.client().answer("?xyz|", **options))
    client = first.client()
    client.ask("?xyz|", **options)
    heard = client.hear(Heard(), "Piece", 7)
    job, before = heard.of("Accepted")[0].job, told(heard)
    first.process.kill()
    first.process.wait()
    first.close()
    second = start(speculation=False)
    second.engine_up(delay_s=0.01)
    again = second.client().attach(job)
    assert told(again) == whole
    assert whole[: len(before)] == before
    rest = second.client().attach(job, tokens=len(before), text_chars=len(before))
    assert before + told(rest) == whole
    second.close()
    third = start(checksum="another model")
    assert told(third.client().attach(job)) == whole, "they outlive the model that is served"


def test_whoever_attaches_to_a_running_job_gets_those_of_what_was_said_already(start: StartFront) -> None:
    front = start(max_context=1024)
    front.engine_up(delay_s=0.005)
    client = front.client()
    client.ask("abcdefgh|", max_tokens=700, top_logprobs=2)
    heard = client.hear(Heard(), "Piece", 5)
    late = front.client().attach(heard.of("Accepted")[0].job)
    client.hear(heard, "Finished")
    assert told(late) == told(heard)
    assert len(told(late)) == 700
    assert max(len(piece.token_ids) for piece in late.of("Piece")) <= 500
    assert all(math.isfinite(one.logprob) and one.logprob <= 0 for one in told(late))
