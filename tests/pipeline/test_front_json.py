"""Answers that keep to a schema through a whole front: with guesses and without, after a kill, beside others; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from .front_harness import Front, Heard
from .test_front_guessing import Guesses
from .test_front_logprobs import told

StartFront = Callable[..., Front]
#: Ten short texts, so that much is said and little of it is certain.
TEXTS = json.dumps({"type": "array", "items": {"type": "string", "minLength": 2, "maxLength": 4}, "minItems": 10, "maxItems": 10})
NO_BLANKS = tuple((ord(blank), -100.0) for blank in "\t\n\r ")
GREEDY: dict[str, Any] = {"json_schema": TEXTS, "logit_bias": NO_BLANKS, "frequency_penalty": 0.3, "max_tokens": 240}
SAMPLED: dict[str, Any] = {**GREEDY, "temperature": 1.5, "seed": 5}


def check(text: str) -> None:
    found = json.loads(text)
    assert len(found) == 10 and all(isinstance(each, str) and 2 <= len(each) <= 4 for each in found)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("prompt", ["?aaaa|", '["abcd","ef"]|', '"ab",|'])
def test_guesses_change_no_text_that_keeps_to_a_schema(start: StartFront, prompt: str, options: dict[str, Any]) -> None:
    said = []
    for speculation in (True, False):
        front = start(speculation=speculation, draft=speculation, max_context=512)
        worker = front.engine_up(drafter=Guesses())
        heard = front.client().answer(prompt, top_logprobs=1, **options)
        assert worker.wrong is None
        assert heard.last.reason == "stop"
        said.append((heard.text, heard.token_ids, told(heard)))
        if speculation:
            assert heard.last.drafted_tokens > 0
        front.close()
    assert said[0] == said[1]
    check(said[0][0])


def test_a_model_that_says_what_it_should_is_guessed_right_and_ends_with_the_last_bracket(start: StartFront) -> None:
    front = start(draft=True, max_context=512)
    worker = front.engine_up(drafter=Guesses())
    whole = '{"name":"ab","list":[1,22,333,22,1]}'
    heard = front.client().answer(whole + "|", json_object=True)
    assert (heard.text, heard.last.reason, heard.last.completion_tokens) == (whole, "stop", len(whole))
    assert heard.last.accepted_tokens > 5
    assert worker.wrong is None


def test_an_answer_goes_on_with_the_same_text_when_the_front_is_killed(start: StartFront) -> None:
    first = start(speculation=False)
    first.engine_up(delay_s=0.01)
    whole = first.client().answer("?xyz|", **SAMPLED).text
    client = first.client()
    client.ask("?xyz|", **SAMPLED)
    heard = client.hear(Heard(), "Piece", 9)
    job = heard.of("Accepted")[0].job
    first.process.kill()
    first.process.wait()
    first.close()
    second = start()
    second.engine_up()
    again = second.client().attach(job)
    assert again.text == whole and again.last.reason == "stop"
    check(whole)


def test_it_may_end_for_want_of_tokens_and_others_beside_it_are_free(start: StartFront) -> None:
    front = start()
    front.engine_up()
    one, other = front.client(), front.client()
    one.ask("?xyz|", **{**SAMPLED, "max_tokens": 9})
    other.ask("abc|", max_tokens=9)
    heard = one.hear(Heard(), "Finished")
    assert (heard.last.reason, heard.last.completion_tokens) == ("length", 9) and heard.text.startswith('["')
    assert other.hear(Heard(), "Finished").text == "abcabcabc"


@pytest.mark.parametrize(
    ("schema", "why"),
    [("{", "not JSON"), ('{"type": "objekt"}', "objekt"), ('{"type": "integer", "multipleOf": 9999991}', "make it simpler")],
)
def test_a_schema_that_cannot_be_kept_to_is_refused_at_once_and_the_front_goes_on(start: StartFront, schema: str, why: str) -> None:
    front = start()
    front.engine_up()
    client = front.client()
    client.ask("abc|", json_schema=schema)
    refused = client.receive()
    assert refused.code == "bad_request" and why in refused.message
    assert client.answer("abc|", max_tokens=3).text == "abc"
