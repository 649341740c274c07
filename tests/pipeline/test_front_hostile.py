"""The front among clients that misbehave: garbage, floods, silence, and a second daemon."""

from __future__ import annotations

import os
import random
import socket
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgpack
import psutil
import pytest

from potato_client.codec import MAX_FRAME_BYTES
from potato_client.protocol import PROTOCOL_VERSION, Alive, Hello, Refused, Status, Welcome

from .front_harness import Client, Front, Heard, front_fails

StartFront = Callable[..., Front]
#: `make torture` asks for more.
CONNECTIONS = int(os.environ.get("POTATO_CONNECTIONS", "200"))


def refused(client: Client) -> Refused:
    message = client.receive()
    assert isinstance(message, Refused), message
    return message


def serves(front: Front) -> bool:
    return front.client().answer("ok|", max_tokens=4).text == "okok"


BAD_FRAMES = {
    "empty": b"",
    "not msgpack": b"\xc1\xff\x00garbage",
    "no list": msgpack.packb({"a": 1}),
    "unknown message": msgpack.packb(["Launch", {}]),
    "a message of the other side": msgpack.packb(["Welcome", {}]),
    "unknown field": msgpack.packb(["Status", {"request": 1, "colour": "red"}]),
    "missing field": msgpack.packb(["Status", {}]),
    "wrong type": msgpack.packb(["Status", {"request": "one"}]),
    "value out of range": msgpack.packb(["Generate", {"request": 1, "prompt": "x", "options": {"temperature": -1}}]),
    "neither prompt nor messages": msgpack.packb(["Generate", {"request": 1}]),
    "huge": b"\xc6" + b"x" * MAX_FRAME_BYTES,
}


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
def test_a_bad_frame_is_refused_and_the_daemon_lives(start: StartFront, frame: bytes) -> None:
    front = start()
    front.engine_up()
    client = front.client()
    client.socket.send(frame)
    assert refused(client).code == "bad_frame"
    assert client.answer("ok|", max_tokens=4).text == "okok"


def test_thousands_of_garbage_frames_are_answered_or_dropped_and_others_are_served(start: StartFront) -> None:
    front = start()
    front.engine_up()
    noise = random.Random(5)
    flood = [front.client(hello=False) for _ in range(4)]
    for number in range(8000):
        flood[number % 4].socket.send(noise.randbytes(noise.randrange(64)))
    assert serves(front)
    for client in flood:
        answers = []
        while client.socket.poll(200):
            answers.append(client.receive())
        assert answers
        assert {type(answer) for answer in answers} == {Refused}
        assert any("a second" in answer.message for answer in answers), "a flood is told that it is one"
    assert serves(front)


def test_several_frames_in_one_message_are_refused(start: StartFront) -> None:
    front = start()
    client = front.client()
    client.socket.send_multipart([b"", b"x"])
    assert "one frame" in refused(client).message


