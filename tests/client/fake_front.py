"""A front in a thread, with a real ROUTER, that does what a test wants: slowly, silently, wrongly, as another boot.

A script is a generator: it yields messages to send, bytes to send as they are, seconds to wait, and callables to call
with the front.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from potato_client.job_report import JobReport, JobState
from potato_client.protocol import (
    FROM_CLIENT,
    FROM_FRONT,
    PROTOCOL_VERSION,
    REFUSAL_EXIT_CODES,
    Accepted,
    Alive,
    Attach,
    Described,
    Detach,
    Finished,
    Generate,
    Hello,
    List,
    Listed,
    Manage,
    Managed,
    Piece,
    Refused,
    Report,
    Show,
    Status,
    Welcome,
)
from potato_client.question import ChatMessage, Options
from potato_client.status import EngineReport, ModelReport, QueueReport, ServedReport, StageReport

Said = Any
Script = Callable[[Generate, str], Iterator[Said]]


def pieces(job: str, *texts: str, every_s: float = 0.0, first: int = 0) -> Iterator[Said]:
    for index, text in enumerate(texts, start=first):
        yield every_s
        yield Piece(job, index, text, (100 + index,))


def finished(job: str, count: int, reason: Any = "stop", **changes: Any) -> Finished:
    return Finished(job, reason, 7, count, 0.125, 0.25, 0.5, **changes)


def refused(code: Any, message: str, **whom: Any) -> Refused:
    return Refused(code, message, REFUSAL_EXIT_CODES[code], **whom)


def paris(generate: Generate, job: str) -> Iterator[Said]:
    yield Accepted(generate.request, job, 42, 7, 0)
    yield from pieces(job, "The capital", " is", " Paris.")
    yield finished(job, 3, sweeps=4, disk_bytes=800_000_000, disk_bytes_per_s=1.06e9, disk_limit_bytes_per_s=2e9)


def attached(attach: Attach, job: str) -> Iterator[Said]:
    """What is left of an answer of three tokens."""
    yield Accepted(attach.request, job, 42, 7, 0, known=True)
    yield Piece(job, attach.tokens, "The capital is Paris."[attach.text_chars :], (100, 101, 102)[attach.tokens :])
    yield finished(job, 3)


def job_report(number: int, state: JobState, **changes: Any) -> JobReport:
    about = {"number": number, "job": f"{number:016x}", "state": state, "title": "Why?", "model": "tiny", "priority": "interactive"}
    return JobReport(**{**about, "prompt_tokens": 7, "completion_tokens": 3, "limit_tokens": 100, "accepted_at": 1.7e9, **changes})  # type: ignore[arg-type]


def report(request: int, boot: str) -> Report:
    return Report(
        request=request,
        daemon="potatod 0.0.0",
        boot=boot,
        uptime_s=4000.0,
        model=ModelReport("tiny", "LlamaForCausalLM", "bfloat16", 30, 269_000_000, 100_000_000, 169_000_000),
        engine=EngineReport("up", 1, 0, "cpu", "invariant", 12, "", 0.35, 0.34, 0.12, 4.8e8, 5e8),
        queue=QueueReport(1, 2, 4, 64, 10_000_000, 5_000_000, 100_000_000, 3, 400, 100, 1, 40, 30),
        stages=(StageReport("front", 4242, "up", 90_000_000, 3999.0),),
        models=(ServedReport("tiny", "up", 1, 2, 2048),),
    )  # fmt: skip


@dataclass
class _Job:
    identity: bytes
    name: str
    script: Iterator[Said]
    at: float


class FakeFront:
    def __init__(self, path: Path, script: Script = paris) -> None:
        self.path = path
        self.address = f"ipc://{path}"
        self.script = script
        self.boot = "boot-1"
        self.version = PROTOCOL_VERSION
        #: reads and says nothing
        self.silent = False
        #: what Hello is answered with instead of Welcome
        self.greeting: Said = None
        self.received: list[Any] = []
        self.ends_cancelled_jobs = True
        self.attach_script: Callable[[Attach, str], Iterator[Said]] = attached
        self.reports: list[JobReport] = [job_report(2, "running"), job_report(1, "finished")]
        self._jobs: list[_Job] = []
        self._names = 0
        self._stopping = threading.Event()
        self._context: zmq.Context[Any] = zmq.Context()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake front")
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(10)
        self._context.term()

    def of(self, kind: type) -> list[Any]:
        return [message for message in list(self.received) if type(message) is kind]

    def wait_for(self, kind: type, count: int = 1, patience_s: float = 20.0) -> Any:
        until = time.monotonic() + patience_s
        while len(self.of(kind)) < count:
            assert time.monotonic() < until, f"no {kind.__name__} came; {self.received}"
            time.sleep(0.005)
        return self.of(kind)[count - 1]

    def _run(self) -> None:
        socket = self._context.socket(zmq.ROUTER)
        os.umask(0o077)
        socket.bind(self.address)
        self._ready.set()
        try:
            while not self._stopping.is_set():
                if socket.poll(2):
                    identity, frame = socket.recv_multipart()
                    self._hear(socket, identity, FROM_CLIENT.decode(frame))
                for job in list(self._jobs):
                    self._go_on(socket, job)
        finally:
            socket.close(linger=100)

    def _hear(self, socket: Any, identity: bytes, message: Any) -> None:
        self.received.append(message)
        if self.silent:
            return
        match message:
            case Hello():
                self._say(socket, identity, self.greeting or Welcome(self.version, self.boot, "potatod 0", "tiny", 2048))
            case Alive():
                self._say(socket, identity, Alive(self.boot))
            case Status(request):
                self._say(socket, identity, report(request, self.boot))
            case Generate():
                self._names += 1
                name = f"job-{self._names}"
                self._jobs.append(_Job(identity, name, self.script(message, name), time.monotonic()))
            case Attach(request, name):
                self._jobs.append(_Job(identity, name, self.attach_script(message, name), time.monotonic()))
            case Detach(name):
                self._jobs = [job for job in self._jobs if job.name != name]
            case Manage(request, name, action):
                if action == "cancel":
                    self._cancel(socket, identity, name)
                if request:
                    self._say(socket, identity, Managed(request, self.reports[0]))
            case List(request, states, before, limit):
                found = [each for each in self.reports if (not states or each.state in states) and (not before or each.number < before)]
                self._say(socket, identity, Listed(request, tuple(found[:limit]), len(found) > limit))
            case Show(request, name):
                asked = (ChatMessage("user", "Why?"),)
                self._say(socket, identity, Described(request, self.reports[0], 42, asked, None, Options(), ('{"name":"look"}',)))

    def _cancel(self, socket: Any, identity: bytes, name: str) -> None:
        running = [job for job in self._jobs if job.name == name]
        if not running:
            self._say(socket, identity, refused("unknown_job", f"there is no job {name}", job=name))
        elif self.ends_cancelled_jobs:
            self._jobs.remove(running[0])
            self._say(socket, identity, finished(name, 0, "cancelled"))

    def _go_on(self, socket: Any, job: _Job) -> None:
        while not self.silent and job.at <= time.monotonic():
            said = next(job.script, None)
            if said is None:
                self._jobs.remove(job)
                return
            if isinstance(said, int | float):
                job.at = time.monotonic() + said
            elif callable(said):
                said(self)
            else:
                self._say(socket, job.identity, said)

    def _say(self, socket: Any, identity: bytes, said: Said) -> None:
        frame = said if isinstance(said, bytes) else FROM_FRONT.encode(said)
        socket.send_multipart([identity, frame])
