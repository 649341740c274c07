"""The pure parts of a client: what is asked, what is collected, which socket, and the words for people."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from potato_client import words
from potato_client.address import MAX_PATH_BYTES, Stale, endpoint, look
from potato_client.answer import Collected
from potato_client.asking import generate_message
from potato_client.errors import BadKey, BadRequest, BadSocket, DaemonLost, NoDaemon, NotUnderstood
from potato_client.paths import default_socket, state_directory
from potato_client.protocol import Accepted, LikelyToken, Piece, Progress, TokenLogprob
from potato_client.question import ChatMessage, Options
from potato_client.session import Event

from .fake_front import finished

# what is asked


def test_a_question_becomes_a_conversation_of_one_message() -> None:
    assert generate_message(1, "why?").messages == (ChatMessage("user", "why?"),)


def test_a_system_message_comes_before_everything() -> None:
    messages = generate_message(1, [{"role": "user", "content": "a"}], system="be brief").messages
    assert messages == (ChatMessage("system", "be brief"), ChatMessage("user", "a"))


def test_raw_text_is_a_prompt_and_nothing_else() -> None:
    message = generate_message(1, "Once upon", raw=True)
    assert (message.prompt, message.messages) == ("Once upon", ())


def test_a_schema_is_its_text_or_what_json_makes_of_it() -> None:
    for schema in ('{"type": "string", "const": "ö"}', {"type": "string", "const": "ö"}):
        assert generate_message(1, "x", options={"json_schema": schema}).options == Options(json_schema='{"type": "string", "const": "ö"}')
    assert generate_message(1, "x", options={"json_object": True, "json_schema": None}).options == Options(json_object=True)
    with pytest.raises(BadRequest, match="json_schema"):
        generate_message(1, "x", options={"json_schema": {"type": {1, 2}}})


def test_biases_are_a_mapping_by_token_and_in_whatever_order_the_same_request() -> None:
    asked = [generate_message(1, "x", key="k", options={"logit_bias": biases}) for biases in ({7: 1.5, 3: -2}, {"3": -2, "7": 1.5})]
    assert asked[0] == asked[1]
    assert asked[0].options == Options(logit_bias=((3, -2), (7, 1.5)))
    assert generate_message(1, "x", options={"logit_bias": {}}).options == Options()


@pytest.mark.parametrize("biases", [[(7, 1.5)], {"seven": 1.5}, {None: 1.5}, {1.5: 1.5}, {"7": "much"}, {7: 1000}, {"7": 1, 7: 2}, {"9" * 30: 1}])
def test_biases_that_are_none_are_refused(biases: Any) -> None:
    with pytest.raises(BadRequest, match="logit_bias"):
        generate_message(1, "x", options={"logit_bias": biases})


def test_options_that_are_none_are_left_to_the_daemon() -> None:
    options = generate_message(1, "x", options={"seed": 3, "top_k": None, "stop": "END", "thinking": False}).options
    assert options == Options(seed=3, stop=("END",), thinking=False)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"prompt": "x", "options": {"max_token": 3}}, "unknown option 'max_token'; did you mean 'max_tokens'"),
        ({"prompt": "x", "options": {"zzz": 3}}, "known are max_tokens, "),
        ({"prompt": "x", "options": {"temperature": 1000}}, "temperature must be"),
        ({"prompt": [{"role": "user", "contents": "x"}]}, "'contents'; did you mean 'content'"),
        ({"prompt": [{"role": "user"}]}, "a role and a content"),
        ({"prompt": ["x"]}, "not str"),
        ({"prompt": []}, "either messages or prompt"),
        ({"prompt": [ChatMessage("user", "x")], "raw": True}, "raw goes on with one text"),
        ({"prompt": "x", "raw": True, "system": "y"}, "a system message needs"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_in_a_sentence(arguments: Any, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        generate_message(1, **arguments)


# what is collected


def collected(*events: tuple[Any, float]) -> Collected:
    answer = Collected(1)
    for what, at_s in events:
        answer.take(Event(1, what, at_s))
    return answer


def test_an_answer_is_its_pieces() -> None:
    answer = collected(
        (Accepted(1, "a", 5, 7, 0), 0.0),
        (Progress("a", "prefill"), 1.0),
        (Piece("a", 0, "", (1,), "hm"), 10.0),
        (Piece("a", 1, "Par", (2, 3)), 11.0),
        (Piece("a", 3, "is", ()), 12.0),
        (Piece("a", 3, "", (4,)), 16.0),
        (finished("a", 4), 20.0),
    )
    assert (answer.text, answer.reasoning, answer.token_ids) == ("Paris", "hm", (1, 2, 3, 4))
    assert answer.s_per_token == pytest.approx((16 - 10) / 3), "from the first token's arrival to the last one's"
    assert answer.over


def test_seconds_per_token_need_two_tokens() -> None:
    assert collected((Piece("a", 0, "x", (1,)), 1.0), (finished("a", 1), 9.0)).s_per_token is None


def test_log_probabilities_are_collected_beside_their_tokens() -> None:
    likely = [TokenLogprob(token, -0.5, b"x", (LikelyToken(token, -0.5, b"x"),)) for token in (1, 2, 3)]
    first, second = Piece("a", 0, "x", (1, 2), "", (likely[0], likely[1])), Piece("a", 2, "y", (3,), "", (likely[2],))
    assert collected((first, 1.0), (second, 2.0)).logprobs == tuple(likely)
    assert collected((Piece("a", 0, "x", (1,)), 1.0)).logprobs == ()
    assert collected((finished("a", 0), 1.0)).s_per_token is None


@pytest.mark.parametrize("index", [0, 2])
def test_missing_or_repeated_tokens_are_noticed(index: int) -> None:
    answer = collected((Piece("a", 0, "x", (1,)), 1.0))
    with pytest.raises(NotUnderstood, match="tokens of the answer are missing"):
        answer.take(Event(1, Piece("a", index, "y", (2,)), 2.0))
    assert answer.over


def test_an_error_ends_an_answer_and_leaves_what_came() -> None:
    answer = collected((Piece("a", 0, "half", (1,)), 1.0))
    with pytest.raises(DaemonLost):
        answer.take(Event(1, DaemonLost("gone"), 2.0))
    assert answer.over
    assert answer.text == "half"


# which socket


def test_the_default_socket_lies_in_the_user_s_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_socket() == "ipc:///run/user/7/potato/front.sock"


@pytest.mark.parametrize("runtime", [None, "", "relative"])
def test_without_one_it_lies_in_the_system_s_or_under_tmp(monkeypatch: pytest.MonkeyPatch, runtime: str | None) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    if runtime is not None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    monkeypatch.setattr(Path, "is_dir", lambda self: self == Path("/run/potato"))
    assert default_socket() == "ipc:///run/potato/front.sock"
    monkeypatch.setattr(Path, "is_dir", lambda self: False)
    assert default_socket() == f"ipc:///tmp/potato-{os.getuid()}/front.sock"


def test_what_was_given_goes_before_the_variable_and_that_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTATO_SOCKET", "ipc:///from/variable")
    assert endpoint("ipc:///given").address == "ipc:///given"
    assert endpoint(None).address == "ipc:///from/variable"
    monkeypatch.delenv("POTATO_SOCKET")
    assert endpoint(None).address == default_socket()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("tcp://127.0.0.1:5555", "needs a key"),
        ("/run/potato/front.sock", "it is ipc:// and an absolute path"),
        ("ipc://front.sock", "it is ipc:// and an absolute path"),
        ("inproc://x", "is no address"),
        ("ipc:///a\0b", "NUL"),
        ("ipc:///" + "x" * MAX_PATH_BYTES, f"has {MAX_PATH_BYTES + 1} bytes, and the system takes at most 107"),
        ("ipc:///" + "é" * 60, "has 121 bytes"),
    ],
)
def test_an_address_that_is_none_is_refused_in_a_sentence(address: str, why: str) -> None:
    with pytest.raises((BadSocket, BadKey), match=why) as told:
        endpoint(address)
    assert told.value.exit_code == 64


def test_the_longest_path_is_allowed() -> None:
    assert endpoint("ipc:///" + "x" * (MAX_PATH_BYTES - 1))


def test_a_missing_socket_is_said_with_what_to_do(place: Path) -> None:
    for path in (place / "front.sock", place / "no" / "front.sock"):
        with pytest.raises(NoDaemon, match=r"there is no socket .*potatod start"):
            look(f"ipc://{path}")


def test_a_socket_left_behind_by_a_dead_daemon_is_told_from_a_missing_one(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "s"))
    with pytest.raises(Stale, match="it has ended"):
        look(f"ipc://{place}/s")


def test_a_file_that_is_no_socket_is_no_daemon(place: Path) -> None:
    (place / "s").write_text("")
    with pytest.raises(NoDaemon, match="potatod start"):
        look(f"ipc://{place}/s")


def test_a_socket_that_listens_is_one(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place / "s"))
        listening.listen(0)
        for _ in range(4):  # a full queue of connections is a busy daemon
            look(f"ipc://{place}/s")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can listen as somebody else")
def test_another_user_s_daemon_is_not_trusted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place / "s"))
        os.seteuid(65534)
        try:
            listening.listen()
        finally:
            os.seteuid(0)
        look(f"ipc://{place}/s")  # root may talk to anybody
        monkeypatch.setattr(os, "getuid", lambda: 4242)
        with pytest.raises(NoDaemon, match="runs as user 65534"):
            look(f"ipc://{place}/s")


def test_history_is_kept_in_the_state_directory(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert state_directory() == Path("/s/potato")
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/h")
    assert state_directory() == Path("/h/.local/state/potato")


# words


def test_every_state_has_words() -> None:
    for state in get_args(get_type_hints(Progress)["state"]):
        assert words.progress(Progress("a", state))


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (Progress("a", "queued", place=1), "in the queue, 1 answer before this one"),
        (Progress("a", "queued", eta_s=61), "about to start · first token in about 1 min 2 s"),
        (Progress("a", "queued"), "about to start"),
        (
            Progress("a", "prefill", layers_done=12, layers=30, prompt_tokens=7, s_per_token=0.3456),
            "prefill 0/7 tokens, 12/30 layers · 0.346 s/token",
        ),
        (Progress("a", "decode", s_per_token=2.0), "decoding · 2 s/token"),
        (Progress("a", "restarting"), "engine restarting"),
        (Progress("a", "paused"), "paused"),
        (Progress("a", "paused", place=2, s_per_token=2.0, why="this machine runs on battery"), "paused: this machine runs on battery"),
    ],
)  # fmt: skip
def test_progress_is_said_in_a_line(progress: Progress, said: str) -> None:
    assert words.progress(progress) == said


def test_a_summary_has_tokens_speed_bytes_and_the_share_of_the_disk() -> None:
    done = finished("a", 3, sweeps=4, disk_bytes=800_000_000, disk_bytes_per_s=1.06e9, disk_limit_bytes_per_s=2e9)
    guessed = dataclasses.replace(done, completion_tokens=30, drafted_tokens=40, accepted_tokens=20)
    assert "3 tokens per sweep" in words.summary(guessed, 0.1)
    assert words.summary(done, 0.3456) == ("3 tokens · 0.346 s/token · 200MB read from disk per sweep · 53% of the disk's 2.0GB/s")


def test_a_summary_leaves_out_what_is_not_known() -> None:
    assert words.summary(finished("a", 1), None) == "1 token"
    assert words.summary(finished("a", 0, sweeps=1), None) == "0 tokens"


def test_a_summary_of_what_was_stopped_says_so() -> None:
    assert words.summary(finished("a", 0, "cancelled", sweeps=1), None) == "stopped before the first token"
    assert words.summary(finished("a", 1, "cancelled"), 0.5) == "stopped after 1 token · 0.5 s/token"


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert words.harmless("\x1b[2J\r\x07\x7f\x9b31m") == "␛[2J␍␇␡\ufffd31m"
    assert words.harmless("a\tb\nc é 土 🥔") == "a\tb\nc é 土 🥔"
    assert words.one_line("a\n\tb\x1b") == "a b␛"
