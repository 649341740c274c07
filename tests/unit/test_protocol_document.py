"""docs/PROTOCOL.md against the modules that declare it: every message, field, type, default, code and limit, and nothing else."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest

import potatod.front
from potato_client import address, codec, job_report, protocol, question, status
from potatod.front import server

TEXT = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text()
RECORDS = {name: cls for name, cls in (vars(protocol) | vars(question) | vars(status) | vars(job_report)).items() if dataclasses.is_dataclass(cls)}
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL))


def rows(section: str) -> list[list[str]]:
    """The cells of all table rows that begin with a name."""
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def unquoted(cell: str) -> str:
    return cell.strip("`").replace("\\|", "|")


def spelled(field: dataclasses.Field[Any]) -> str:
    return str(field.type).replace('"', "'")


def default_of(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "–"
    return "Options()" if isinstance(field.default, question.Options) else repr(field.default)


def test_every_message_and_record_has_its_section_and_no_other_has() -> None:
    assert set(SECTIONS) == set(RECORDS)


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_every_field_stands_there_in_order_with_its_type_and_default(name: str) -> None:
    fields = [(f.name, spelled(f), default_of(f)) for f in dataclasses.fields(RECORDS[name])]
    told = [tuple(map(unquoted, row[:3])) for row in rows(SECTIONS[name]) if len(row) == 4]
    assert told == fields
    assert all(row[-1] for row in rows(SECTIONS[name])), "each has a meaning"


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_seconds_bytes_and_tokens_are_called_so(name: str) -> None:
    for row in (row for row in rows(SECTIONS[name]) if len(row) == 4):
        field, meaning = unquoted(row[0]), row[3]
        for ending, unit in (
            ("_s", "second"),
            ("_bytes", "bytes"),
            ("bytes_per_s", "bytes per second"),
            ("_tokens", "tokens"),
        ):
            assert not field.endswith(ending) or unit in meaning, (name, field)


def test_every_refusal_has_its_code_and_exit_code() -> None:
    told = {unquoted(code): int(exit_code) for code, exit_code, _ in (r for r in rows(SECTIONS["Refused"]) if len(r) == 3)}
    assert told == dict(protocol.REFUSAL_EXIT_CODES)
    assert set(told) == set(typing.get_args(protocol.RefusalCode))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("PROTOCOL_VERSION", "# The client protocol, version {}\n"),
        ("PROTOCOL_VERSION", "`PROTOCOL_VERSION` is {}."),
        ("HEARTBEAT_S", "every {:g} s (`HEARTBEAT_S`)"),
        ("SILENCE_S", "for {:g} s (`SILENCE_S`)"),
        ("VANISHED_S", "for {:g} s (`VANISHED_S`)"),
        ("FRAMES_PER_S", "{} frames a second (`FRAMES_PER_S`)"),
        ("BURST_FRAMES", "{} at once after a pause (`BURST_FRAMES`)"),
        ("MAX_FOLLOWED", "at most {} (`MAX_FOLLOWED`)"),
        ("MAX_LISTED", "1 to {:,} (`MAX_LISTED`)"),
        ("MAX_KEY_CHARS", "at most {} characters (`MAX_KEY_CHARS`)"),
        ("MAX_UNREAD", "({:,} messages, `MAX_UNREAD`)"),
        ("PROGRESS_EVERY_S", "every {:g} s (`PROGRESS_EVERY_S`)"),
        ("MAX_STOPS", "at most {} (`MAX_STOPS`)"),
        ("MAX_STOP_CHARS", "1 to {} characters (`MAX_STOP_CHARS`)"),
        ("MAX_BIASES", "at most {} (`MAX_BIASES`)"),
        ("MAX_SCHEMA_CHARS", "1 to {:,} characters (`MAX_SCHEMA_CHARS`)"),
        ("MAX_TOP_LOGPROBS", "0 to {} (`MAX_TOP_LOGPROBS`)"),
        ("MAX_MESSAGES", "at most {:,} (`MAX_MESSAGES`)"),
    ],
)
def test_every_limit_and_interval_is_given(name: str, said: str) -> None:
    assert said.format((vars(protocol) | vars(question))[name]) in TEXT


def test_the_limits_of_frames_and_paths_are_given() -> None:
    assert f"at most {codec.MAX_FRAME_BYTES:,} bytes (`MAX_FRAME_BYTES`)" in TEXT
    assert f"at most\n{address.MAX_PATH_BYTES} bytes" in TEXT


def test_every_constant_of_the_protocol_is_mentioned_and_no_other_is() -> None:
    known = {name for name in vars(protocol) | vars(question) if re.fullmatch(r"[A-Z][A-Z_]+", name) and not name.startswith("EXIT_")}
    told = set(re.findall(r"`([A-Z][A-Z_]+)`", TEXT))
    assert told <= known | {"POTATO_SOCKET", "MAX_FRAME_BYTES"}
    assert known - {"FROM_CLIENT", "FROM_FRONT", "REFUSAL_EXIT_CODES"} <= told


def test_whoever_refuses_takes_the_exit_code_from_the_table() -> None:
    """Nothing of ours names an exit code beside a refusal's code."""
    for code, exit_code in protocol.REFUSAL_EXIT_CODES.items():
        assert protocol.Refused.because(code, "why", request=3) == protocol.Refused(code, "why", exit_code, request=3)
    front = Path(potatod.front.__file__).parent
    direct = [path.name for path in sorted(front.glob("*.py")) if re.search(r"\bRefused\(|EXIT_", path.read_text())]
    assert not direct


def test_limits_are_named_in_the_protocol_and_nowhere_else() -> None:
    """The front's own copies of them would drift away from the document."""
    for name in ("FRAMES_PER_S", "BURST_FRAMES", "MAX_UNREAD", "VANISHED_S"):
        assert getattr(server, name) is getattr(protocol, name)


def test_no_message_is_named_that_does_not_exist() -> None:
    words = set(re.findall(r"`([A-Z][a-z]\w+)(?:\(|`)", TEXT))
    assert words - {"RefusalCode", "JobState", "JobAction", "ToolUse", "None", "True", "False", "Literal"} <= set(RECORDS)


def test_the_drawing_is_the_code_s_own() -> None:
    drawing = TEXT.split("\n\n")[2]
    assert "Hello(version)" in drawing
    assert drawing in (protocol.__doc__ or "")


def test_each_direction_names_its_messages() -> None:
    parts = dict(re.findall(r"^## (From the client|Both ways|From the front)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
    for name, sender in (("FROM_CLIENT", "From the client"), ("FROM_FRONT", "From the front")):
        for message in getattr(protocol, name)._readers:
            assert f"### `{message}`" in parts["Both ways" if message == "Alive" else sender]
