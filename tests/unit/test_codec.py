"""Frames: what goes in comes out, what is no message is BadFrame, and no frame costs more memory than it deserves."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest
from frames import INT, of
from hypothesis import given, settings
from hypothesis import strategies as st

from potato_client import protocol
from potato_client.codec import MAX_FRAME_BYTES, BadFrame, Codec
from potato_client.protocol import FROM_CLIENT, FROM_FRONT, Generate, Hello, Piece, Status
from potato_client.question import ChatMessage, Options

BOTH = st.sampled_from((FROM_CLIENT, FROM_FRONT))
MESSAGE = BOTH.flatmap(lambda codec: st.tuples(st.just(codec), of(codec)))


@given(MESSAGE)
def test_a_message_comes_out_as_it_went_in(pair: tuple[Codec, Any]) -> None:
    codec, message = pair
    assert codec.decode(codec.encode(message)) == message
    assert codec.decode(memoryview(codec.encode(message))) == message


def message_or_bad_frame(codec: Codec, frame: bytes) -> None:
    try:
        message = codec.decode(frame)
    except BadFrame as bad:
        why = str(bad)
    else:
        why = ""
        assert codec.decode(codec.encode(message)) == message or "nan" in repr(message)
    assert len(why) < 1000, "an answer is not as long as what it answers"


@pytest.mark.slow
@given(MESSAGE, st.data())
@settings(max_examples=400)
def test_a_damaged_frame_is_a_message_or_a_bad_frame_and_nothing_else(pair: tuple[Codec, Any], data: Any) -> None:
    codec, message = pair
    frame = bytearray(codec.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(("change", "insert", "cut", "repeat"))):
            case "change":
                frame[at] = data.draw(st.integers(0, 255))
            case "insert":
                frame[at:at] = data.draw(st.binary(max_size=8))
            case "cut":
                del frame[at + 1 :]
            case "repeat":
                frame += frame[at:]
    message_or_bad_frame(codec, bytes(frame))


@given(BOTH, st.binary(max_size=200))
def test_garbage_is_a_bad_frame(codec: Codec, frame: bytes) -> None:
    message_or_bad_frame(codec, frame)


TREE = st.recursive(
    st.none() | st.booleans() | INT | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | INT, inner),
)


@pytest.mark.slow
@given(BOTH, st.sampled_from([cls.__name__ for c in (FROM_CLIENT, FROM_FRONT) for cls, _ in c._readers.values()]), TREE)
def test_whatever_stands_where_fields_should_be_is_a_message_or_a_bad_frame(codec: Codec, name: str, tree: Any) -> None:
    message_or_bad_frame(codec, msgpack.packb([name, tree]))


@pytest.mark.slow
@given(BOTH, st.sampled_from(sorted(vars(protocol))), st.dictionaries(st.sampled_from(["job", "text", "boot"]), TREE))
def test_fields_of_any_value_are_a_message_or_a_bad_frame(codec: Codec, name: str, fields: Any) -> None:
    message_or_bad_frame(codec, msgpack.packb([name, fields]))


def announce_list(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


def announce_map(count: int) -> bytes:
    return b"\xdf" + count.to_bytes(4, "big")


MANY = 10_000_000
MESSAGES = b"\x92\xa8Generate\x82\xa7request\x01\xa8messages"
NUMBER = b"\x92\xa6Status\x81\xa7request"
STOPS = b"\x92\xa8Generate\x82\xa7request\x01\xa7options\x81\xa4stop"
BOMBS = {
    "ten million empty maps for messages": MESSAGES + announce_list(MANY) + b"\x80" * MANY,
    "ten thousand lists of a thousand maps for messages": MESSAGES
    + announce_list(10_000)
    + (b"\xdc\x03\xe8" + b"\x80" * 1000) * 10_000,
    "a million lists that announce a million items each": announce_list(MANY) * (MANY // 5),
    "a thousand nested lists": b"\x92\xa8Generate\x81\xa6prompt" + b"\x91" * 1000 + b"\xc0",
    "a map of ten million fields": b"\x92\xa5Hello" + announce_map(MANY) + b"\x80" * MANY,
    "ten million empty maps where a number should be": NUMBER + announce_list(MANY) + b"\x80" * MANY,
    "ten million stop strings": STOPS + announce_list(MANY) + b"\xa0" * MANY,
    "ten million maps for a name": announce_list(MANY) + b"\x80" * MANY,
    "a string that announces more than there is": b"\x92\xa5Hello\x81\xa6client\xdb\xff\xff\xff\xff",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_frame_of_many_small_things_costs_hardly_more_than_itself(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadFrame):
            FROM_CLIENT.decode(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(bomb) * 1.1 + (1 << 20), "the parser's own copy, and a megabyte"


def test_the_largest_honest_list_costs_what_its_items_cost() -> None:
    frame = FROM_CLIENT.encode(Generate(1, tuple(ChatMessage("u", "x") for _ in range(protocol.MAX_MESSAGES))))
    tracemalloc.start()
    message = FROM_CLIENT.decode(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(message.messages) == protocol.MAX_MESSAGES
    assert peak < 4 << 20


def test_one_item_more_than_a_list_may_have_is_refused() -> None:
    fields = {"request": 1, "messages": [{"role": "u", "content": ""}] * (protocol.MAX_MESSAGES + 1)}
    with pytest.raises(BadFrame, match="10001 items; at most 10000"):
        FROM_CLIENT.decode(msgpack.packb(["Generate", fields]))


def test_a_frame_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadFrame, match=f"{MAX_FRAME_BYTES + 1} bytes; at most {MAX_FRAME_BYTES}"):
        FROM_CLIENT.decode(bytes(MAX_FRAME_BYTES + 1))


def test_a_prompt_that_fills_a_frame_is_read() -> None:
    message = Generate(1, prompt="é" * ((MAX_FRAME_BYTES - 1000) // 2))
    assert FROM_CLIENT.decode(FROM_CLIENT.encode(message)) == message


REFUSED = {
    "": "cut short",
    "c0": r"a frame is \[name, fields\]",
    "93a5Hello8001": r"a frame is \[name, fields\]",
    "9101": r"a frame is \[name, fields\]",
    "9201 80": r"a frame is \[name, fields\]",
    "92 a4Helo 80": "unknown message 'Helo'; did you mean 'Hello'",
    "92 a7Welcome 80": "unknown message 'Welcome'",
    "92 a5Hello 90": "Hello: must be a map, not a list",
    "92 a5Hello 80": "Hello: field 'version' is missing",
    "92 a5Hello 81 a7version c3": "Hello.version: must be int, not bool",
    "92 a5Hello 81 a7version cb3ff0000000000000": "Hello.version: must be int, not float",
    "92 a5Hello 81 a7version c0": "Hello.version: must be int, not None",
    "92 a5Hello 81 a7version d40000": "Hello.version: must be int, not something of no type we know",
    "92 a5Hello 81 a7version c1": "Hello.version: must be int, not something of no type we know",
    "92 a5Hello 81 a7versino 01": "unknown field 'versino'; did you mean 'version'",
    "92 a5Hello 82 a7version 01 a7version 01": "field 'version' is there twice",
    "92 a5Hello 81 01 01": "Hello: must be a map of names, not int",
    "92 a5Hello 82 a7version 01 a6client a2ffff": "not msgpack",
    "92 a5Hello 82 a7version 01 a6client c4 01 61": "Hello.client: must be str, not bytes",
    "92 a5Hello 81 a7version 01 c0": "more bytes behind it",
    "92 a5Hello 81 a7version": "cut short",
    "92 a5Hello 81 a7version cd01": "not msgpack: cut short",
}


def frame_of(spelled: str) -> bytes:
    """Hexadecimal, names in clear: a message's or a field's name follows its length."""
    frame, at = bytearray(), 0
    spelled = spelled.replace(" ", "")
    while at < len(spelled):
        byte = int(spelled[at : at + 2], 16)
        frame.append(byte)
        at += 2
        if 0xA3 <= byte < 0xC0 and spelled[at : at + byte - 0xA0].isalpha():
            frame += spelled[at : at + byte - 0xA0].encode()
            at += byte - 0xA0
    return bytes(frame)


@pytest.mark.parametrize(("spelled", "why"), REFUSED.items(), ids=REFUSED.values())
def test_what_is_wrong_with_a_frame_is_said(spelled: str, why: str) -> None:
    with pytest.raises(BadFrame, match=why):
        FROM_CLIENT.decode(frame_of(spelled))


def test_a_value_out_of_range_is_a_bad_frame() -> None:
    with pytest.raises(BadFrame, match=r"Generate\.options: temperature must be between 0 and 100, not -1"):
        FROM_CLIENT.decode(msgpack.packb(["Generate", {"request": 1, "prompt": "", "options": {"temperature": -1}}]))


def test_a_whole_number_may_stand_for_a_float_and_becomes_one() -> None:
    options = FROM_CLIENT.decode(msgpack.packb(["Generate", {"request": 1, "prompt": "", "options": {"top_p": 1}}])).options
    assert type(options.top_p) is float


def test_lists_become_tuples() -> None:
    piece = FROM_FRONT.decode(FROM_FRONT.encode(Piece("j", 0, "", (1, 300, 70_000))))
    assert piece.token_ids == (1, 300, 70_000)


def test_fields_with_a_default_may_be_left_out() -> None:
    assert FROM_CLIENT.decode(msgpack.packb(["Hello", {"version": 3}])) == Hello(3)


def test_only_messages_of_the_wire_are_encoded() -> None:
    with pytest.raises(TypeError, match="Options is not a message of this wire"):
        FROM_CLIENT.encode(Options())
    with pytest.raises(TypeError):
        FROM_FRONT.encode(Status(1))


def test_text_that_is_no_unicode_and_numbers_beyond_64_bits_are_not_encoded() -> None:
    with pytest.raises(UnicodeEncodeError):
        FROM_CLIENT.encode(Hello(1, "\ud800"))
    with pytest.raises(OverflowError):
        FROM_CLIENT.encode(Status(1 << 64))


def test_a_codec_refuses_to_be_made_of_fields_it_cannot_carry() -> None:
    with pytest.raises(TypeError, match=r"Odd\.field: a message cannot carry"):
        Codec(Odd)


@dataclass(frozen=True)
class Odd:
    field: set[int]