def test_raw_connections_that_do_not_speak_zeromq_harm_nobody(start: StartFront) -> None:
    """Of all sorts, and many of them: half open, garbage, frames that never end, closed in the middle. The job goes on, memory does not grow."""
    front = start(speculation=False, max_context=2048)
    front.engine_up(delay_s=0.002)
    noise = random.Random(6)
    client = front.client()
    client.ask("running|", max_tokens=1500, follow=False)
    job = client.hear(Heard(), "Accepted").last.job
    process = psutil.Process(front.process.pid)
    descriptors = process.num_fds()
    storm(front, noise, CONNECTIONS // 4)
    memory = process.memory_info().rss
    storm(front, noise, CONNECTIONS)
    assert process.memory_info().rss - memory < 64 << 20
    assert client.attach(job).text == ("running" * 215)[:1500]
    assert serves(front)
    deadline = time.monotonic() + 30
    while process.num_fds() > descriptors + 10:
        assert time.monotonic() < deadline, "connections that are closed are let go"
        time.sleep(0.05)
    assert "Traceback" not in front.log


FEW_DESCRIPTORS = [
    "-c",
    "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard)); "
    "import potatod.front.__main__",
]


def test_more_connections_than_descriptors_that_a_process_begins_with_harm_nobody(start: StartFront) -> None:
    """As 1,024 of them do where nothing else was said to the system: libzmq ends its process where there is none left."""
    front = start(program=FEW_DESCRIPTORS)
    front.engine_up()
    storm(front, random.Random(7), 200)
    assert front.process.poll() is None


def test_a_stranger_that_speaks_just_enough_zeromq_is_told_that_it_was_not_understood(start: StartFront) -> None:
    """So that what garbage begins with gets as far as it is to get."""
    front = start()
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(front.socket.removeprefix("ipc://"))
        assert say(raw, READY) and say(raw, b"\x00\x07garbage")
        said = b""
        while b"bad_frame" not in said:
            more = raw.recv(1 << 16)
            assert more, said
            said += more


def storm(front: Front, noise: random.Random, count: int) -> None:
    """Connections to the clients' socket; others are served while they are open."""
    with ExitStack() as held:
        for _ in range(count):
            raw = held.enter_context(socket.socket(socket.AF_UNIX))
            raw.connect(front.socket.removeprefix("ipc://"))  # it waits its turn, which one with a time limit does not
            raw.settimeout(10)
            for piece in garbage(noise):
                if not say(raw, piece):
                    break
            if noise.random() < 0.3:
                raw.close()
        assert serves(front)


def say(raw: socket.socket, piece: bytes) -> bool:
    """Whether it was not hung up on. What goes before READY has been answered is part of the handshake."""
    try:
        raw.sendall(piece)
        said = b"" if piece == READY else b"ROUTER"
        while b"ROUTER" not in said:
            said += (more := raw.recv(1 << 10))
            if not more:
                return False
    except OSError:
        return False
    return True


#: What ZeroMQ says first, and then what kind of socket it is.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
READY = GREETING + b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


def garbage(noise: random.Random) -> list[bytes]:
    long = b"\x02" + (1 << 20).to_bytes(8, "big")
    return noise.choice([
        [],
        [noise.randbytes(noise.randrange(1, 4000))],
        [GREETING[: noise.randrange(1, len(GREETING))]],
        [GREETING.replace(b"NULL", b"ECHO")],
        [GREETING, noise.randbytes(200)],
        [READY, noise.randbytes(2000)],
        [READY, b"\x02" + (1 << 62).to_bytes(8, "big") + b"x"],  # a frame that nobody can send
        [READY, long + bytes(1000)],  # and one that does not come to its end
        [READY, b"\x01\x04more" * 2000],  # nor does this message
        [READY, b"\x00\x07garbage"],
        [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"],
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise.randbytes(200)],  # TLS
    ])  # fmt: skip


def test_a_frame_larger_than_any_honest_one_ends_the_connection_and_the_daemon_lives(start: StartFront) -> None:
    front = start()
    front.engine_up()
    front.client().socket.send(bytes(3 * MAX_FRAME_BYTES))
    assert serves(front)


def test_the_first_message_must_be_hello(start: StartFront) -> None:
    client = start().client(hello=False)
    client.send(Status(3))
    answer = refused(client)
    assert (answer.code, answer.request) == ("hello_first", 3)


def test_a_wrong_version_is_refused_and_both_are_named(start: StartFront) -> None:
    client = start().client(hello=False)
    client.send(Hello(PROTOCOL_VERSION + 41))
    answer = refused(client)
    assert answer.code == "bad_version"
    assert str(PROTOCOL_VERSION) in answer.message
    assert str(PROTOCOL_VERSION + 41) in answer.message
    client.send(Hello(PROTOCOL_VERSION))
    assert isinstance(client.receive(), Welcome)


# prompts


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(start: StartFront) -> None:
    client = start(max_context=64).client()
    client.ask("x" * 100)
    answer = refused(client)
    assert (answer.code, answer.exit_code) == ("prompt_too_long", 64)
    assert "100" in answer.message
    assert "64" in answer.message


def test_an_absurd_prompt_is_refused_before_it_is_tokenised(start: StartFront) -> None:
    client = start(max_context=64).client()
    began = time.monotonic()
    client.ask("x" * (8 << 20))
    answer = refused(client)
    assert answer.code == "prompt_too_long"
    assert "characters" in answer.message
    assert time.monotonic() - began < 30


def test_an_empty_prompt_is_refused(start: StartFront) -> None:
    client = start().client()
    client.ask("")
    assert refused(client).code == "empty_prompt"


def test_a_token_that_the_model_has_no_weights_for_is_refused_by_its_name(start: StartFront) -> None:
    client = start().client()
    client.ask("ab<beyond>|")
    answer = refused(client)
    assert answer.code == "bad_request"
    assert "'<beyond>' (260)" in answer.message


# clients that go away


VANISH_SOON = [
    "-c",
    "import sys; from potatod import stage; from potatod.front.front import Front; "
    "sys.exit(stage.run('front', lambda s: Front(s, vanished_s=0.6).run()))",
]


def test_the_job_of_a_silent_client_goes_on(start: StartFront) -> None:
    front = start(program=VANISH_SOON)
    front.engine_up(delay_s=0.1)
    silent = front.client()
    silent.ask("abc|", max_tokens=30)
    job = silent.hear(Heard(), "Accepted").last.job
    time.sleep(1.5)
    said = len(list(silent.waiting()))
    time.sleep(0.5)
    assert list(silent.waiting()) == [], f"nobody talks to a client that has vanished ({said} messages before that)"
    other = front.client()
    assert other.attach(job).text == "abc" * 10


def test_a_client_that_says_alive_keeps_its_job_however_long_it_takes(start: StartFront) -> None:
    front = start(program=VANISH_SOON)
    front.engine_up(delay_s=0.1)
    client = front.client()
    client.ask("abc|", max_tokens=18)
    heard = Heard()
    while not heard.of("Finished"):
        client.send(Alive())
        heard.messages.append(client.receive())
    assert heard.text == "abc" * 6


def test_an_idle_client_is_remembered(start: StartFront) -> None:
    front = start(program=VANISH_SOON)
    front.engine_up()
    client = front.client()
    time.sleep(1.5)
    assert client.answer("abc|", max_tokens=3).text == "abc"


def test_the_job_of_a_client_that_left_goes_on(start: StartFront) -> None:
    front = start()
    front.engine_up(delay_s=0.005)
    gone = front.client()
    gone.ask("abc|", max_tokens=100)
    job = gone.hear(Heard(), "Piece").of("Piece")[0].job
    gone.socket.close(linger=0)
    assert front.client().attach(job).text == ("abc" * 34)[:100]


def test_a_client_that_does_not_read_delays_nobody_and_finds_its_answer_later(start: StartFront) -> None:
    front = start(max_context=1 << 12, speculation=False)
    front.engine_up()
    slow = front.client()
    slow.ask("abc|")
    job = slow.hear(Heard(), "Accepted").last.job
    other = front.client()
    deadline = time.monotonic() + 60
    running = 1
    while running and time.monotonic() < deadline:
        assert other.answer("ok|", max_tokens=2).text == "ok"
        other.send(Status(1))
        running = other.receive().queue.running
        time.sleep(0.02)
    assert running == 0
    assert other.attach(job).token_ids == list((b"abc" * (1 << 11))[: (1 << 12) - 4])


# the socket


def test_a_second_daemon_on_the_same_socket_is_refused_and_told_whose_it_is(start: StartFront, tmp_path: Path) -> None:
    front = start()
    front.engine_up()
    failed, code = front_fails(tmp_path, name="second", socket=front.socket)
    assert (code, failed.exit_code) == (69, 69), "as the lock of the run directory says it"
    assert f"another daemon (pid {psutil.Process(front.process.pid).ppid()}) serves at" in failed.why, "the process to stop is the front's parent"
    assert front.socket.removeprefix("ipc://") in failed.why
    assert serves(front), "the first one is not disturbed"


def test_a_file_in_the_way_of_the_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("text")
    _, code = front_fails(tmp_path, name="bad", socket=f"ipc://{path}")
    assert code == 78
    assert path.read_text() == "text"


def test_only_its_owner_may_use_the_socket(start: StartFront) -> None:
    front = start()
    path = front.socket.removeprefix("ipc://")
    assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0
