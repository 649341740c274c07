"""Calls of tools in what models write, by the way of each family, whole and cut anywhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potatod.tool_calls import Call, Parser, call_id

TOOLS = {"get_weather": {"city": {"type": "string"}}, "add": {"a": {}, "b": {}}, "get": {}}
PARIS = Call("get_weather", '{"city": "Paris"}')
ADD = Call("add", '{"a": 1, "b": [2, null]}')

WRITTEN = [
    ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', "", [PARIS]),
    ('Let me see.\n<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>', "Let me see.", [PARIS]),
    (
        '<tool_call>[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "add", "arguments": {"a": 1, "b": [2, null]}}]</tool_call>',
        "", [PARIS, ADD],
    ),
    ('<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call> \n So it is. ', "So it is. ", [PARIS]),
    (
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>\n'
        '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2, null]}}</tool_call>', "", [PARIS, ADD],
    ),
    ('<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', "", [PARIS]),
    (
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n[2, null]\n</parameter>\n</function>\n</tool_call>", "", [ADD],
    ),
    ("<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>", "", [PARIS]),
    ("<tool_call><function=get_weather><parameter=city>12345</parameter></function></tool_call>", "", [Call("get_weather", '{"city": "12345"}')]),
    ("<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>", "", [PARIS]),
    ("<tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value><arg_key>b</arg_key><arg_value>[2, null]</arg_value></tool_call>", "", [ADD]),
    ('<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</TOOLCALL>', "", [PARIS]),
    ('<tool_calls>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_calls>', "", [PARIS]),
    ('{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    ('\n {"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "add", "parameters": {"a": 1, "b": [2, null]}}', "", [PARIS, ADD]),
    ('[{"name": "get_weather", "arguments": {"city": "Paris"}}]', "", [PARIS]),
    ('get_weather{"city": "Paris"}', "", [PARIS]),
    ('get_weatherabcDEF123{"city": "Paris"}', "", [PARIS]),
    ('[{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris"}}]', "", [PARIS]),
    ('get_weather{"city": "Paris"}add{"a": 1, "b": [2, null]}', "", [PARIS, ADD]),
    ('[get_weather(city="Paris"), add(a=1, b=[2, None])]', "", [PARIS, ADD]),
    ('<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', "", [Call("unknown", "{}")]),
]  # fmt: skip

_PAIRS = "<tool_call>add" + "<arg_key>a</arg_key><arg_value>1</arg_value>" * 2000
#: What looks like a call and is none.
TEXTS = [
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}', "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar",
    "<tool_call><function=add><parameter=a>1</parameter><parameter=b>2</para</tool_call>", "<tool_call><function=add>   !</tool_call>",
    "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value>", '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
    '<tool_call>{"name": "add", "arguments": {"a": "\\ud83d"}}</tool_call>', "<tool_call><function=add><parameter=a>NaN</parameter></tool_call>",
    f"{_PAIRS}!</tool_call>", f"<tool_call><function=add>{' ' * 100_000}!</tool_call>", f"<tool_call>{'<arg_key>' * 20_000}</tool_call>",
    "", "It is warm.", "get", "get_weather", "get_weatherman", "get_weatherabcdefghi", "get_weather is a tool", "{", "[1, 2]",
    '{"a": 1}', '{"name": "unknown", "parameters": {}}',
    '{"name": "get_weather", "parameters": 3}', '{"name": "get_weather", "parameters": {}} and more', "<tool_call>not JSON</tool_call>",
    "a < b, and <tool", "[get_weather('Paris')]", "[add(a=open('x'))]", "[add(a=1e999)]", "[unknown(a=1)]", "[x for x in y]", "<tool_call>",
    '<tool_call>{"name": 3}</tool_call> more', " two\n\n lines \n ", "[" * 2000, "<tool_call>" + "[" * 100_000,
]  # fmt: skip


def items(pieces: list[str]) -> list[str | Call]:
    """In their order, texts that follow one another as one."""
    parser = Parser(TOOLS)
    made: list[str | Call] = []
    for found in (*(parser.feed(piece) for piece in pieces), parser.finish()):
        for item in found.items:
            if isinstance(item, str) and made and isinstance(made[-1], str):
                item = made.pop() + item  # type: ignore[operator]
            made.append(item)
    return made


def read(pieces: list[str]) -> tuple[str, list[Call]]:
    found = items(pieces)
    return "".join(item for item in found if isinstance(item, str)), [item for item in found if isinstance(item, Call)]


@pytest.mark.parametrize(("written", "text", "calls"), WRITTEN)
def test_what_each_family_writes_is_a_call_however_it_is_cut(written: str, text: str, calls: list[Call]) -> None:
    assert read([written]) == (text, calls)
    assert read(list(written)) == (text, calls)
    for cut in range(len(written)):
        assert read([written[:cut], written[cut:]]) == (text, calls)


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_call_stays_as_it_was_written(text: str) -> None:
    assert read([text]) == (text, [])
    if len(text) < 100:
        assert read(list(text)) == (text, [])


_PIECES = ["<tool_call>", "</tool_call>", "{", "}", '"name"', ": ", '"add"', '{"name": "add"}', "get", " ", "\n", "text", "<", "[", "add(", ")"]


@given(st.lists(st.sampled_from(_PIECES), max_size=12))
def test_whatever_comes_nothing_is_lost_and_cuts_do_not_matter(pieces: list[str]) -> None:
    text, calls = read(pieces)
    assert items(pieces) == items(["".join(pieces)])
    if not calls:
        assert text == "".join(pieces)


def test_text_is_let_out_as_soon_as_it_is_certain() -> None:
    parser = Parser(TOOLS)
    assert parser.feed("It is ").text == "It is"
    assert parser.feed("a < b").text == " a < b"
    assert parser.feed(" <tool").text == ""
    assert parser.feed("box").text == " <toolbox"
    assert parser.feed('<tool_call>{"name": "add", "arguments": {}}').calls == ()
    assert parser.feed("</tool_call>").calls == (Call("add", "{}"),)


def test_an_id_is_nine_letters_and_digits_and_always_the_same() -> None:
    ids = {call_id(job, number) for job in ("a", "b") for number in range(50)}
    assert len(ids) == 100
    assert all(len(id) == 9 and id.isalnum() for id in ids)
    assert call_id("a", 0) == call_id("a", 0)
    json.dumps(list(ids))
