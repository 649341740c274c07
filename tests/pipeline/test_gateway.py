"""HTTP answers: chat, completions and responses, read by the `openai` package as it is."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pydantic
import pytest

from potato_client import Client

from .gateway_harness import IMPATIENT, House, client_of, until

Ask = dict[str, Any]


#: A tool whose schema has a null.
GO_NOTHING: Ask = {"type": "function", "name": "f", "strict": None, "description": None, "parameters": {"type": "object", "default": None}}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for all tests that change nothing of it."""
    made = House(tmp_path_factory.mktemp("house"), max_sequences=8, max_context=1024)
    made.front.engine_up()
    yield made
    made.close()


@pytest.fixture
def client(house: House) -> Iterator[openai.OpenAI]:
    with client_of(house) as made:
        yield made


def ask(prompt: str, **more: Any) -> Ask:
    return {"model": "model", "messages": [{"role": "user", "content": prompt}], **more}


# chat


def test_the_model_that_is_served_is_listed_and_no_other_is_there(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["model"]
    assert client.models.retrieve("model").owned_by == "potato"
    with pytest.raises(openai.NotFoundError, match="'model' is served"):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'"):
        client.chat.completions.create(**ask("hello|") | {"model": "gpt-4"})


def test_an_answer_is_whole_and_says_why_it_ended_and_what_it_took(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ask("hello|", max_tokens=12))
    assert answer.choices[0].message.content == "hellohellohe"
    assert (answer.choices[0].message.role, answer.choices[0].finish_reason) == ("assistant", "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (6, 12, 18)
    assert answer.system_fingerprint == "potato-c0ffee"
    assert client.chat.completions.create(**ask("bye$|")).choices[0].finish_reason == "stop"
    assert client.chat.completions.create(**ask("one two three|", stop="two t")).choices[0].message.content == "one "


def test_a_conversation_is_read_in_order_with_the_developer_as_the_system(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    messages = [{"role": "developer", "content": "a"}, {"role": "user", "content": parts}, {"role": "assistant", "content": "$|"}]
    answer = client.chat.completions.create(model="model", messages=messages)  # type: ignore[arg-type]  # plain dictionaries do as well
    assert answer.choices[0].message.content == "abc"


def test_a_stream_is_the_same_text_piece_by_piece(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**ask("hello|", max_tokens=12, stream=True, stream_options={"include_usage": True})))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hellohellohe"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [18]
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_answers_are_those_of_the_seed_whether_streamed_or_not(house: House, client: openai.OpenAI) -> None:
    asked = ask("?what|", n=3, seed=7, temperature=1.0, max_tokens=9)
    whole = [choice.message.content for choice in client.chat.completions.create(**asked).choices]
    assert len(set(whole)) == 3
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == whole
    with Client(house.front.socket) as native:
        texts = [native.generate("?what|", seed=7, choice=n, temperature=1.0, max_tokens=9) for n in range(3)]
        assert ["".join(piece.text for piece in text) for text in texts] == whole


def test_without_a_seed_several_answers_differ_and_so_do_those_of_another_time(client: openai.OpenAI) -> None:
    asked = ask("?what|", n=2, temperature=1.0, max_tokens=12)
    texts = [choice.message.content for _ in range(2) for choice in client.chat.completions.create(**asked).choices]
    assert len(set(texts)) == 4


def test_the_asyncio_client_is_answered_many_at_a_time(house: House) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{house.gateway.url}/v1", api_key=house.gateway.token, max_retries=0) as client:
            return await asyncio.gather(*(read(client, n) for n in range(40)))

    async def read(client: openai.AsyncOpenAI, n: int) -> str:
        text = ""
        async for chunk in await client.chat.completions.create(**ask(f"{n},|", max_tokens=9, stream=True)):
            text += chunk.choices[0].delta.content or ""
        return text

    assert asyncio.run(main()) == [(f"{n}," * 9)[:9] for n in range(40)]


def test_logprobs_come_with_each_token_whole_or_streamed(client: openai.OpenAI) -> None:
    asked = ask("a€b$|", logprobs=True, top_logprobs=2)
    content = client.chat.completions.create(**asked).choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert b"".join(bytes(token.bytes or []) for token in content).decode() == "a€b"
    assert content[0].token == "a"
    for token in content:
        assert token.logprob == token.top_logprobs[0].logprob > token.top_logprobs[1].logprob
    streamed = [
        token for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or []
    ]  # fmt: skip
    assert streamed == content
    assert client.chat.completions.create(**ask("a$|")).choices[0].logprobs is None


def test_penalties_and_biases_are_the_clients_to_choose(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(**ask("a|", max_tokens=6)).choices[0].message.content
    assert plain == "aaaaaa"
    biased = client.chat.completions.create(**ask("a|", max_tokens=6, logit_bias={str(ord("a")): -100, str(ord("z")): 100})).choices[0].message.content
    assert biased == "zzzzzz"
    with pytest.raises(openai.BadRequestError, match="frequency_penalty must be between -2 and 2"):
        client.chat.completions.create(**ask("a|", frequency_penalty=3))
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.chat.completions.create(**ask("a|", logit_bias={"100000": 1}))


# tools


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "How it is outside.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("written", "content"),
    [
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>', None),
        ('I look.<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>', "I look."),
        ('{"name": "get_weather", "parameters": {"city": "Paris"}}', None),
    ],
)
def test_what_the_model_calls_is_a_call_whole_or_streamed(client: openai.OpenAI, written: str, content: str | None) -> None:
    asked = ask(f"{written}$|", tools=[WEATHER])
    answer = client.chat.completions.create(**asked)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("tool_calls", content)
    assert answer.choices[0].message.tool_calls is not None
    call = answer.choices[0].message.tool_calls[0]
    assert call.type == "function"
    assert (call.function.name, call.function.arguments, len(call.id)) == ("get_weather", '{"city": "Paris"}', 9)
    with client.chat.completions.stream(model="model", messages=asked["messages"], tools=[WEATHER]) as stream:
        final = stream.get_final_completion().choices[0]
    assert (final.finish_reason, final.message.content or None) == ("tool_calls", content)
    assert final.message.tool_calls is not None
    assert final.message.tool_calls[0].function.arguments == '{"city": "Paris"}'


def test_calls_and_what_tools_answered_go_back_to_the_template(house: House, client: openai.OpenAI) -> None:
    called = client.chat.completions.create(**ask('{"name": "get_weather", "parameters": {"city": "Paris"}}$|', tools=[WEATHER])).choices[0].message
    assert called.tool_calls is not None
    result: Any = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "warm$|"}
    messages = [{"role": "user", "content": "so "}, called.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(model="model", messages=messages, tools=[WEATHER])  # type: ignore[arg-type]  # as above
    assert answer.choices[0].message.content == "sowarm"
    assert answer.choices[0].message.tool_calls is not None
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "Paris"}'  # type: ignore[union-attr]
    with Client(house.front.socket) as native:
        assert native.show(native.jobs(limit=1)[0].job).tools == (json.dumps(WEATHER),)


def test_a_text_is_a_text_with_tools_and_without_they_are_not_looked_for(client: openai.OpenAI) -> None:
    written = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
    assert client.chat.completions.create(**ask(f"{written}$|", tools=[WEATHER], tool_choice="none")).choices[0].message.content == written
    assert client.chat.completions.create(**ask(f"{written}$|")).choices[0].message.content == written
    assert client.chat.completions.create(**ask("It is warm.$|", tools=[WEATHER])).choices[0].message.content == "It is warm."


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tools": [WEATHER, WEATHER]}, "once"),
        ({"tools": [{"type": "function", "function": {"name": "no blanks"}}]}, "cannot be called"),
        ({"tools": [WEATHER], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}]}, "a JSON object"),
    ],
)
def test_tools_that_cannot_be_are_refused(client: openai.OpenAI, more: Ask, sentence: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="model", messages=[{"role": "user", "content": "a|"}], extra_body=more)
    assert sentence in str(refused.value)


