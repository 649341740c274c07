"""`potato-client` as a program, with pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from potato_client.protocol import Accepted, Generate, Manage, Piece
from potato_client.question import ChatMessage, Options

from .conftest import StartFront
from .fake_front import FakeFront, Said, finished, pieces, refused

PROGRAM = Path(sys.executable).parent / "potato-client"
PATIENCE_S = 60

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def environment(place: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"], "HOME": str(place), "LANG": "C.UTF-8", "POTATO_SOCKET": f"ipc://{place}/front.sock",
        "PYTHONWARNINGS": "error",
    }  # fmt: skip


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def begin(*arguments: str | bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([PROGRAM, *arguments], input=stdin, capture_output=True, timeout=PATIENCE_S, env=environment, check=False)

    return begin


def sentence(done: subprocess.CompletedProcess[bytes], exit_code: int) -> str:
    """What a program that could not says: one line on stderr, nothing on stdout."""
    said = done.stderr.decode()
    assert done.returncode == exit_code, said
    assert said.count("\n") == 1, said
    assert said.startswith("potato-client: ")
    assert done.stdout == b""
    return said


def asked(front: FakeFront) -> Generate:
    (generate,) = front.of(Generate)
    assert isinstance(generate, Generate)
    return generate


def test_the_answer_is_on_stdout_and_nothing_else_anywhere(run: Run, start: StartFront) -> None:
    front = start()
    done = run("What is the capital of France?")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"The capital is Paris.\n", b"")
    assert asked(front).messages == (ChatMessage("user", "What is the capital of France?"),)


def test_every_option_reaches_the_daemon(run: Run, start: StartFront) -> None:
    front = start()
    options = "--max-tokens 5 --temperature 0.5 --top-p 0.9 --top-k 40 --min-p 0.05 --repetition-penalty 1.1 --seed 7"
    run(*options.split(), "--stop", "END", "--stop", "\n", "--thinking", "off", "--system", "be brief", "x", "--quiet")
    assert asked(front).options == Options(5, 0.5, 40, 0.9, 0.05, 1.1, 7, ("END", "\n"), False)
    assert asked(front).messages == (ChatMessage("system", "be brief"), ChatMessage("user", "x"))


def test_what_is_not_given_is_left_to_the_daemon(run: Run, start: StartFront) -> None:
    front = start()
    run("x")
    assert asked(front).options == Options()


def test_raw_sends_the_text_as_it_is(run: Run, start: StartFront) -> None:
    front = start()
    assert run("--raw", stdin=b"Once upon a time\n").returncode == 0
    assert (asked(front).prompt, asked(front).messages) == ("Once upon a time\n", ())


def test_a_blank_is_something_to_go_on_from(run: Run, start: StartFront) -> None:
    front = start()
    assert run("--raw", " ").returncode == 0
    assert asked(front).prompt == " "


def test_stdin_alone_is_the_prompt(run: Run, start: StartFront) -> None:
    front = start()
    run(stdin="what?\nand é?\n".encode())
    assert asked(front).messages[0].content == "what?\nand é?"


def test_a_prompt_is_followed_by_a_blank_line_and_what_was_piped(run: Run, start: StartFront) -> None:
    front = start()
    run("explain this", stdin=b"line 1\nline 2\n")
    assert asked(front).messages[0].content == "explain this\n\nline 1\nline 2"


@pytest.mark.parametrize(
    "arguments",
    [["ask", "status"], ["--quiet", "ask", "status"], ["--", "status"], ["ask", "--seed", "1", "status"]],
    ids=" ".join,
)
def test_a_word_that_is_a_command_can_be_asked(run: Run, start: StartFront, arguments: list[str]) -> None:
    front = start()
    assert run(*arguments).returncode == 0
    assert asked(front).messages[0].content == "status"


def test_options_may_stand_before_a_command(run: Run, start: StartFront, environment: dict[str, str]) -> None:
    front = start()
    del environment["POTATO_SOCKET"]
    assert run("--socket", front.address, "status").returncode == 0
    assert run("--socket=" + front.address, "status", "--json").returncode == 0


def test_an_option_s_value_is_not_taken_for_a_command(run: Run, start: StartFront) -> None:
    front = start()
    assert run("--system", "status", "x").returncode == 0
    assert asked(front).messages[0] == ChatMessage("system", "status")


def test_a_prompt_may_begin_with_a_dash(run: Run, start: StartFront) -> None:
    front = start()
    assert run("--", "-5 + 3?").returncode == 0
    assert asked(front).messages[0].content == "-5 + 3?"


def test_json_is_one_object(run: Run, start: StartFront) -> None:
    start()
    done = run("x", "--json")
    answer = json.loads(done.stdout)
    assert answer.pop("s_per_token") >= 0
    assert answer == {
        "id": "job-1", "choice": 0, "text": "The capital is Paris.", "token_ids": [100, 101, 102], "finish_reason": "stop",
        "prompt_tokens": 7, "completion_tokens": 3, "seed": 42,
        "timings": {"queued_s": 0.125, "prefill_s": 0.25, "decode_s": 0.5},
    }  # fmt: skip
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""


def test_several_answers_to_one_prompt_come_one_below_the_other(run: Run, start: StartFront) -> None:
    front = start()
    done = run("x", "-n", "2")
    assert done.stdout.decode() == "--- 1 of 2 ---\nThe capital is Paris.\n--- 2 of 2 ---\nThe capital is Paris.\n"
    options = [message.options for message in front.received if isinstance(message, Generate)]
    assert [each.choice for each in options] == [0, 1]
    assert options[0].seed == options[1].seed is not None
    objects = [json.loads(line) for line in run("x", "-n", "3", "--seed", "5", "--json").stdout.splitlines()]
    assert [each["choice"] for each in objects] == [0, 1, 2]


@pytest.mark.parametrize("count", ["0", "-1", "300"])
def test_so_many_answers_cannot_be_asked_for(run: Run, start: StartFront, count: str) -> None:
    start()
    assert sentence(run("x", "--answers", count), 64) == "potato-client: --answers must be a whole number from 1 to 256\n"


def test_a_batch_says_so(run: Run, start: StartFront) -> None:
    front = start()
    assert run("x", "--batch").returncode == 0
    assert asked(front).options.priority == "batch"


def thinks(generate: Generate, job: str) -> Iterator[Said]:
    yield Accepted(generate.request, job, 42, 7, 0)
    yield Piece(job, 0, "", (1,), "let me\nthink")
    yield Piece(job, 1, "é🥔\x1b[0m", (2,))
    yield finished(job, 2)


def test_json_has_the_reasoning_where_there_is_one(run: Run, start: StartFront) -> None:
    start(thinks)
    answer = json.loads(run("x", "--json").stdout)
    assert (answer["reasoning"], answer["text"]) == ("let me\nthink", "é🥔\x1b[0m")


def test_reasoning_goes_to_stderr_and_the_answer_to_stdout_byte_for_byte(run: Run, start: StartFront) -> None:
    start(thinks)
    done = run("x")
    assert done.stdout == "é🥔\x1b[0m\n".encode()
    assert done.stderr == b"let me\nthink\n"


def test_quiet_leaves_the_reasoning_out(run: Run, start: StartFront) -> None:
    start(thinks)
    done = run("x", "--quiet")
    assert (done.stdout, done.stderr) == ("é🥔\x1b[0m\n".encode(), b"")


def test_a_locale_that_lacks_a_character_ends_no_answer(run: Run, start: StartFront, environment: dict[str, str]) -> None:
    start(thinks)
    environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = run("x")
    assert (done.returncode, done.stdout) == (0, b"??\x1b[0m\n")


# what cannot be asked


@pytest.mark.parametrize("stdin", [b"", b"  \n\n"])
@pytest.mark.parametrize("arguments", [[], [""], ["  "], ["ask"]])
def test_an_empty_prompt_is_a_sentence(run: Run, arguments: list[str], stdin: bytes) -> None:
    assert "there is nothing to ask" in sentence(run(*arguments, stdin=stdin), 64)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["x", "--max-tokns", "5"], "--max-tokens"),
        (["x", "--temprature=1"], "--temperature"),
        (["status", "--jsn"], "--json"),
        (["x", "--max-tokens", "0"], "--max-tokens must be a whole number of 1 or more, not 0"),
        (["x", "--top-p", "2"], "--top-p must be greater than 0 and at most 1"),
        (["x", "--temperature", "nan"], "--temperature must be between 0 and 100"),
        (["x", "--seed", "1.5"], "'1.5' is not a valid integer"),
        (["x", "--seed", "9" * 30], "--seed must be"),
        (["x", "--thinking", "maybe"], "'maybe' is not one of"),
        (["x", "--stop", ""], "a stop string has 1 to"),
        (["what", "is", "this"], 'put it in quotes: potato-client "what is this"'),
        (["x", "--raw", "--system", "y"], "needs the model's chat template"),
        (["x", "--socket", "tcp://localhost:1"], "needs a key"),
        (["x", "--socket", "front.sock"], "ipc:// and an absolute path"),
        (["x", "--socket", "ipc:///" + "x" * 120], "takes at most 107"),
        (["chat"], "needs a terminal"),
        ([b"\xff\xfe"], "Unicode"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(run: Run, start: StartFront, arguments: Any, why: str) -> None:
    front = start()
    assert why in sentence(run(*arguments), 64)
    assert front.received == []


def test_stdin_that_is_no_utf_8_says_where(run: Run) -> None:
    assert "not UTF-8: byte 3 is 0xff" in sentence(run("x", stdin=b"abc\xff"), 64)


def test_stdin_larger_than_a_prompt_may_be_is_said(run: Run) -> None:
    assert "larger than" in sentence(run("x", stdin=b"a" * (17 << 20)), 64)


def test_a_closed_stdin_is_no_text(start: StartFront, environment: dict[str, str]) -> None:
    start()
    done = subprocess.run(["sh", "-c", f"{PROGRAM} x <&-"], capture_output=True, timeout=PATIENCE_S, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, b"The capital is Paris.\n")


# what goes wrong


@pytest.mark.parametrize("command", ["x", "status"])
def test_no_daemon_is_a_sentence_within_seconds(run: Run, command: str) -> None:
    assert "potatod start" in sentence(run(command), 69)


def test_a_refusal_is_its_sentence_and_its_exit_code(run: Run, start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield refused("prompt_too_long", "the prompt has 3000 tokens,\n\x1b[31mthe context 2048", request=generate.request)

    start(script)
    said = sentence(run("x"), 64)
    assert said == "potato-client: the prompt has 3000 tokens, ␛[31mthe context 2048\n"


@pytest.mark.parametrize(("code", "exit_code"), [("queue_full", 75), ("degraded", 75), ("internal", 70)])
def test_a_refusal_decides_the_exit_code(run: Run, start: StartFront, code: str, exit_code: int) -> None:
    start(lambda generate, job: iter([refused(code, "no", request=generate.request)]))
    assert run("x", "--json").returncode == exit_code


def test_a_daemon_that_is_replaced_halfway_is_asked_for_the_rest(run: Run, start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield Accepted(generate.request, job, 42, 7, 0)
        yield from pieces(job, "The")
        yield lambda front: setattr(front, "boot", "boot-2")
        yield 60.0

    start(script)
    done = run("x")
    assert (done.returncode, done.stdout) == (0, b"The capital is Paris.\n"), done.stderr


def endless(generate: Generate, job: str) -> Iterator[Said]:
    yield Accepted(generate.request, job, 42, 7, 0)
    yield from pieces(job, *["word "] * 100_000, every_s=0.005)


def interrupted(environment: dict[str, str], front: FakeFront, signals: int) -> tuple[int, bytes, float]:
    """Exit code, stderr, and the seconds from the last Ctrl-C to the end."""
    command = [PROGRAM, "x"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as program:
        assert program.stdout is not None
        front.wait_for(Generate)
        time.sleep(0.5)
        for number in range(signals):
            time.sleep(0.3 * number)
            program.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, stderr = program.communicate(timeout=PATIENCE_S)
        return program.returncode, stderr, time.monotonic() - began


def test_ctrl_c_cancels_in_the_daemon_and_ends_with_130(start: StartFront, environment: dict[str, str]) -> None:
    front = start(endless)
    code, stderr, _ = interrupted(environment, front, signals=1)
    assert (code, stderr) == (130, b"")
    assert front.of(Manage) == [Manage(0, "job-1", "cancel")]


def test_ctrl_c_does_not_wait_for_a_daemon_that_does_not_answer(start: StartFront, environment: dict[str, str]) -> None:
    front = start(endless)
    front.ends_cancelled_jobs = False
    code, stderr, seconds = interrupted(environment, front, signals=1)
    assert (code, stderr) == (130, b"")
    assert seconds > 0.5, "the daemon had its second"


def test_a_second_ctrl_c_leaves_at_once(start: StartFront, environment: dict[str, str]) -> None:
    front = start(endless)
    front.ends_cancelled_jobs = False
    code, stderr, _ = interrupted(environment, front, signals=2)
    assert (code, stderr) == (130, b"")


def test_ctrl_c_with_json_prints_what_there_is(start: StartFront, environment: dict[str, str]) -> None:
    front = start(endless)
    with subprocess.Popen([PROGRAM, "x", "--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment) as program:
        front.wait_for(Generate)
        time.sleep(1)
        program.send_signal(signal.SIGINT)
        stdout, _ = program.communicate(timeout=PATIENCE_S)
    answer = json.loads(stdout)
    assert (program.returncode, answer["finish_reason"]) == (130, "cancelled")
    assert answer["text"].startswith("word word")


def test_a_reader_that_leaves_ends_the_answer_quietly(start: StartFront, environment: dict[str, str]) -> None:
    front = start(endless)
    with subprocess.Popen(
        [PROGRAM, "x"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.read(5) == b"word "
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(PATIENCE_S) == 141
    front.wait_for(Manage)


def test_a_full_disk_is_a_sentence(start: StartFront, environment: dict[str, str]) -> None:
    start()
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([PROGRAM, "x"], stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, env=environment, check=False)
    assert done.stderr == b"potato-client: cannot go on: No space left on device\n"
    assert done.returncode == 70


# the rest


def test_status_is_words_or_json(run: Run, start: StartFront) -> None:
    front = start()
    words = run("status").stdout.decode()
    assert words.splitlines() == [
        "potatod 0.0.0  up; running for 1 h 6 min",
        "  model   tiny: LlamaForCausalLM, bfloat16, 30 layers; 269MB, of which 100MB resident and 169MB read for every sweep",
        "  engine  cpu, invariant kernels; epoch 1, 0 restarts, 12 sweeps",
        "  speed   0.35 s/token now (0.34 s planned), 0.12 s of it waiting for weights, 480MB/s read, 96% of the disk's 500MB/s",
        "  queue   1 of 4 running, 2 of 64 waiting",
        "  kv      10.0MB of 100MB for answers under way, 5.0MB with 3 texts to go on from; 25% of the prompts' tokens were there already",
        "  guesses 30 of 40 tokens were right (75%)",
        "  stage            pid  state     memory        uptime",
        "  front           4242  up        90.0MB     1 h 6 min",
    ]
    page = json.loads(run("status", "--json").stdout)
    assert page["boot"] == front.boot
    assert page["stages"][0]["rss_bytes"] == 90_000_000


def test_the_version_is_said(run: Run) -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(b"potato-client 0.")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["ask", "--help"], ["chat", "-h"], ["status", "--help"]])
def test_help_is_help(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    assert done.stdout.startswith(b"Usage: potato-client")


def test_the_help_of_the_whole_command_has_the_options_of_its_default(run: Run) -> None:
    assert b"--max-tokens N" in run("--help").stdout


@pytest.mark.parametrize(("typed", "said"), [("--top-pp", "did you mean --top-p?"), ("--frobnicate", "--help lists what there is")])
def test_an_unknown_option_is_answered_with_the_nearest_one_alone(run: Run, typed: str, said: str) -> None:
    done = run(typed, "3", "x")
    assert done.returncode == 64
    assert done.stderr.decode() == f"potato-client: there is no option {typed}; {said}\n"


def test_neither_torch_nor_the_daemon_is_loaded(environment: dict[str, str], start: StartFront) -> None:
    start()
    program = (
        "import sys, potato_client.cli, potato_client.chat, potato_client.aio;"
        "potato_client.cli.main(['x', '--quiet']);"
        "sys.exit(str(sorted({'torch', 'transformers', 'numpy', 'potatod', 'tokenizers'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False)
    assert done.stderr == b"[]\n"
