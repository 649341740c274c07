"""Client against a front that answers, misbehaves, or is not there; and AsyncClient in the same situations."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from potato_client import (
    AsyncClient,
    BadRequest,
    BadSocket,
    Client,
    ClientError,
    DaemonLost,
    NoDaemon,
    NotUnderstood,
    RequestRefused,
)
from potato_client.protocol import PROTOCOL_VERSION, Accepted, Alive, Attach, Generate, Hello, Manage, Piece, Progress, Report, Welcome
from potato_client.question import ChatMessage, Options

from .conftest import StartFront
from .fake_front import FakeFront, Said, finished, pieces, refused


class Twin:
    """A client seen through one interface, whether it waits with a thread or with asyncio."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def ask(self, address: str, prompt: Any = "x", *, timeout_s: float = 10.0, **options: Any) -> Any:
        """The complete answer; raises what it raises."""
        if self.kind == "asyncio":
            return asyncio.run(self._ask(address, prompt, timeout_s, options))
        with Client(address, timeout_s=timeout_s) as client:
            answer = client.generate(prompt, **options)
            assert all(isinstance(piece, Piece) for piece in answer)
            return answer

    async def _ask(self, address: str, prompt: Any, timeout_s: float, options: Any) -> Any:
        async with AsyncClient(address, timeout_s=timeout_s) as client:
            answer = await client.generate(prompt, **options)
            async for piece in answer:
                assert isinstance(piece, Piece)
            return answer

    def status(self, address: str) -> Report:
        if self.kind == "asyncio":
            return asyncio.run(self._status(address))
        with Client(address) as client:
            return client.status()

    async def _status(self, address: str) -> Report:
        async with AsyncClient(address) as client:
            return await client.status()


@pytest.fixture(params=["thread", "asyncio"])
def twin(request: pytest.FixtureRequest) -> Twin:
    return Twin(request.param)


def accepted(generate: Generate, job: str) -> Accepted:
    return Accepted(generate.request, job, 42, 7, 0)


def test_an_answer_comes_in_pieces_and_is_complete_afterwards(twin: Twin, start: StartFront) -> None:
    front = start()
    answer = twin.ask(front.address, "capital of France?", seed=4, max_tokens=9)
    assert answer.text == "The capital is Paris."
    assert answer.token_ids == (100, 101, 102)
    assert answer.finished.completion_tokens == 3
    assert answer.accepted.seed == 42
    assert front.of(Generate)[0].messages == (ChatMessage("user", "capital of France?"),)
    assert front.of(Generate)[0].options == Options(seed=4, max_tokens=9)
    assert front.of(Hello)[0].client.startswith("potato-client ")