def test_a_tool_that_must_be_called_is_called_whatever_the_model_would_say(client: openai.OpenAI) -> None:
    nested = {"type": "object", "properties": {"at": {"$ref": "#/$defs/Place"}}, "required": ["at"], "additionalProperties": False}
    place = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False}
    go: Any = {"type": "function", "function": {"name": "go", "strict": True, "parameters": nested | {"$defs": {"Place": place}}}}
    client = client.with_options(max_retries=10)  # a machine that is slow tries out few new schemas at a time
    for choice in ("required", {"type": "function", "function": {"name": "go"}}):
        answer = client.chat.completions.create(**ask("not at all|", tools=[go, WEATHER], tool_choice=choice, temperature=1.0, seed=3)).choices[0]
        assert answer.message.tool_calls is not None
        call = answer.message.tool_calls[0]
        assert call.type == "function"
        arguments = json.loads(call.function.arguments)
        assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
        assert arguments in ({"at": {"x": 1}}, {"at": {"x": 2}}) if call.function.name == "go" else isinstance(arguments["city"], str)
        assert choice == "required" or call.function.name == "go"


# answers that keep to a form


def test_an_answer_keeps_to_its_schema_and_is_parsed_by_the_clients_own_means(client: openai.OpenAI) -> None:
    class Place(pydantic.BaseModel):
        city: Literal["Paris", "Rome"]
        people: list[Literal["many", "few"]] = pydantic.Field(min_length=1, max_length=2)

    client = client.with_options(max_retries=10)  # a machine that is slow tries out few new schemas at a time
    answer = client.chat.completions.parse(**ask("nothing of the sort|", temperature=1.0, seed=1), response_format=Place)
    assert isinstance(answer.choices[0].message.parsed, Place)
    response = client.responses.parse(model="model", input="nor of that|", text_format=Place, temperature=1.0)
    assert isinstance(response.output_parsed, Place)
    free = client.chat.completions.create(**ask("anything|", response_format={"type": "json_object"}, max_tokens=200, temperature=1.0))
    assert free.choices[0].finish_reason == "length" or isinstance(json.loads(free.choices[0].message.content or ""), dict)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "without a schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}}, "schema"),
        ({"response_format": {"type": "json_object"}, "tools": [WEATHER]}, "beside tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "go"}}}, "there is no 'go'"),
        ({"tool_choice": "required"}, "there is no tool"),
    ],
)
def test_forms_that_cannot_be_kept_to_are_refused(client: openai.OpenAI, more: Ask, sentence: str) -> None:
    patient = client.with_options(max_retries=10)  # a machine that is slow tries out few new schemas at a time
    with pytest.raises(openai.BadRequestError) as refused:
        patient.chat.completions.create(model="model", messages=[{"role": "user", "content": "a|"}], extra_body=more)
    assert sentence in str(refused.value)


