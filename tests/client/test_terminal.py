"""`potato-client` on a terminal: the live line, the figures, dim thoughts, Ctrl-C, and the chat."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from potato_client.protocol import Accepted, Generate, Manage, Piece, Progress
from potato_client.question import ChatMessage

from .conftest import StartFront
from .fake_front import Said, finished, pieces, refused

PROGRAM = str(Path(sys.executable).parent / "potato-client")
PATIENCE_S = 30

Spawn = Callable[..., Any]


@pytest.fixture
def spawn(place: Path) -> Iterator[Spawn]:
    programs: list[Any] = []
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(place), "LANG": "C.UTF-8", "TERM": "xterm",
        "POTATO_SOCKET": f"ipc://{place}/front.sock", "PROMPT_TOOLKIT_NO_CPR": "1",
    }  # fmt: skip

    def begin(*arguments: str, **more: str) -> Any:
        program = pexpect.spawn(
            PROGRAM, list(arguments), env={**environment, **more},
            encoding="utf-8", timeout=PATIENCE_S, dimensions=(24, 100), use_poll=True,
        )  # fmt: skip
        programs.append(program)
        return program

    yield begin
    for program in programs:
        program.close(force=True)


def rest(program: Any) -> str:
    """All that is still shown, to the end of the program."""
    program.expect(pexpect.EOF)
    program.close()
    shown = program.before
    assert isinstance(shown, str)
    return shown


def waits(generate: Generate, job: str) -> Iterator[Said]:
    yield Accepted(generate.request, job, 42, 7, 2)
    yield 0.2
    yield Progress(job, "queued", place=1)
    yield 0.2
    yield Progress(job, "prefill", layers_done=12, layers=30, prompt_tokens=7, s_per_token=0.35, eta_s=3)
    yield 0.2
    yield Progress(job, "restarting")
    yield 0.2
    yield from pieces(job, "The capital is", " Paris.")
    yield 0.2
    yield Progress(job, "restarting")
    yield finished(job, 2, sweeps=2, disk_bytes=524_000_000, disk_bytes_per_s=7e8, disk_limit_bytes_per_s=1e9)


def test_while_nothing_has_come_one_line_says_what_goes_on(spawn: Spawn, start: StartFront) -> None:
    start(waits)
    program = spawn("x")
    program.expect_exact("in the queue, 2 answers before this one")
    program.expect_exact("\r\x1b[Kin the queue, 1 answer before this one")
    program.expect_exact("\r\x1b[Kprefill 0/7 tokens, 12/30 layers · 0.35 s/token · first token in about 4 s")
    program.expect_exact("\r\x1b[Kengine restarting")
    program.expect_exact("\r\x1b[KThe capital is Paris.\r\n")
    figures = rest(program)
    assert re.fullmatch(r"2 tokens · \S+ s/token · 262MB read from disk per sweep · 70% of the disk's 1\.0GB/s\r\n", figures)
    assert program.exitstatus == 0


def test_quiet_shows_the_answer_alone(spawn: Spawn, start: StartFront) -> None:
    start(waits)
    assert rest(spawn("x", "--quiet")) == "The capital is Paris.\r\n"


def test_json_shows_the_live_line_and_the_object(spawn: Spawn, start: StartFront) -> None:
    start(waits)
    program = spawn("x", "--json")
    program.expect_exact("engine restarting")
    assert re.search(r'\r\x1b\[K\{"id": "job-1", .*\}\r\n$', rest(program))


def test_the_live_line_is_no_longer_than_the_terminal(spawn: Spawn, start: StartFront) -> None:
    start(waits)
    program = spawn("x", COLUMNS="20")
    shown = rest(program)
    assert "\r\x1b[Kin the queue, 1 ans\r" in shown


def test_thoughts_are_dim_before_the_answer_and_control_characters_have_no_power(spawn: Spawn, start: StartFront) -> None:
    def thinks(generate: Generate, job: str) -> Iterator[Said]:
        yield Accepted(generate.request, job, 42, 7, 0)
        yield Piece(job, 0, "", (1,), "let me think\x1b]0;owned\x07")
        yield Piece(job, 1, "\n\n", (2,))
        yield Piece(job, 2, "Paris\x1b[2J.", (3,))
        yield finished(job, 3)

    start(thinks)
    shown = rest(spawn("x", "--quiet"))
    assert shown == "\x1b[2mlet me think␛]0;owned␇\x1b[0m\r\n\r\nParis␛[2J.\r\n"
    assert "\x1b" not in rest(spawn("x", "--quiet", NO_COLOR="1"))


def endless(generate: Generate, job: str) -> Iterator[Said]:
    yield Accepted(generate.request, job, 42, 7, 0)
    yield from pieces(job, *["word "] * 100_000, every_s=0.01)


def test_ctrl_c_cancels_leaves_a_whole_line_and_ends_with_130(spawn: Spawn, start: StartFront) -> None:
    front = start(endless)
    program = spawn("x")
    program.expect_exact("word word")
    program.sendintr()
    assert re.search(r"\^C\r\nstopped before the first token", rest(program))
    assert program.exitstatus == 130
    assert front.of(Manage) == [Manage(0, "job-1", "cancel")]


def test_an_error_in_the_middle_of_an_answer_begins_a_line(spawn: Spawn, start: StartFront) -> None:
    def fails(generate: Generate, job: str) -> Iterator[Said]:
        yield Accepted(generate.request, job, 42, 7, 0)
        yield from pieces(job, "half an ans")
        yield refused("internal", "the sampler failed", job=job)

    start(fails)
    program = spawn("x")
    assert rest(program) == "half an ans\r\npotato-client: the sampler failed\r\n"
    assert program.exitstatus == 70


def test_nothing_to_ask_on_a_terminal_is_a_sentence(spawn: Spawn) -> None:
    program = spawn()
    assert "there is nothing to ask" in rest(program)
    assert program.exitstatus == 64


# chat

#: What prompt_toolkit writes before each prompt: from here on a terminal marks what is pasted.
PROMPT = "\x1b[?2004h"
ALT_ENTER = "\x1b\r"


def echo(generate: Generate, job: str) -> Iterator[Said]:
    """Answers with the number of messages and the last of them."""
    if "fail" in generate.messages[-1].content:
        yield refused("prompt_too_long", "too long, by far", request=generate.request)
        return
    if "slow" in generate.messages[-1].content:
        yield from endless(generate, job)
    yield Accepted(generate.request, job, 42, 7, 0)
    yield Piece(job, 0, f"answer {len(generate.messages)} to <{generate.messages[-1].content}>", (1,))
    yield finished(job, 1)


def say(program: Any, text: str) -> None:
    """As a person types: after the prompt, and Enter apart from the text, or it is taken for a paste."""
    program.send(text)
    time.sleep(0.2)
    program.send("\r")


@pytest.fixture
def front(start: StartFront) -> Any:
    return start(echo)


def begin(spawn: Spawn) -> Any:
    program = spawn("chat", "--quiet", "--seed", "5")
    program.expect_exact("tiny · /help")
    program.expect_exact(PROMPT)
    return program


def turn(program: Any, text: str, answer: str) -> None:
    say(program, text)
    program.expect_exact(answer)
    program.expect_exact(PROMPT)


def leave(program: Any) -> None:
    time.sleep(0.2)
    program.sendeof()
    rest(program)
    assert program.exitstatus == 0


def test_each_turn_sends_the_whole_conversation(spawn: Spawn, front: Any) -> None:
    program = begin(spawn)
    turn(program, "one", "answer 1 to <one>")
    turn(program, "two", "answer 3 to <two>")
    leave(program)
    last = front.of(Generate)[-1]
    assert last.options.seed == 5
    assert last.messages == (
        ChatMessage("user", "one"),
        ChatMessage("assistant", "answer 1 to <one>"),
        ChatMessage("user", "two"),
    )


def test_alt_enter_begins_a_new_line(spawn: Spawn, front: Any) -> None:
    program = begin(spawn)
    program.send("one" + ALT_ENTER)
    time.sleep(0.2)
    say(program, "two")
    program.expect_exact("answer 1")
    leave(program)
    assert front.of(Generate)[0].messages[-1].content == "one\ntwo"


def test_ctrl_c_ends_the_answer_and_not_the_chat(spawn: Spawn, front: Any) -> None:
    program = begin(spawn)
    say(program, "slow")
    program.expect_exact("word word")
    program.sendintr()
    program.expect_exact(PROMPT)
    front.wait_for(Manage)
    turn(program, "after", "answer 3 to <after>")
    leave(program)


def test_ctrl_c_while_typing_drops_what_was_typed(spawn: Spawn, front: Any) -> None:
    program = begin(spawn)
    program.send("not this")
    time.sleep(0.2)
    program.sendintr()
    program.expect_exact(PROMPT)
    turn(program, "this", "answer 1 to <this>")
    leave(program)


def test_a_turn_that_is_refused_is_as_if_it_had_never_been(spawn: Spawn, front: Any) -> None:
    program = begin(spawn)
    turn(program, "one", "answer 1")
    turn(program, "fail", "too long, by far")
    turn(program, "two", "answer 3 to <two>")
    leave(program)


def test_a_daemon_that_is_replaced_between_two_turns_is_not_missed(spawn: Spawn, front: Any, start: StartFront) -> None:
    program = begin(spawn)
    turn(program, "one", "answer 1")
    front.close()
    start(echo).boot = "boot-2"
    turn(program, "two", "answer 3 to <two>")
    leave(program)


def test_the_commands_of_a_chat(spawn: Spawn, front: Any) -> None:
    program = begin(spawn)
    turn(program, "/system", "there is no system message")
    turn(program, "/system be brief", "system: be brief")
    turn(program, "one", "answer 2 to <one>")
    turn(program, "/clear", "forgotten")
    turn(program, "two", "answer 2 to <two>")
    turn(program, "/help", "Ctrl-D leaves")
    turn(program, "/clera", "did you mean /clear?")
    turn(program, "/etc/passwd is what?", "</etc/passwd is what?>")
    turn(program, "//help", "to </help>")
    assert front.of(Generate)[1].messages[0] == ChatMessage("system", "be brief")
    say(program, "/exit")
    rest(program)
    assert program.exitstatus == 0


def test_the_history_is_kept_for_the_next_chat_and_for_this_user_only(spawn: Spawn, front: Any, place: Path) -> None:
    program = begin(spawn)
    turn(program, "remember me", "answer 1")
    leave(program)
    kept = place / ".local" / "state" / "potato" / "chat-history"
    assert "remember me" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600
    program = begin(spawn)
    program.send("\x1b[A")  # arrow up
    program.expect_exact("remember me")
    leave_with_text(program)


def leave_with_text(program: Any) -> None:
    """Ctrl-D leaves on an empty line only, as in a shell."""
    time.sleep(0.2)
    program.sendintr()
    program.expect_exact(PROMPT)
    leave(program)


def test_a_chat_without_a_daemon_does_not_begin(spawn: Spawn) -> None:
    program = spawn("chat")
    assert "potatod start" in rest(program)
    assert program.exitstatus == 69
