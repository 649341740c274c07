"""Messages of every type, and frames that were one before somebody changed them, through the socket of a whole front with an engine: each is answered
as its kind is, or refused, or means nothing; and the front is no larger for them.

POTATO_FRAMES says how many (make torture), POTATO_SEED which.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from counts import portions
from frames import examples, mutated

from potato_client.codec import BadFrame
from potato_client.protocol import BURST_FRAMES, FROM_CLIENT, Accepted, Generate, Refused

from .front_harness import Client, Front, start_front

FRAMES = int(os.environ.get("POTATO_FRAMES", "10000"))
SEED = int(os.environ.get("POTATO_SEED", "1"))
GROWS_BYTES = 64 << 20
#: What the engine of the harness goes on with for as long as it may.
ENDLESS = "cd|"
#: A client sends so many and goes: more at once would be dropped.
A_CLIENT = BURST_FRAMES - 100


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    template = ENDLESS + "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
    front = start_front(tmp_path, max_context=64, template=template, max_queue=16)
    front.engine_up()
    yield front
    front.close()


class Sender:
    """Makes frames. What it learns of jobs it uses, so that frames meet some that are there."""

    def __init__(self, seed: int, messages: int) -> None:
        self._chance = random.Random(seed)
        self._messages = examples(FROM_CLIENT, messages, seed)
        self._frames = [FROM_CLIENT.encode(message) for message in self._messages]
        self.jobs: list[str] = []

    def frame(self) -> bytes:
        chance = self._chance
        message = chance.choice(self._messages)
        if hasattr(message, "job") and self.jobs and chance.random() < 0.7:
            message = replace(message, job=chance.choice(self.jobs[-50:])[: chance.choice((16, 16, 4, 1))])
        if isinstance(message, Generate) and message.prompt is not None and chance.random() < 0.5:
            message = replace(message, prompt=ENDLESS + message.prompt)
        frame = FROM_CLIENT.encode(message)
        return frame if chance.random() < 0.3 else mutated(frame, self._frames, chance)


class Talk:
    """One client's: what it has sent and not been answered yet."""

    def __init__(self, client: Client, sender: Sender) -> None:
        self._client = client
        self._sender = sender
        self._due: Counter[int] = Counter()
        self._bad = 0
        self.heard: Counter[str] = Counter()

    def send(self, frame: bytes) -> None:
        try:
            message = FROM_CLIENT.decode(frame)
        except BadFrame:
            self._bad += 1
        else:
            if request := getattr(message, "request", 0):
                self._due[request] += 1
        self._client.socket.send(frame)
        for message in self._client.waiting():
            self._hear(message)

    def end(self) -> None:
        """All that is due has come."""
        while self._bad or self._due:
            self._hear(self._client.receive())
        self._client.socket.close(linger=0)

    def _hear(self, message: Any) -> None:
        self.heard[message.code if isinstance(message, Refused) else type(message).__name__] += 1
        assert not isinstance(message, Refused) or message.code not in ("too_fast", "internal"), message
        if isinstance(message, Accepted):
            self._sender.jobs.append(message.job)
        if isinstance(message, Refused) and message.code == "bad_frame":
            self._bad -= 1
            assert self._bad >= 0, "as many as were sent"
        elif request := getattr(message, "request", 0):
            self._due[request] -= 1
            assert self._due[request] >= 0, f"answered twice, or not asked: {message}"
            if not self._due[request]:
                del self._due[request]


def test_every_frame_is_answered_or_means_nothing_and_the_front_is_as_it_was(front: Front) -> None:
    heard: Counter[str] = Counter()
    process = psutil.Process(front.process.pid)
    sizes = []
    for first, count in portions("frames", FRAMES, 10_000):
        sender = Sender(SEED + first, 200)
        for _ in range(-(-count // A_CLIENT)):
            talk = Talk(front.client(), sender)
            for _ in range(A_CLIENT):
                talk.send(sender.frame())
            talk.end()
            heard += talk.heard
            sizes.append(process.memory_info().rss)
    assert front.worker is not None and front.worker.wrong is None
    assert front.client().answer("ok|", max_tokens=4).text == "okok"
    assert "Traceback" not in front.log and front.failed is None
    assert sizes[-1] - sizes[len(sizes) // 10] <= GROWS_BYTES, "what the first tenth has loaded is there"
    met = {"bad_frame", "bad_request", "unknown_job", "Accepted", "Piece", "Finished", "Managed", "Listed", "Described", "Report", "Alive"}
    assert heard.keys() >= met, heard