# completions


def test_texts_go_on_each_with_its_answers(client: openai.OpenAI) -> None:
    asked: Ask = {"model": "model", "prompt": ["ab|", "cd|"], "max_tokens": 4}
    answer = client.completions.create(**asked, n=2, echo=True)
    assert [choice.text for choice in answer.choices] == ["ab|abab", "ab|abab", "cd|cdcd", "cd|cdcd"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 16)
    streamed = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == ["abab", "cdcd"]


def test_logprobs_of_texts_have_the_old_form(client: openai.OpenAI) -> None:
    logprobs = client.completions.create(model="model", prompt="ab|", max_tokens=4, logprobs=1).choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.text_offset) == (["a", "b", "a", "b"], [0, 1, 2, 3])
    assert [list(top) for top in logprobs.top_logprobs or []] == [["a"], ["b"], ["a"], ["b"]]
    streamed = [chunk.choices[0] for chunk in client.completions.create(model="model", prompt="ab|", max_tokens=4, logprobs=1, stream=True)]
    assert [at for choice in streamed if choice.logprobs for at in choice.logprobs.text_offset or []] == [0, 1, 2, 3]
    with pytest.raises(openai.BadRequestError, match="echo"):
        client.completions.create(model="model", prompt="ab|", logprobs=1, echo=True)


