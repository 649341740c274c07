"""Answers keep to a schema, whatever the logits and the tokenizer, and with thoughts before them; and some schemas are refused at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLParserLimits
from schemas import SCHEMAS, keeps_to
from vocabularies import write

from potatod.errors import InternalError
from potatod.front import grammar
from potatod.front.detokenizer import Detokenizer
from potatod.front.grammar import Grammars
from potatod.front.reasoning import Marks, Reasoning
from potatod.front.refusal import Refusal
from potatod.front.stops import Stops
from potatod.front.text import Text
from potatod.front.tokenizer import Tokenizer
from potatod.sampling.params import ANY_OBJECT, Sampling
from potatod.sampling.sampler import sample

#: Those whose tokens can be any text, with bytes for what has none of its own.
KINDS = ["gemma", "gpt2", "llama2", "llama3"]
#: Tokens that only the model has.
BEYOND = 5
MARKS = Marks("<think>", "</think>")
ONE = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}'


class Model:
    """A tokenizer, an end of text, and logits by chance."""

    def __init__(self, tokenizer: Tokenizer, marks: Marks | None = None, *, ends: bool = True) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = tokenizer.vocabulary_size + BEYOND
        self.end = max(tokenizer.special_ids)
        self.grammars = Grammars(tokenizer, self.vocabulary, frozenset({self.end} if ends else ()), marks, clock=lambda: 0.0)

    def text(self, schema: str, tail: str = "", chat: bool = False) -> Text:
        marks = MARKS if chat else None
        constraint = self.grammars.constraint(schema, chat, tail.endswith(MARKS.opening))
        return Text(Detokenizer(self.tokenizer), Stops(()), Reasoning(marks, tail), constraint)

    def answer(self, schema: str, seed: int, temperature: float = 1.0, most: int = 600) -> tuple[list[int], str]:
        """As the front makes one; a text without an end within ``most`` tokens fails."""
        text, ids, shown, random = self.text(schema), [0], "", np.random.default_rng(seed)
        while not text.complete:
            allowed = text.allowed()
            assert allowed is not None and allowed.shape == (self.vocabulary,)
            if not allowed.any():
                break
            logits = random.normal(0, 4, self.vocabulary).astype(np.float32)
            token = sample(logits, ids, Sampling(temperature, seed=seed, frequency_penalty=0.5), 0, len(ids), 1, allowed)
            if token == self.end:
                break
            ids.append(token)
            assert len(ids) < most
            shown += text.push(token).text
        return ids[1:], shown + text.finish().text


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(Tokenizer.load(write(request.param, tmp_path_factory.mktemp(request.param))))


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(Tokenizer.load(write("llama3", tmp_path_factory.mktemp("thinker"))), MARKS)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(SCHEMAS, st.integers(0, 1 << 20), st.sampled_from([0.0, 1.0, 3.0]))
def test_whatever_the_logits_the_answer_is_json_that_keeps_to_its_schema(model: Model, schema: dict[str, Any], seed: int, temperature: float) -> None:
    _, shown = model.answer(json.dumps(schema, ensure_ascii=False), seed, temperature)
    assert keeps_to(json.loads(shown), schema), shown


@settings(deadline=None, max_examples=25)
@given(SCHEMAS, st.integers(0, 1 << 20))
def test_what_may_come_is_the_same_when_the_tokens_are_pushed_anew(model: Model, schema: dict[str, Any], seed: int) -> None:
    text = json.dumps(schema)
    step_by_step, random = model.grammars.constraint(text, False, False), np.random.default_rng(seed)
    ids: list[int] = []
    while not step_by_step.complete and len(ids) < 40:
        allowed = step_by_step.allowed()
        anew = model.grammars.constraint(text, False, False)
        for token in ids:
            anew.push(token)
        assert (anew.allowed() == allowed).all() and anew.complete == step_by_step.complete
        token = int(random.choice(np.flatnonzero(allowed)))
        if token == model.end:
            break
        ids.append(token)
        step_by_step.push(token)


def test_after_the_last_bracket_nothing_comes_but_an_end_of_text(model: Model) -> None:
    text, constraint = '{"a": 1}', model.grammars.constraint(ONE, False, False)
    for token in _exactly(model, text):
        assert not constraint.complete
        constraint.push(token)
    assert constraint.complete
    assert np.flatnonzero(constraint.allowed()).tolist() == [model.end]


def test_an_answer_that_could_go_on_may_end_only_where_it_is_whole(model: Model) -> None:
    constraint = model.grammars.constraint('{"type": "array", "items": {"type": "integer"}, "minItems": 1}', False, False)
    for token in _exactly(model, "[12"):
        constraint.push(token)
        assert not constraint.allowed()[model.end]
    number = model.grammars.constraint('{"type": "integer"}', False, False)
    for token in _exactly(model, "12"):
        number.push(token)
    assert number.allowed()[model.end] and number.allowed().sum() > 1 and not number.complete


def test_a_model_without_an_end_of_text_ends_with_its_object(tmp_path: Path) -> None:
    model = Model(Tokenizer.load(write("llama3", tmp_path)), ends=False)
    _, shown = model.answer(ONE, 3)
    assert keeps_to(json.loads(shown)["a"], {"type": "integer", "minimum": -(10**99), "maximum": 10**99})
    constraint = model.grammars.constraint(ONE, False, False)
    for token in _exactly(model, '{"a":1}'):
        constraint.push(token)
    assert constraint.complete and not constraint.allowed().any()


def test_blanks_between_words_have_an_end(model: Model) -> None:
    """At the end of a long row of them another one may not come."""
    constraint = model.grammars.constraint(ONE, False, False)
    blank = _exactly(model, "\n")
    for token in (*_exactly(model, "{"), *blank * 64):
        assert constraint.allowed()[token]
        constraint.push(token)
    assert not constraint.allowed()[blank[0]]


def _exactly(model: Model, text: str) -> list[int]:
    """Tokens of a character each, with these bytes."""
    bytes_of = Detokenizer(model.tokenizer).bytes_of
    ids = {bytes_of(id): id for id in range(model.tokenizer.vocabulary_size) if id not in model.tokenizer.special_ids}
    return [ids[char.encode()] for char in text]


# thoughts


@pytest.mark.parametrize(
    ("tail", "said", "thought"),
    [
        ("<think>", 'so { "a" </thin </think>\n\n{"a": 1}', 'so { "a" </thin'),
        ("<think>", '</think>{"a": 1}', ""),
        ("", '{"a": 1}', ""),
        ("", '\n<think>hm</think>\n{"a": 1}', "hm"),
        ("<think>\n\n</think>", '{"a": 1}', ""),
    ],
)
def test_a_model_thinks_freely_and_then_keeps_to_the_schema(thinker: Model, tail: str, said: str, thought: str) -> None:
    text, answer, reasoning = thinker.text(ONE, tail, chat=True), "", ""
    for token in _exactly(thinker, said):
        allowed = text.allowed()
        assert allowed is not None and allowed[token] and not text.complete
        shown = text.push(token)
        answer, reasoning = answer + shown.text, reasoning + shown.reasoning
    assert text.complete
    last = text.finish()
    assert (answer + last.text, reasoning + last.reasoning) == ('{"a": 1}', thought)


@pytest.mark.parametrize(("tail", "said"), [("<think>", "so </think> x"), ("", "so"), ("", "<think>a</think>b"), ("<think>", "a</think></think>")])
def test_nothing_but_the_schema_follows_a_thought(thinker: Model, tail: str, said: str) -> None:
    text, *ids = thinker.text(ONE, tail, chat=True), *_exactly(thinker, said)
    for token in ids[:-1]:
        allowed = text.allowed()
        if allowed is not None and not allowed[token]:
            return
        text.push(token)
    allowed = text.allowed()
    assert allowed is not None and not allowed[ids[-1]]


def test_a_text_does_not_end_inside_of_a_thought(thinker: Model) -> None:
    text = thinker.text(ONE, "<think>", chat=True)
    for token in _exactly(thinker, "hm"):
        text.push(token)
    allowed = text.allowed()
    assert allowed is not None and not allowed[thinker.end] and allowed.sum() > thinker.tokenizer.vocabulary_size / 2


def test_to_a_raw_prompt_there_are_no_thoughts(thinker: Model) -> None:
    assert np.flatnonzero(thinker.grammars.constraint(ONE, False, False).allowed()).tolist() == _exactly(thinker, "{")


# what is refused


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ("{", "not JSON"),
        ("[" * 60_000, "not JSON"),
        ("true", "not a JSON object"),
        ('"object"', "not a JSON object"),
        ('{"type": "objekt"}', "objekt"),
        ('{"minimum": NaN, "type": "number"}', "cannot be kept to"),
        ('{"not": {"type": "string"}}', "not"),
        ('{"$ref": "http://127.0.0.1:9/schema.json"}', "does not fetch"),
        ('{"$ref": "file:///etc/passwd"}', "does not fetch"),
        ('{"type": "string", "pattern": "(?=a)b"}', "look-around"),
        ('{"type": "integer", "multipleOf": 9999991}', "make it simpler"),
        (json.dumps({"allOf": [{"type": "string", "pattern": f".*a.{{{number}}}b.*"} for number in range(8, 40)]}), "make it simpler"),
        ('{"type": "string", "minLength": 5, "maxLength": 3}', "nsatisfiable"),
    ],
    ids=lambda value: value[:24],
)
def test_a_schema_that_cannot_be_kept_to_is_refused_with_its_reason(thinker: Model, schema: str, why: str) -> None:
    for _ in range(2):  # the second time it is remembered
        with pytest.raises(Refusal, match="json_schema cannot be kept to") as told:
            thinker.grammars.check(schema)
        assert why in told.value.message and told.value.code == "bad_request" and len(told.value.message) <= 300


def test_a_long_schema_of_many_characters_beyond_ascii_arrives_whole(thinker: Model) -> None:
    thinker.grammars.check(json.dumps({"enum": ["🙂" * 60_000]}, ensure_ascii=False))


def _properties(each: Any, count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": each(number) for number in range(count)}}


HOSTILE = {
    "many optional properties": _properties(lambda number: {}, 4000),
    "many ranges": _properties(lambda number: {"type": "integer", "minimum": number * 1234567, "maximum": 10**17 + number * 7654321}, 700),
    "multiples in ranges": _properties(lambda number: {"type": "integer", "multipleOf": 9240, "minimum": number, "maximum": 10**17 + number}, 600),
    "a long list": {"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000},
    "a long string": {"type": "string", "minLength": 1_000_000, "maxLength": 1_000_001},
    "a pattern that grows": {"type": "string", "pattern": ".{1,5000}.*a.{1000}"},
    "patterns in patterns": {"type": "string", "pattern": "((((a{1,100}){1,100}){1,100}){1,100})"},
    "patterns together": {"allOf": [{"type": "string", "pattern": f".*a.{{{number}}}b.*"} for number in range(8, 40)]},
    "choices of choices": {"allOf": [{"anyOf": [_properties(lambda n, i=i, j=j: {"const": [i, j]}, 2) for j in range(6)]} for i in range(12)]},
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "many values": {"enum": [{"a": number, "b": [number, str(number)]} for number in range(1900)]},
}


@pytest.mark.slow
@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_schema_is_refused_or_taken_within_seconds_and_its_tokens_do_not_wait(thinker: Model, schema: dict[str, Any]) -> None:
    """Measured alone: two seconds to refuse, less to compile, and a tenth for a token. Machines that test are busy."""
    model = thinker
    text = json.dumps(schema)
    assert len(text) <= 65_536
    began = time.monotonic()
    try:
        model.grammars.check(text)
        constraint, random = model.grammars.constraint(text, False, False), np.random.default_rng(0)
        for _ in range(20):
            if constraint.complete:
                break
            constraint.push(int(random.choice(np.flatnonzero(constraint.allowed()))))
    except Refusal:
        pass
    assert time.monotonic() - began < 15


def test_a_schema_that_becomes_too_much_on_its_way_ends_its_answer_with_a_reason(thinker: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potatod.front.grammar.limits", lambda: LLParserLimits(step_lexer_fuel=500, precompute_large_lexemes=False))
    constraint, random = thinker.grammars.constraint('{"type": "string", "pattern": ".{1,5000}.*a.{1000}"}', False, False), np.random.default_rng(0)

    def goes_on() -> None:
        for _ in range(50):
            constraint.push(int(random.choice(np.flatnonzero(constraint.allowed()))))

    with pytest.raises(Refusal, match=r"json_schema cannot be kept to here: .*lexer error") as told:
        goes_on()
    assert told.value.code == "bad_request"


# the sampler


def test_what_is_not_allowed_is_not_drawn_however_likely() -> None:
    logits, allowed = np.array([9, 5, 7, 1], dtype=np.float32), np.array([False, True, False, True])
    assert sample(logits, [], Sampling(), 0, 0, 0, allowed) == 1
    drawn = {sample(logits, [], Sampling(1.0, seed=3, top_k=3, top_p=0.999), 0, position, 0, allowed) for position in range(300)}
    assert drawn == {1, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_all_that_is_allowed_is_impossible_there_is_no_token(temperature: float) -> None:
    logits, allowed = np.array([1, -np.inf], dtype=np.float32), np.array([False, True])
    with pytest.raises(InternalError, match="-inf"):
        sample(logits, [], Sampling(temperature), 0, 0, 0, allowed)


def test_a_front_that_nobody_asks_for_json_does_not_load_it() -> None:
    code = "import sys, potatod.front.front; sys.exit(any(name in sys.modules for name in ('llguidance', 'torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_nothing_is_compiled_before_it_is_needed(model: Model) -> None:
    constraint = model.grammars.constraint(ANY_OBJECT, False, False)
    constraint.push(5)
    assert constraint._matcher is None


def test_trying_out_schemas_takes_no_more_than_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever asks for one new schema after the other waits, and nobody else does."""
    now = 0.0

    def slow(schema: str) -> str:
        nonlocal now
        now += 2.0
        return ""

    monkeypatch.setattr(grammar, "why_not", slow)
    write("gpt2", tmp_path)
    grammars = Grammars(Tokenizer.load(tmp_path), 10, frozenset(), None, clock=lambda: now)
    grammars.check("1")
    grammars.check("2")
    with pytest.raises(Refusal, match="ask again in 17 s") as refused:
        grammars.check("3")
    assert refused.value.code == "queue_full"
    now += 17.0
    grammars.check("3")
