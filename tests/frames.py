"""Any message of a wire, from its types; and frames that were one before somebody changed them."""

from __future__ import annotations

import dataclasses
import random
import typing
from typing import Any

import hypothesis
from hypothesis import strategies as st

from potato_client import protocol, question
from potato_client.codec import Codec
from potato_client.job_report import JOB_STATES
from potato_client.protocol import Attach, Generate, List
from potato_client.question import ChatMessage, Options

INT = st.integers(-(1 << 63), (1 << 64) - 1)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: INT, float: st.floats(allow_nan=False), str: st.text(), bool: st.booleans(), bytes: st.binary(), type(None): st.none(),
}  # fmt: skip
OPTIONS = st.builds(
    Options,
    max_tokens=st.none() | st.integers(1, 1 << 31),
    temperature=st.none() | st.floats(0, 100),
    top_k=st.none() | st.integers(0, 1 << 31),
    top_p=st.none() | st.floats(0, 1, exclude_min=True),
    min_p=st.none() | st.floats(0, 1),
    repetition_penalty=st.none() | st.floats(1e-3, 1e3),
    seed=st.none() | st.integers(0, (1 << 63) - 1),
    stop=st.lists(st.text(min_size=1, max_size=256), max_size=16).map(tuple),
    thinking=st.none() | st.booleans(),
    choice=st.integers(0, 1 << 31),
    priority=st.sampled_from(question.PRIORITIES),
    frequency_penalty=st.none() | st.floats(-2, 2),
    presence_penalty=st.none() | st.floats(-2, 2),
    json_schema=st.none() | st.text(min_size=1, max_size=50),
    top_logprobs=st.none() | st.integers(0, 20),
    logit_bias=st.dictionaries(st.integers(0, 1 << 31), st.floats(-100, 100), max_size=5).map(lambda biases: tuple(biases.items())),
)
CHAT = st.builds(ChatMessage, st.text(), st.text(), st.none() | st.text())
KEY = st.text(max_size=protocol.MAX_KEY_CHARS)
COUNT = st.integers(0, 1 << 40)
TOOLS = st.lists(st.text(max_size=50), max_size=3).map(tuple)
#: Those that refuse some values.
GIVEN: dict[Any, st.SearchStrategy[Any]] = {
    Options: OPTIONS,
    Generate: st.builds(Generate, INT, st.lists(CHAT, min_size=1).map(tuple), st.none(), OPTIONS, KEY, st.booleans(), TOOLS)
    | st.builds(Generate, INT, st.just(()), st.text(), OPTIONS, KEY, st.booleans()),
    Attach: st.builds(Attach, INT, st.text(), COUNT, COUNT, COUNT),
    List: st.builds(List, INT, st.lists(st.sampled_from(JOB_STATES)).map(tuple), COUNT, st.integers(1, protocol.MAX_LISTED)),
}


def of_type(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of that type may hold."""
    args = typing.get_args(hint)
    if hint in GIVEN:
        return GIVEN[hint]
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{field.name: of_type(hints[field.name]) for field in dataclasses.fields(hint)})
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(args)
    if typing.get_origin(hint) is tuple:
        return st.lists(of_type(args[0]), max_size=5).map(tuple)
    return st.one_of(*map(of_type, args)) if args else SCALARS[hint]


def of(codec: Codec) -> st.SearchStrategy[Any]:
    """Any message of that codec."""
    return st.one_of(*(of_type(cls) for cls, _ in codec._readers.values()))


def examples(codec: Codec, count: int, seed: int) -> list[Any]:
    """About so many messages of that codec, the same ones for each seed."""
    found: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, database=None, phases=[hypothesis.Phase.generate], suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(of(codec))
    def collect(message: Any) -> None:
        found.append(message)

    collect()
    return found


#: What msgpack takes for long strings, lists and maps, and for other things that are not there.
_HEADS = tuple(
    bytes.fromhex(each)
    for each in ("dbffffffff", "ddffffffff", "df7fffffff", "c6fffffff0", "c97fffffff01", "c1", "c0", "91" * 700, "81" * 700, "cb7ff8000000000000")
)


def mutated(frame: bytes, others: typing.Sequence[bytes], chance: random.Random) -> bytes:
    """The frame, changed in some places: bits, bytes, lengths, pieces of other frames, nesting, a cut."""
    data = bytearray(frame)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 9))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(8):
            case 0 | 1 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 2 if at < len(data):
                data[at] = chance.randrange(256)
            case 3:
                del data[at:]
            case 4:
                del data[at : at + chance.randint(1, 8)]
            case 5:
                other = chance.choice(others)
                data[at:at] = other[chance.randrange(len(other) + 1) :][: chance.randint(1, 64)]
            case 6:
                data[at:at] = chance.choice(_HEADS)
            case _:
                data += data[at:]
    return bytes(data)