# what is refused


@pytest.mark.parametrize(
    ("more", "status", "sentence"),
    [
        ({"temperature": 300}, 400, "temperature must be between 0 and 100"),
        ({"max_tokens": "many"}, 400, "max_tokens: Expected `int"),
        ({"max_tokens": 0}, 400, "max_tokens must be a whole number of 1 or more"),
        ({"temprature": 1}, 400, "unknown field 'temprature'; did you mean 'temperature'"),
        ({"audio": {"voice": "alloy"}}, 400, "audio is not supported"),
        ({"reasoning_effort": "high"}, 400, "thinking"),
        ({"n": 0}, 400, "n must be"),
        ({"n": 1000}, 400, "n must be"),
        ({"stop": ["x"] * 17}, 400, "at most 16 strings"),
        ({"messages": []}, 400, "messages is empty"),
        ({"messages": [{"role": "user"}]}, 400, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "image_url"),
        ({"messages": [{"role": "user", "content": "x" * 1500 + "|"}]}, 400, "context"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options needs stream"),
        ({"chat_template_kwargs": {"tone": "warm"}}, 400, "chat_template_kwargs.tone"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, 400, "stream_options.include_obfuscation is not supported"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "max_tokens and max_completion_tokens say different things"),
        ({"chat_template_kwargs": {"thinking": True, "enable_thinking": False}}, 400, "say different things"),
        ({"thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, 400, "say different things"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_name(client: openai.OpenAI, more: Ask, status: int, sentence: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model="model", messages=[{"role": "user", "content": "a|"}], extra_body=more)
    assert refused.value.status_code == status
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "txt": "a"}]}]}, "messages[0].content[0].txt"),
        ("chat/completions", {"messages": [{"content": "a"}]}, "messages[0].role"),
        ("chat/completions", {"tools": [{"type": "function", "function": {"name": "f", "descripton": "a"}}]}, "tools[0].function.descripton"),
        ("chat/completions", {"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "no blanks"}}]},
         "tools[1].function.name"),
        ("chat/completions", {"response_format": {"type": "json_schema", "json_schema": {"name": "f"}}}, "response_format.json_schema.schema"),
        ("chat/completions", {"stream_options": {"include_costs": True}}, "stream_options.include_costs"),
        ("responses", {"text": {"verbosity": "low"}}, "text.verbosity"),
        ("responses", {"text": {"format": {"type": "json_schema", "name": "f"}}}, "text.format.schema"),
        ("responses", {"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ("responses", {"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ("responses", {"tools": [{"type": "function", "name": "f", "strict": True}]}, "tools[0].strict"),
        ("batches", {}, "input_file_id"),
        ("batches", {"input_file_id": "a", "endpoint": "b", "completion_window": "1h"}, "completion_window"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_whole_way_to_the_field(house: House, path: str, more: Ask, param: str) -> None:
    asked = {"chat/completions": ask("a|"), "responses": {"model": "model", "input": "a|"}, "batches": {}}[path]
    status, _, page = house.gateway.request("POST", f"/v1/{path}", asked | more)
    assert (status, page["error"]["param"]) == (400, param)
    if param.endswith("descripton"):
        assert "did you mean 'description'" in page["error"]["message"]


def test_null_is_as_good_as_leaving_it_out_at_every_level_but_in_what_is_the_clients_own(house: House, client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a|", "annotations": None, "cache": None}], "name": None, "weight": None}]
    tool = {"type": "function", "function": {"name": "f", "strict": None, "parameters": {"type": "object", "default": None}, "more": None}}
    more = {"stream_options": {"include_usage": None, "include_costs": None}, "chat_template_kwargs": {"enable_thinking": None}, "tools": [tool]}
    answer = client.chat.completions.create(model="model", messages=[], max_tokens=2, extra_body=more | {"messages": messages})
    assert (answer.choices[0].finish_reason, len(answer.choices[0].message.content or "")) == ("length", 2)
    with Client(house.front.socket) as native:
        tools = native.show(native.jobs(limit=1)[0].job).tools
    assert json.loads(tools[0])["function"]["parameters"] == {"type": "object", "default": None}
    nothing = {"text": {"verbosity": None, "format": {"type": "text", "more": None}}, "reasoning": {"effort": None, "summary": None, "more": None}}
    made = client.responses.create(model="model", input="a|", max_output_tokens=2, extra_body=nothing | {"tools": [GO_NOTHING]})
    assert made.tools[0].to_dict()["parameters"] == GO_NOTHING["parameters"]


def test_what_asks_for_nothing_is_taken(client: openai.OpenAI) -> None:
    nothing = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False, "tools": [], "tool_choice": "auto"}
    more = nothing | {"response_format": {"type": "text"}, "store": False, "user": "me", "service_tier": "auto", "top_p": None}
    answer = client.chat.completions.create(**ask("a|", max_tokens=2), extra_body=more)
    assert answer.choices[0].message.content == "aa"


def test_a_context_that_is_too_small_is_known_by_its_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ask("x" * 1500 + "|"))
    assert refused.value.code == "context_length_exceeded"


def test_embeddings_are_refused_in_a_sentence(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="write text"):
        client.embeddings.create(model="model", input="a")


# clients that come and go


def test_who_lost_patience_and_asks_again_gets_the_same_job(begin: Callable[..., House]) -> None:
    house = begin()
    worker = house.front.engine_up(delay_s=0.1)
    with client_of(house, timeout=0.7, max_retries=3) as impatient:
        answer = impatient.chat.completions.create(**ask("patience|", max_tokens=14))
    assert answer.choices[0].message.content == "patiencepatien"
    with Client(house.front.socket) as native:
        assert len(native.jobs()) == 1
    assert worker.wrong is None


def test_whoever_leaves_for_good_is_not_computed_for(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": IMPATIENT}, speculation=False)
    house.front.engine_up(delay_s=0.05)
    with client_of(house, timeout=0.4) as impatient, pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(**ask("endless|"))
    with client_of(house) as reader:
        stream = reader.chat.completions.create(**ask("endless|", stream=True))
        assert next(iter(stream)) is not None
        stream.close()
    with Client(house.front.socket) as native:
        until(lambda: [job.state for job in native.jobs()] == ["cancelled", "cancelled"])


def test_what_has_an_idempotency_key_goes_on_and_is_asked_for_once(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": IMPATIENT})
    house.front.engine_up(delay_s=0.05)
    headers = {"Idempotency-Key": "a question of mine"}
    with client_of(house, timeout=0.3) as impatient, pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(**ask("key|", max_tokens=20), extra_headers=headers)
    with client_of(house) as client:
        first = client.chat.completions.create(**ask("key|", max_tokens=20), extra_headers=headers)
        again = client.chat.completions.create(**ask("key|", max_tokens=20), extra_headers=headers)
        assert first.choices[0].message.content == "keykeykeykeykeykeyke"
        assert first.id == again.id
        with pytest.raises(openai.UnprocessableEntityError):
            client.chat.completions.create(**ask("other|", max_tokens=20), extra_headers=headers)
    with Client(house.front.socket) as native:
        assert len(native.jobs()) == 1


def test_a_key_that_is_used_twice_at_the_same_time_is_one_job_and_both_get_it(begin: Callable[..., House]) -> None:
    house = begin(speculation=False)
    house.front.engine_up(delay_s=0.02)
    headers = {"Idempotency-Key": "together"}
    with client_of(house) as client, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.chat.completions.create, **ask("key|", max_tokens=20), extra_headers=headers) for _ in range(4)]
        answers = [each.result() for each in asked]
    assert {answer.choices[0].message.content for answer in answers} == {"keykeykeykeykeykeyke"}
    assert len({answer.id for answer in answers}) == 1


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("/v1/completions", {"model": "model", "prompt": ["key|", "yes|"], "n": 2, "max_tokens": 6}),
        ("/v1/responses", {"model": "model", "input": "key|", "max_output_tokens": 6}),
    ],
)
def test_a_key_is_good_wherever_answers_are_asked_for(begin: Callable[..., House], path: str, page: Ask) -> None:
    house = begin(gateway={"program": IMPATIENT}, speculation=False)
    house.front.engine_up(delay_s=0.02)
    connection = house.gateway.connect()
    connection.request("POST", path, json.dumps(page), house.gateway.headers | {"Idempotency-Key": "mine"})
    with Client(house.front.socket) as native:
        until(lambda: len(native.jobs()) > 0)
        time.sleep(0.2)
        connection.close()
        first, again = (house.gateway.request("POST", path, page, Idempotency_Key="mine") for _ in range(2))
        assert (first[0], again[0], first[2]["id"]) == (200, 200, again[2]["id"])
        assert first[1]["potato-job"] == again[1]["potato-job"]
        assert {job.job for job in native.jobs()} == set(first[1]["potato-job"].split(", "))
        assert {job.state for job in native.jobs()} == {"finished"}
    other = {"prompt": "other|"} if path == "/v1/completions" else {"input": "other|"}
    assert house.gateway.request("POST", path, page | other, Idempotency_Key="mine")[0] == 422


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.005, 0.01])
def test_what_stays_stays_however_early_its_client_leaves(begin: Callable[..., House], after_s: float) -> None:
    house = begin(gateway={"program": IMPATIENT}, speculation=False)
    house.front.engine_up(delay_s=0.01)
    connection = house.gateway.connect()
    headers = house.gateway.headers | {"Idempotency-Key": "early"}
    connection.request("POST", "/v1/chat/completions", json.dumps(ask("early|", max_tokens=20)), headers)
    time.sleep(after_s)
    connection.close()
    with Client(house.front.socket) as native:
        time.sleep(1.0)
        assert {job.state for job in native.jobs()} <= {"finished"}
    again = house.gateway.request("POST", "/v1/chat/completions", ask("early|", max_tokens=20), Idempotency_Key="early")
    assert again[2]["choices"][0]["message"]["content"] == "earlyearlyearlyearly"