def test_unicode_and_reasoning_come_through(twin: Twin, start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield accepted(generate, job)
        yield Piece(job, 0, "", (1, 2), "è vero? 🤔")
        yield Piece(job, 2, "土豆\u200d🥔", (3,))
        yield finished(job, 3)

    answer = twin.ask(start(script).address)
    assert (answer.text, answer.reasoning) == ("土豆\u200d🥔", "è vero? 🤔")


def test_status_is_a_report(twin: Twin, start: StartFront) -> None:
    front = start()
    assert twin.status(front.address).boot == front.boot


def test_seconds_per_token_are_counted_from_arrivals(twin: Twin, start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield accepted(generate, job)
        yield 0.5  # before the first token: does not count
        yield from pieces(job, "a", "b", "c", every_s=0.2)
        yield 0.5  # after the last one: nor does this
        yield finished(job, 3)

    front, began = start(script), time.monotonic()
    counted_s = 2 * twin.ask(front.address).s_per_token
    assert 0.39 < counted_s < time.monotonic() - began - 0.9


def test_a_conversation_is_sent_whole(twin: Twin, start: StartFront) -> None:
    front = start()
    conversation = [
        {"role": "user", "content": "a"},
        ChatMessage("assistant", "b", "why"),
        {"role": "user", "content": "c"},
    ]
    twin.ask(front.address, conversation, system="s")
    told = [(message.role, message.content) for message in front.of(Generate)[0].messages]
    assert told == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    assert front.of(Generate)[0].messages[2].reasoning == "why"


# no


def test_a_refusal_is_an_exception_with_its_code(twin: Twin, start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield refused("queue_full", "64 answers wait; ask again later", request=generate.request)

    with pytest.raises(RequestRefused, match="64 answers wait") as told:
        twin.ask(start(script).address)
    assert (told.value.code, told.value.exit_code) == ("queue_full", 75)


def test_a_job_that_fails_halfway_is_an_exception(twin: Twin, start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield accepted(generate, job)
        yield from pieces(job, "a")
        yield refused("internal", "the sampler failed", job=job)

    with pytest.raises(RequestRefused) as told:
        twin.ask(start(script).address)
    assert told.value.exit_code == 70


def test_another_version_is_refused(twin: Twin, start: StartFront) -> None:
    front = start()
    front.greeting = refused("bad_version", "install the same release of both")
    with pytest.raises(RequestRefused, match="same release") as told:
        twin.ask(front.address)
    assert told.value.exit_code == 69


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x92\xa5Piece\x80", b"\x00" * 100_000])
def test_garbage_is_an_error_and_no_surprise(twin: Twin, start: StartFront, garbage: bytes) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield accepted(generate, job)
        yield garbage

    with pytest.raises(NotUnderstood, match="cannot be read"):
        twin.ask(start(script).address)


def test_missing_tokens_are_noticed(twin: Twin, start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield accepted(generate, job)
        yield from pieces(job, "a")
        yield from pieces(job, "c", first=2)

    with pytest.raises(NotUnderstood, match="missing"):
        twin.ask(start(script).address)


def test_what_cannot_be_asked_is_said_before_anything_is_sent(twin: Twin, start: StartFront) -> None:
    front = start()
    for wrong in ({"max_token": 3}, {"top_p": 7.0}, {"raw": True, "system": "x"}):
        with pytest.raises(BadRequest):
            twin.ask(front.address, **wrong)
    with pytest.raises(BadRequest, match="Unicode"):
        twin.ask(front.address, "\udcff")
    assert front.received == []


# nobody


def test_where_no_socket_is_there_is_no_daemon(twin: Twin, place: Path) -> None:
    with pytest.raises(NoDaemon, match="potatod start"):
        twin.ask(f"ipc://{place}/none.sock")
    with pytest.raises(NoDaemon):
        twin.status(f"ipc://{place}/none.sock")


def test_a_socket_that_its_daemon_left_behind_is_asked_again_for_a_while(twin: Twin, start: StartFront) -> None:
    first = start()
    first.close()
    assert first.path.exists()
    later = threading.Timer(0.5, lambda: start())
    later.start()
    assert twin.ask(first.address).text == "The capital is Paris."
    later.join()


def test_a_socket_left_behind_for_good_is_no_daemon(twin: Twin, start: StartFront) -> None:
    front = start()
    front.close()
    with pytest.raises(NoDaemon, match="it has ended"):
        twin.ask(front.address, timeout_s=0.3)


def test_somebody_who_never_answers_is_no_daemon(twin: Twin, start: StartFront) -> None:
    front = start()
    front.silent = True
    with pytest.raises(NoDaemon, match=r"has not answered for 0\.4 seconds"):
        twin.ask(front.address, timeout_s=0.4)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_address_that_is_none_is_said_at_once(kind: Any) -> None:
    with pytest.raises(BadSocket, match="keys"):
        kind("tcp://127.0.0.1:1")


# lost


def falls_silent(generate: Generate, job: str) -> Iterator[Said]:
    yield accepted(generate, job)
    yield from pieces(job, "half an")
    yield lambda front: setattr(front, "silent", True)


def test_a_daemon_that_falls_silent_is_lost(twin: Twin, start: StartFront) -> None:
    with pytest.raises(DaemonLost, match=r"said nothing for 1\.5 seconds") as told:
        twin.ask(start(falls_silent).address, timeout_s=1.5)
    assert told.value.exit_code == 75


def test_another_boot_is_noticed_by_a_heartbeat(twin: Twin, start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield accepted(generate, job)
        yield from pieces(job, "The")
        yield lambda front: setattr(front, "boot", "boot-2")
        yield 60.0

    front = start(script)
    answer = twin.ask(front.address, timeout_s=2)
    assert (answer.text, answer.token_ids) == ("The capital is Paris.", (100, 101, 102))
    assert (front.of(Attach)[0].tokens, front.of(Attach)[0].text_chars) == (1, 3)


def test_a_daemon_that_dies_and_comes_back_on_the_same_socket_is_asked_for_the_rest(twin: Twin, start: StartFront) -> None:
    fronts: list[FakeFront] = []

    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield accepted(generate, job)
        yield lambda front: threading.Thread(target=replace).start()
        yield 60.0

    def replace() -> None:
        fronts[0].close()
        fronts.append(start())
        fronts[1].boot = "boot-2"

    fronts.append(start(script))
    assert twin.ask(fronts[0].address, timeout_s=8).text == "The capital is Paris."
    fronts[1].wait_for(Attach)


def test_silence_between_pieces_is_no_loss_while_the_front_lives(twin: Twin, start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield accepted(generate, job)
        yield from pieces(job, "a", "b", every_s=1.8)
        yield finished(job, 2)

    front = start(script)
    assert twin.ask(front.address, timeout_s=1.5).text == "ab"
    assert len(front.of(Alive)) >= 5


# what only one of the two can show


def test_heartbeats_go_on_while_the_program_does_something_else_between_pieces(start: StartFront) -> None:
    front = start(slowly)
    with Client(front.address, timeout_s=1.6) as client:
        answer = client.generate("x")
        first = next(iter(answer))
        before = len(front.of(Alive))
        time.sleep(2)  # the program thinks about the first piece
        assert len(front.of(Alive)) >= before + 3
        answer.cancel()
        assert first.text + "".join(piece.text for piece in answer) == "abcdefghij"


def slowly(generate: Generate, job: str) -> Iterator[Said]:
    yield accepted(generate, job)
    yield from pieces(job, *"abcdefghij", every_s=0.05)
    yield 60.0


def test_an_answer_can_be_cancelled_from_within(start: StartFront) -> None:
    front = start(slowly)
    with Client(front.address) as client:
        answer = client.generate("x")
        for piece in answer:
            if piece.text == "c":
                client.cancel(answer)
    assert answer.finished is not None
    assert answer.finished.reason == "cancelled"
    assert front.of(Manage) == [Manage(0, "job-1", "cancel")]


def test_waiting_has_an_end(start: StartFront) -> None:
    with Client(start(slowly).address) as client:
        answer = client.generate("x")
        assert not answer.wait(0.3)
        assert answer.text.startswith("a")
        answer.cancel()
        assert answer.wait(20)


def test_closing_cancels_what_is_under_way(start: StartFront) -> None:
    front = start(slowly)
    client = Client(front.address)
    next(iter(client.generate("x")))
    client.close()
    client.close()
    front.wait_for(Manage)
    with pytest.raises(ClientError, match="closed"):
        client.generate("x")


def test_closing_tells_whoever_still_waits(start: StartFront) -> None:
    client = Client(start(slowly).address)
    answer = client.generate("x")
    next(iter(answer))
    threading.Timer(0.1, client.close).start()
    with pytest.raises(ClientError, match="closed"):
        list(answer)


def test_a_client_that_is_forgotten_takes_its_thread_with_it(start: StartFront) -> None:
    front = start()
    before = threading.active_count()
    client = Client(front.address)
    list(client.generate("x"))
    assert threading.active_count() == before + 1
    del client
    gc.collect()
    assert threading.active_count() == before


def test_several_answers_come_at_once_from_several_threads(start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield accepted(generate, job)
        yield from pieces(job, *generate.messages[0].content, every_s=0.01)
        yield finished(job, len(generate.messages[0].content))

    texts: dict[str, str] = {}
    with Client(start(script).address) as client:

        def ask(prompt: str) -> None:
            answer = client.generate(prompt)
            list(answer)
            texts[prompt] = answer.text

        threads = [threading.Thread(target=ask, args=(letter * 8,)) for letter in "abcdefgh"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == {letter * 8: letter * 8 for letter in "abcdefgh"}


def test_all_messages_can_be_seen(start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield accepted(generate, job)
        yield Progress(job, "prefill", layers_done=3, layers=30)
        yield from pieces(job, "a")
        yield finished(job, 1)

    with Client(start(script).address) as client:
        answer = client.generate("x")
        assert [type(message).__name__ for message in answer.messages()] == [
            "Accepted",
            "Progress",
            "Piece",
            "Finished",
        ]
    assert answer.progress == Progress("job-1", "prefill", layers_done=3, layers=30)
    assert list(answer) == [], "an answer that is over gives no more"


def test_an_asyncio_answer_can_be_cancelled_and_others_go_on(start: StartFront) -> None:
    front = start(slowly)

    async def run() -> tuple[Any, Any]:
        async with AsyncClient(front.address) as client:
            first, second = await client.generate("x"), await client.generate("y")
            client.cancel(first)
            assert await first.wait(20)
            assert not await second.wait(0.2)
            second.cancel()
            assert await second.wait(20)
            return first.finished, second.finished

    first, second = asyncio.run(run())
    assert (first.reason, second.reason) == ("cancelled", "cancelled")


def test_closing_an_asyncio_client_cancels_and_tells_whoever_waits(start: StartFront) -> None:
    front = start(slowly)

    async def run() -> None:
        client = AsyncClient(front.address)
        answer = await client.generate("x")
        waiting = asyncio.create_task(collect(answer.messages()))
        await asyncio.sleep(0.3)
        await client.close()
        await client.close()
        with pytest.raises(ClientError, match="closed"):
            await waiting
        with pytest.raises(ClientError, match="closed"):
            await client.status()

    asyncio.run(run())
    front.wait_for(Manage)


async def collect(messages: AsyncIterator[Any]) -> list[Any]:
    return [message async for message in messages]


def test_the_greeting_is_repeated_until_it_is_answered(start: StartFront) -> None:
    front = start()
    front.silent = True
    threading.Timer(0.7, lambda: setattr(front, "silent", False)).start()
    with Client(front.address, timeout_s=4) as client:
        assert list(client.generate("x"))
    assert len(front.of(Hello)) >= 2


def test_a_front_that_greets_twice_is_no_problem(start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        yield accepted(generate, job)
        yield Welcome(PROTOCOL_VERSION, "boot-1", "d", "m", 1)
        yield from pieces(job, "a")
        yield finished(job, 1)

    front = start(script)
    with Client(front.address) as client:
        assert [piece.text for piece in client.generate("x")] == ["a"]
    assert len(front.of(Generate)) == 1
