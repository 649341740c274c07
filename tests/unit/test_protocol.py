"""What a message refuses to hold, and how refusals and exit codes belong together."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest

from potato_client.protocol import HEARTBEAT_S, MAX_MESSAGES, REFUSAL_EXIT_CODES, SILENCE_S, VANISHED_S, Generate, RefusalCode
from potato_client.question import MAX_BIASES, MAX_SCHEMA_CHARS, MAX_STOP_CHARS, MAX_STOPS, MAX_TOP_LOGPROBS, ChatMessage, Options
from potatod import errors

BAD: dict[str, list[Any]] = {
    "max_tokens": [0, -1, (1 << 31) + 1, 1.5, True, "5", 10**5000],
    "temperature": [-0.1, 100.1, math.nan, math.inf, -math.inf, "1", True, 10**400],
    "top_k": [-1, 0.5, (1 << 31) + 1],
    "top_p": [0, 0.0, -0.1, 1.1, math.nan],
    "min_p": [-0.1, 1.1, math.nan],
    "repetition_penalty": [0, -1, 1001, math.nan],
    "seed": [-1, 1 << 63, 1.0],
    "stop": [["a"], "a", ("",), ("x" * (MAX_STOP_CHARS + 1),), ("x",) * (MAX_STOPS + 1), (1,)],
    "thinking": [1, "on"],
    "frequency_penalty": [-2.1, 2.1, math.nan, "1", True],
    "presence_penalty": [-2.1, 2.1, math.inf, "1"],
    "json_schema": ["", "x" * (MAX_SCHEMA_CHARS + 1), {"type": "object"}, 5],
    "json_object": [None, 1, "yes"],
    "top_logprobs": [-1, 21, 1.0, True],
    "logit_bias": [
        [(1, 2.0)], {1: 2.0}, ((1,),), ([1, 2.0],), ((1, 2.0, 3),), ((-1, 2.0),), ((1 << 40, 2.0),), ((1.0, 2.0),), ((None, 2.0),), ((1, None),),
        ((1, 100.1),), ((1, math.nan),), ((True, 1.0),), ((5, 1.0), (5, 2.0)), tuple((token, 1.0) for token in range(MAX_BIASES + 1)),
    ],
}
GOOD: dict[str, list[Any]] = {
    "max_tokens": [1, 1 << 31],
    "temperature": [0, 0.0, 1, 100],
    "top_k": [0, 50],
    "top_p": [1e-9, 1, 1.0],
    "min_p": [0, 1],
    "repetition_penalty": [0.001, 1, 1000],
    "seed": [0, (1 << 63) - 1],
    "stop": [(), ("x" * MAX_STOP_CHARS,) * MAX_STOPS],
    "thinking": [True, False, None],
    "frequency_penalty": [-2, 0, 2.0],
    "presence_penalty": [-2, 0, 2.0],
    "json_schema": [None, "x" * MAX_SCHEMA_CHARS],
    "json_object": [True, False],
    "top_logprobs": [0, MAX_TOP_LOGPROBS, None],
    "logit_bias": [(), tuple((token, -100) for token in range(MAX_BIASES)), ((0, 100.0),)],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values], ids=lambda v: str(type(v)))
def test_an_option_out_of_range_or_of_another_type_is_refused_in_a_sentence(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|stop string") as told:
        Options(**{name: value})
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in GOOD.items() for value in values], ids=lambda v: str(type(v))
)
def test_the_ends_of_each_range_are_allowed(name: str, value: Any) -> None:
    assert getattr(Options(**{name: value}), name) == value


def test_any_object_and_a_schema_are_not_asked_for_together() -> None:
    with pytest.raises(ValueError, match="json_object must be false"):
        Options(json_object=True, json_schema="{}")


def test_a_request_has_messages_or_a_prompt_and_not_both() -> None:
    with pytest.raises(ValueError, match="not neither"):
        Generate(1)
    with pytest.raises(ValueError, match="not both"):
        Generate(1, (ChatMessage("user", "x"),), "y")
    assert Generate(1, prompt="").prompt == ""


def test_a_conversation_has_an_end() -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_MESSAGES}"):
        Generate(1, (ChatMessage("user", "x"),) * (MAX_MESSAGES + 1))


def test_every_refusal_has_an_exit_code_that_the_daemon_knows() -> None:
    assert set(REFUSAL_EXIT_CODES) == set(get_args(RefusalCode))
    known = {value for name, value in vars(errors).items() if name.startswith("EXIT_") and name != "EXIT_OK"}
    assert set(REFUSAL_EXIT_CODES.values()) <= known


def test_a_client_speaks_several_times_before_anybody_gives_up() -> None:
    assert 3 * HEARTBEAT_S < SILENCE_S < VANISHED_S