def test_whoever_left_is_not_computed_for_though_the_front_or_the_gateway_was_away(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": IMPATIENT}, speculation=False)
    house.front.engine_up(delay_s=0.05)
    with client_of(house, timeout=0.3) as impatient, pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(**ask("front|", max_tokens=200))
    house.front_dies()
    house.front.engine_up(delay_s=0.05)
    connection = house.gateway.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps(ask("gateway|", max_tokens=200)), house.gateway.headers)
    with Client(house.front.socket) as native:
        until(lambda: len(native.jobs()) == 2)
        time.sleep(0.2)
        house.gateway_dies()
        connection.close()
        until(lambda: {job.state for job in native.jobs()} == {"cancelled"})


def test_who_asks_again_after_the_gateway_has_died_gets_the_same_job(begin: Callable[..., House]) -> None:
    house = begin(speculation=False)
    house.front.engine_up(delay_s=0.05)
    page = json.dumps(ask("again|", max_tokens=30))
    connection = house.gateway.connect()
    connection.request("POST", "/v1/chat/completions", page, house.gateway.headers)
    with Client(house.front.socket) as native:
        until(lambda: len(native.jobs()) == 1)
        time.sleep(0.2)
        house.gateway_dies()
        connection.close()
        answer = house.gateway.request("POST", "/v1/chat/completions", page.encode(), x_stainless_retry_count="1")
        assert answer[2]["choices"][0]["message"]["content"] == "again" * 6
        assert len(native.jobs()) == 1


