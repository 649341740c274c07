"""/v1/responses with the `openai` package: jobs that are asked for, left, found again and gone on from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import openai
import pytest
from openai.types.responses import ResponseStreamEvent

from potato_client import Client
from potatod.gateway import response_events

from .gateway_harness import House, client_of, until


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


def test_a_response_is_whole_and_found_again(client: openai.OpenAI) -> None:
    made = client.responses.create(model="model", input="hello|", max_output_tokens=12, metadata={"of": "mine"}, temperature=0)
    assert (made.output_text, made.status) == ("hellohellohe", "incomplete")
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.total_tokens) == (6, 12, 18)
    assert client.responses.retrieve(made.id) == made
    assert [item.content[0].text for item in client.responses.input_items.list(made.id)] == ["hello|"]  # type: ignore[union-attr]
    assert client.responses.create(model="model", input="bye$|").status == "completed"


def test_a_conversation_goes_on_from_an_earlier_response_without_its_instructions(client: openai.OpenAI) -> None:
    first = client.responses.create(model="model", input="b$|", instructions="a")
    assert first.output_text == "ab"
    second = client.responses.create(model="model", input=" and more", instructions="x", previous_response_id=first.id, max_output_tokens=2)
    items = [item.content[0].text for item in client.responses.input_items.list(second.id, order="asc")]  # type: ignore[union-attr]
    assert items == ["x", "b$|", "ab", " and more"]
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="model", input="a|", previous_response_id="resp_0123456789abcdef")


def test_what_a_response_put_out_can_be_put_in(client: openai.OpenAI) -> None:
    first = client.responses.create(model="model", input="a$|")
    said = [item.model_dump(exclude_none=True) for item in first.output]
    items: list[Any] = [{"role": "user", "content": "xy"}, *said, {"role": "user", "content": "$|"}]
    assert client.responses.create(model="model", input=items).output_text == "xya"


def test_events_come_in_order_and_end_with_the_whole(client: openai.OpenAI) -> None:
    with client.responses.stream(model="model", input="hello$|") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "hello"
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert kinds[3:5] == ["response.output_item.added", "response.content_part.added"]
    assert [event.response.status for event in events[:3]] == ["queued", "queued", "in_progress"]  # type: ignore[union-attr]
    ends = ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]
    assert kinds[-4:] == ends
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))


def test_a_stream_goes_on_after_any_number_that_came(client: openai.OpenAI) -> None:
    made = client.responses.create(model="model", input="hello$|", background=True)
    whole = list(client.responses.retrieve(made.id, stream=True))
    assert text_of(whole) == "hello"
    for cut in (event.sequence_number for event in whole[:-1]):
        before = [event for event in whole if event.sequence_number <= cut]
        rest = list(client.responses.retrieve(made.id, stream=True, starting_after=cut))
        assert rest[0].sequence_number > cut
        assert text_of(before) + text_of(rest) == "hello"
        assert rest[-1] == whole[-1]


GO: Any = {
    "type": "function", "name": "go", "description": "Goes there.", "strict": False,
    "parameters": {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]},
}  # fmt: skip
CALL = '<tool_call>{"name": "go", "arguments": {"to": "Rome"}}</tool_call>'


def test_calls_are_items_whole_streamed_from_anywhere_and_found_again(client: openai.OpenAI) -> None:
    made = client.responses.create(model="model", input=f"I see. {CALL} So be it.$|", tools=[GO])
    assert [item.type for item in made.output] == ["message", "function_call", "message"]
    call = made.output[1]
    assert call.type == "function_call"
    assert (call.name, call.arguments, made.output_text) == ("go", '{"to": "Rome"}', "I see.So be it.")
    assert client.responses.retrieve(made.id) == made
    whole = list(client.responses.retrieve(made.id, stream=True))
    assert whole[-1].type == "response.completed"
    assert whole[-1].response.output == made.output
    for cut in (event.sequence_number for event in whole[:-1]):
        before = [event for event in whole if event.sequence_number <= cut]
        rest = list(client.responses.retrieve(made.id, stream=True, starting_after=cut))
        assert text_of(before) + text_of(rest) == "I see.So be it."
        assert arguments_of(before) + arguments_of(rest) == '{"to": "Rome"}'
        assert rest[-1] == whole[-1]


def test_what_tools_answered_goes_back_by_hand_or_from_the_earlier_response(client: openai.OpenAI) -> None:
    first = client.responses.create(model="model", input=f"{CALL}$|", tools=[GO])
    call = first.output[0]
    assert call.type == "function_call"
    answer: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "there$|"}
    by_hand: Any = [{"role": "user", "content": "a"}, call.model_dump(exclude_none=True), answer]
    said = client.responses.create(model="model", input=by_hand, tools=[GO])
    assert [item.type for item in said.output] == ["message", "function_call", "message"]
    assert said.output_text == "athere"
    on = client.responses.create(model="model", input=[answer], tools=[GO], previous_response_id=first.id, max_output_tokens=3)
    items = client.responses.input_items.list(on.id, order="asc")
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]
    asked = items.data[1]
    assert asked.type == "function_call"
    assert (asked.name, asked.arguments, asked.call_id) == ("go", '{"to": "Rome"}', call.call_id)


def test_what_was_asked_is_listed_page_by_page_in_either_order(client: openai.OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": f"{n}"} for n in range(24)] + [{"role": "user", "content": "$|"}]
    made = client.responses.create(model="model", input=asked)
    first = client.responses.input_items.list(made.id, order="asc", limit=10)
    assert (len(first.data), first.has_more) == (10, True)
    assert len(client.responses.input_items.list(made.id).data) == 20
    for order in ("asc", "desc"):
        texts = [item.content[0].text for item in client.responses.input_items.list(made.id, order=order, limit=7)]  # type: ignore[arg-type, union-attr]
        wanted = [f"{n}" for n in range(24)] + ["$|"]
        assert texts == (wanted if order == "asc" else wanted[::-1])
    assert client.responses.input_items.list(made.id, limit=100).has_more is False
    for wrong in ({"limit": 101}, {"order": "up"}, {"after": "msg_none"}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.input_items.list(made.id, **wrong)  # type: ignore[arg-type]  # what is wrong on purpose
        assert refused.value.param == next(iter(wrong))


def test_a_tool_that_must_be_called_is_called(client: openai.OpenAI) -> None:
    made = client.responses.create(model="model", input="not at all|", tools=[GO | {"strict": True}], tool_choice="required", max_output_tokens=200)
    assert made.status == "incomplete" or made.output[0].type == "function_call"


def test_in_the_background_it_goes_on_alone_and_is_there_when_the_gateway_is_another(begin: Callable[..., House]) -> None:
    house = begin(speculation=False)
    house.front.engine_up(delay_s=0.05)
    with client_of(house) as client:
        made = client.responses.create(model="model", input="alone|", max_output_tokens=20, background=True)
        assert made.status == "queued"
        until(lambda: client.responses.retrieve(made.id).status == "in_progress")
        until(lambda: client.responses.retrieve(made.id).output_text != "")
        part = client.responses.retrieve(made.id)
        assert "alonealonealonealone".startswith(part.output_text)
    house.gateway_dies()
    with client_of(house) as client:
        assert text_of(client.responses.retrieve(made.id, stream=True)) == "alonealonealonealone"
        assert client.responses.retrieve(made.id).output_text == "alonealonealonealone"


def test_a_response_that_waits_is_queued_until_it_is_computed(begin: Callable[..., House]) -> None:
    house = begin(speculation=False, max_sequences=1)
    worker = house.front.engine_up()
    worker.hold.set()
    with client_of(house) as client:
        first = client.responses.create(model="model", input="endless|", background=True)
        second = client.responses.create(model="model", input="endless|", background=True)
        stream = iter(client.responses.retrieve(second.id, stream=True))
        assert [next(stream).type for _ in range(2)] == ["response.created", "response.queued"]
        client.responses.cancel(first.id)
        worker.hold.clear()
        events = [next(stream) for _ in range(5)]
        assert events[0].type == "response.in_progress"
        client.responses.cancel(second.id)
        events += list(stream)
        assert (events[-1].type, events[-1].response.status) == ("response.incomplete", "cancelled")
        assert events[-1].response.incomplete_details is None
        again = list(client.responses.retrieve(second.id, stream=True, starting_after=1))
        assert [event.sequence_number for event in again][-1] == events[-1].sequence_number
        assert again[-1] == events[-1]


def test_every_event_that_is_sent_is_one_that_the_package_knows(client: openai.OpenAI) -> None:
    known = {get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(get_args(ResponseStreamEvent)[0])}
    named = set(re.findall(r'"(response\.[a-z_.]+)"', Path(response_events.__file__).read_text()))
    assert named <= known
    assert len(named) > 10


def test_a_response_says_whether_tools_may_be_called_side_by_side(client: openai.OpenAI) -> None:
    asked: Any = {"model": "model", "input": "a$|", "max_output_tokens": 1}
    assert client.responses.create(**asked, tools=[GO]).parallel_tool_calls is True
    assert client.responses.create(**asked, tools=[GO], tool_choice="required").parallel_tool_calls is False
    made = client.responses.create(**asked, parallel_tool_calls=False)
    assert made.parallel_tool_calls is False
    assert client.responses.retrieve(made.id).parallel_tool_calls is False


def test_a_response_that_is_cancelled_says_so_and_is_deleted_with_its_job(begin: Callable[..., House]) -> None:
    house = begin(speculation=False)
    house.front.engine_up(delay_s=0.05)
    with client_of(house) as client, Client(house.front.socket) as native:
        made = client.responses.create(model="model", input="endless|", background=True)
        client.responses.cancel(made.id)
        until(lambda: client.responses.retrieve(made.id).status == "cancelled")
        assert client.responses.cancel(made.id).status == "cancelled"
        running = client.responses.create(model="model", input="endless|", background=True)
        client.responses.delete(running.id)
        client.responses.delete(made.id)
        assert native.jobs() == []
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(made.id)


def test_what_is_not_to_be_kept_is_not(begin: Callable[..., House]) -> None:
    house = begin()
    house.front.engine_up()
    with client_of(house) as client, Client(house.front.socket) as native:
        made = client.responses.create(model="model", input="a$|", store=False)
        assert made.output_text == "a"
        until(lambda: native.jobs() == [])
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(made.id)


def test_what_has_a_key_is_kept_so_that_not_to_keep_it_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Idempotency-Key") as refused:
        client.responses.create(model="model", input="a$|", store=False, extra_headers={"Idempotency-Key": "not kept"})
    assert refused.value.param == "store"


def test_whoever_prefers_not_to_wait_gets_the_address_of_a_response(begin: Callable[..., House]) -> None:
    house = begin(speculation=False)
    house.front.engine_up(delay_s=0.05)
    page = {"model": "model", "input": "later|", "max_output_tokens": 30}
    for prefer in ("respond-async", "wait=1"):
        status, headers, answer = house.gateway.request("POST", "/v1/responses", page, Prefer=prefer)
        assert (status, headers["location"], headers["preference-applied"]) == (202, f"/v1/responses/{answer['id']}", prefer)
        assert answer["status"] in ("queued", "in_progress")
        until(lambda where=headers["location"]: house.gateway.request("GET", where)[2]["status"] == "incomplete")
    status, headers, answer = house.gateway.request("POST", "/v1/responses", page | {"max_output_tokens": 2}, Prefer="wait=20")
    assert (status, answer["status"], headers["preference-applied"]) == (200, "incomplete", "wait=20")
    assert "preference-applied" not in house.gateway.request("POST", "/v1/responses", page | {"store": False}, Prefer="wait=0")[1]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "name": "f", "strict": True}]}, "tool_choice"),
        ({"input": [{"role": "user"}]}, "input[0]"),
        ({"background": True, "store": False}, "is kept"),
        ({"input": []}, "input is empty"),
        ({"reasoning": {"effort": "high"}}, "thinking"),
        ({"conversation": "conv_1"}, "previous_response_id"),
        ({"truncation": "auto"}, 'only "disabled" is taken'),
    ],
)
def test_what_is_not_understood_is_refused_by_its_name(client: openai.OpenAI, more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="model", input="a|", extra_body=more)
    assert sentence in str(refused.value)


def text_of(events: Any) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def arguments_of(events: Any) -> str:
    return "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
