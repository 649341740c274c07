"""Which values hold for a request: request over [sampling] over generation_config.json over greedy."""

from __future__ import annotations

from typing import Any

import pytest

from potato_client.question import Options
from potatod.errors import ModelDataError
from potatod.sampling.params import ANY_OBJECT, Sampling, of_model, resolve
from potatod.sections import Sampling as Defaults

SAMPLES = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.05}


def _resolve(options: Options | None = None, defaults: Defaults | None = None, **model: Any) -> Sampling:
    return resolve(options or Options(), defaults or Defaults(), model, drawn_seed=99)


def test_with_nothing_said_anywhere_sampling_is_greedy_and_neutral() -> None:
    assert _resolve() == Sampling(seed=99)
    assert _resolve().greedy


def test_a_model_that_samples_gives_its_own_values() -> None:
    assert _resolve(**SAMPLES) == Sampling(0.6, 20, 0.95, 0.1, 1.05, seed=99)


def test_a_model_that_samples_without_values_gets_those_of_transformers() -> None:
    assert _resolve(do_sample=True, top_k=None) == Sampling(temperature=1.0, top_k=50, top_p=1.0, seed=99)


@pytest.mark.parametrize("do_sample", [None, False])
def test_a_model_that_does_not_sample_is_greedy_whatever_else_it_says(do_sample: bool | None) -> None:
    assert _resolve(**{**SAMPLES, "do_sample": do_sample}) == Sampling(repetition_penalty=1.05, seed=99)


def test_each_value_comes_from_the_first_that_names_it() -> None:
    resolved = _resolve(Options(temperature=0.1, top_k=0), Defaults(top_k=7, top_p=0.5), **SAMPLES)
    assert resolved == Sampling(0.1, 0, 0.5, 0.1, 1.05, seed=99)


def test_a_request_can_ask_a_sampling_model_to_be_greedy() -> None:
    assert _resolve(Options(temperature=0), **SAMPLES).greedy


def test_a_temperature_too_small_to_matter_is_greedy() -> None:
    assert _resolve(Options(temperature=1e-300)).greedy
    assert not _resolve(Options(temperature=1e-5)).greedy


def test_the_requests_seed_wins_over_the_drawn_one() -> None:
    assert _resolve(Options(seed=0)).seed == 0


def test_the_answers_length_comes_from_request_section_or_model() -> None:
    assert _resolve(max_new_tokens=5).max_tokens == 5
    assert _resolve(defaults=Defaults(max_tokens=4), max_new_tokens=5).max_tokens == 4
    assert _resolve(Options(max_tokens=3), Defaults(max_tokens=4), max_new_tokens=5).max_tokens == 3
    assert _resolve().max_tokens is None


def test_stop_strings_are_the_requests() -> None:
    assert _resolve(Options(stop=("a", "b"))).stop == ("a", "b")


def test_any_object_is_a_schema() -> None:
    assert _resolve(Options(json_object=True)).json_schema == ANY_OBJECT
    assert _resolve(Options(json_schema='{"type": "null"}')).json_schema == '{"type": "null"}'
    assert _resolve().json_schema is None


def test_the_answers_penalties_and_biases_are_the_requests_and_nobody_elses() -> None:
    asked = Options(frequency_penalty=1, presence_penalty=-1, logit_bias=((3, 5),))
    resolved = _resolve(asked, frequency_penalty=0.5, presence_penalty=0.5)
    assert (resolved.frequency_penalty, resolved.presence_penalty, resolved.logit_bias) == (1.0, -1.0, ((3, 5),))
    assert _resolve(frequency_penalty=0.5) == Sampling(seed=99)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_sample", "yes"), ("temperature", "hot"), ("temperature", -1), ("temperature", float("nan")),
        ("temperature", True), ("temperature", float("inf")), ("top_k", 1.5), ("top_k", -1), ("top_k", True),
        ("top_p", 0), ("top_p", 1.5), ("min_p", 2), ("repetition_penalty", 0), ("repetition_penalty", [1]),
        ("max_new_tokens", 0),
    ],
)  # fmt: skip
def test_a_value_without_meaning_in_the_models_file_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ModelDataError, match=rf"generation_config\.json: {key} is .* must be"):
        of_model({"do_sample": True, key: value})