def test_an_answer_goes_on_for_its_reader_when_the_front_is_another(begin: Callable[..., House]) -> None:
    """As for any client: what was read stays, and what comes is the rest."""
    house = begin(speculation=False)
    house.front.engine_up(delay_s=0.05)
    with client_of(house) as client:
        stream = iter(client.chat.completions.create(**ask("go on|", max_tokens=24, stream=True)))
        text = "".join(next(stream).choices[0].delta.content or "" for _ in range(6))
        house.front_dies()
        house.front.engine_up()
        text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == ("go on" * 5)[:24]


def test_a_stream_of_which_nothing_comes_says_why_now_and_then(begin: Callable[..., House]) -> None:
    """So that no proxy cuts it; and clients take no notice."""
    often = "import sys\nfrom potatod import stage\nfrom potatod.gateway import gateway, streams\nstreams.PING_S = 0.1\n"
    house = begin(gateway={"program": f'{often}sys.exit(stage.run("gateway", gateway.work))'}, max_sequences=1)
    worker = house.front.engine_up()
    worker.hold.set()
    lines: list[list[str]] = [[], []]

    def read(number: int) -> None:
        connection = house.gateway.connect()
        connection.request("POST", "/v1/chat/completions", json.dumps(ask(f"{number},|", max_tokens=4, stream=True)), house.gateway.headers)
        lines[number] += connection.getresponse().read().decode().splitlines()
        connection.close()

    readers = [threading.Thread(target=read, args=(number,)) for number in (0, 1)]
    for reader in readers:
        reader.start()
        time.sleep(0.5)
    worker.hold.clear()
    for reader in readers:
        reader.join(20)
    assert any(line.startswith(": prefill") for line in lines[0])
    assert ": in the queue, 1 answer before this one" in lines[1]
    assert [[line for line in each if line.startswith("data: ")][-1] for each in lines] == ["data: [DONE]"] * 2


def test_whoever_prefers_not_to_wait_gets_the_address_of_a_job(begin: Callable[..., House]) -> None:
    house = begin()
    house.front.engine_up(delay_s=0.05)
    for prefer in ("respond-async", "wait=0"):
        status, headers, page = house.gateway.request("POST", "/v1/chat/completions", ask("later|", max_tokens=8), Prefer=prefer)
        assert (status, headers["location"]) == (202, f"/jobs/{page['jobs'][0]}")
        where = headers["location"]
        until(lambda where=where: house.gateway.request("GET", where)[2]["state"] == "finished")
        assert house.gateway.request("GET", where)[2]["text"] == "laterlat"
        assert headers["preference-applied"] == prefer
    status, headers, page = house.gateway.request("POST", "/v1/chat/completions", ask("soon|", max_tokens=2), Prefer="respond-async, wait=20")
    assert (status, page["choices"][0]["message"]["content"]) == (200, "so")
    assert headers["preference-applied"] == "wait=20"
    assert "preference-applied" not in house.gateway.request("POST", "/v1/chat/completions", ask("a|", max_tokens=2), Prefer="return=minimal")[1]


def test_patience_that_runs_out_gets_the_addresses_of_all_answers(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": IMPATIENT}, speculation=False)
    house.front.engine_up(delay_s=0.05)
    status, headers, page = house.gateway.request("POST", "/v1/chat/completions", ask("slow|", n=2, max_tokens=40), Prefer="wait=1")
    assert (status, headers["preference-applied"], len(page["jobs"])) == (202, "wait=1", 2)
    assert page["locations"] == [f"/jobs/{job}" for job in page["jobs"]]
    assert headers["location"] == page["locations"][0]
    for where in page["locations"]:
        until(lambda where=where: house.gateway.request("GET", where)[2]["state"] == "finished")
        assert house.gateway.request("GET", where)[2]["text"] == "slow" * 10


def test_a_stream_takes_no_notice_of_preferences_and_is_cancelled_when_its_reader_leaves(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": IMPATIENT}, speculation=False)
    house.front.engine_up(delay_s=0.05)
    with client_of(house) as client:
        asked = ask("endless|", stream=True, extra_headers={"Prefer": "respond-async"})
        answer = client.chat.completions.with_raw_response.create(**asked)
        assert (answer.status_code, answer.headers.get("preference-applied")) == (200, None)
        answer.http_response.close()
        stream = client.responses.create(model="model", input="endless|", stream=True, extra_headers={"Prefer": "wait=1"})
        assert next(iter(stream)) is not None
        stream.close()
    with Client(house.front.socket) as native:
        until(lambda: [job.state for job in native.jobs()] == ["cancelled", "cancelled"])
