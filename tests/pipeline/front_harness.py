"""The front as a real process, between a supervisor and an engine that are made of threads and do as they are told.

The "model" is a function of all tokens so far, so that a token that is fed twice, lost or moved changes the text: a
prompt ``abc|`` is answered with ``abcabcabc…``, and so is ``abc|whatever|``; ``$`` in it stands for the end of text; a prompt that starts with ``?``
gives random logits that depend on every token; one that starts with ``!|`` gives a row that is not there. What has no bar, or begins with one, is
answered with nothing.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from guessing import branches_of, paths_of
from stages import Started
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from potato_client.protocol import FROM_CLIENT, FROM_FRONT, PROTOCOL_VERSION, Attach, Generate, Hello, Welcome
from potato_client.question import Options
from potatod import pool, wire
from potatod.config import build
from potatod.kv_layout import KvGroup, KvLayout
from potatod.messages import Counted, Cut, Draft, Drafted, Drop, Engine, Failed, Fork, LayerDone, Ready, Row, Rows, StageProcess, Stop, Sweep, Switch
from potatod.room import logits_rows
from potatod.stage import Boot, BootModel

END = 256
VOCABULARY = 260
PATIENCE_S = 30.0
PROGRAM = "import potatod.front.__main__"


def byte_tokenizer(folder: Path, template: str = "") -> None:
    """A tokenizer of one token per byte, an end of text, and one more than VOCABULARY, "<beyond>", in a model folder without weights."""
    alphabet = _bytes_to_unicode()
    model = models.BPE(vocab={char: byte for byte, char in alphabet.items()}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(f"<{name}>", special=True) for name in ("end", "spare 1", "spare 2", "spare 3", "beyond")])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"} | ({"chat_template": template} if template else {})))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": END}))


def _bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def next_token(tokens: list[int]) -> int:
    if ord("|") not in tokens[1:] or tokens[0] == ord("|"):
        return END
    end = tokens.index(ord("|"))
    said = tokens[::-1].index(ord("|"))  # behind the last bar
    token = tokens[said % end]
    return END if token == ord("$") else token


def logits(tokens: list[int]) -> np.ndarray:
    values = np.full(VOCABULARY, -100.0, dtype=np.float32)
    random = np.random.default_rng(zlib.crc32(repr(tokens).encode()))
    values[ord("a") : ord("z") + 1] = random.normal(size=26)
    if tokens[0] != ord("?"):
        values[next_token(tokens)] = 50.0
    return values


class Worker(threading.Thread):
    """One engine: serves sweeps as the real worker does, and stops at a step that does not go on where its KV ends."""

    def __init__(self, front: Front, epoch: int, delay_s: float, drafter: Callable[[Draft], Drafted] | None) -> None:
        """``drafter`` answers when a draft is asked for; it may die of it."""
        super().__init__(daemon=True)
        self.delay_s = delay_s
        self.drafter = drafter
        self.kv: dict[int, list[int]] = {}
        #: tokens that were known in each sequence's last step, and its branches
        self.guessed: dict[int, tuple[int, list[list[int]]]] = {}
        self.sweeps: list[Sweep] = []
        self.forks: list[Fork] = []
        self.wrong: str | None = None
        self.hold = threading.Event()
        self._die = threading.Event()
        self._epoch = epoch
        self._logits = np.frombuffer(pool.Pool(os.dup(front.logits_fd)).view, dtype=np.float32).reshape(-1, VOCABULARY)
        self._context = front.context
        self._directory = front.directory
        self._bound = threading.Event()
        self.start()
        self._bound.wait(PATIENCE_S)

    def run(self) -> None:
        ours = wire.sweeps_wire(self._context, self._directory, self._epoch, bind=True)
        self._bound.set()
        try:
            while not self._die.is_set() and self.wrong is None:
                if not ours.wait(0.02):
                    continue
                message = ours.receive()
                if isinstance(message, Drop):
                    self.kv.pop(message.sequence, None)
                elif isinstance(message, Cut):
                    if message.branch is not None:
                        known, branches = self.guessed[message.sequence]
                        self.kv[message.sequence][known:] = branches[message.branch]
                    del self.kv[message.sequence][message.length :]
                elif isinstance(message, Fork):
                    self.forks.append(message)
                    self.kv[message.sequence] = self.kv[message.of][: message.length]
                elif isinstance(message, Draft):
                    assert self.drafter is not None
                    ours.send(Drafted(self._epoch - 1, message.number, (), 0.0))  # of an engine long gone
                    ours.send(self.drafter(message))
                elif isinstance(message, Sweep):
                    self._serve(ours, message)
        finally:
            ours.close()

    def _serve(self, ours: wire.Wire, sweep: Sweep) -> None:
        self.sweeps.append(sweep)
        ours.send(LayerDone(self._epoch, sweep.number, 1, 4))
        if self.delay_s:
            time.sleep(self.delay_s)
        while self.hold.is_set() and not self._die.is_set():
            time.sleep(0.005)
        if self._die.is_set():
            return
        ours.send(Rows(self._epoch - 1, sweep.number, (), 0.0, 0, None))  # of an engine long gone
        ours.send(Rows(self._epoch, sweep.number + 7, (), 0.0, 0, None))  # of a sweep nobody sent
        ours.send(Rows(self._epoch, sweep.number, self._rows(sweep), self.delay_s, 1000, 1e6))

    def _rows(self, sweep: Sweep) -> tuple[Row, ...]:
        self._logits[:] = np.nan
        rows = []
        index = 0
        for step in sweep.steps:
            held = self.kv.setdefault(step.sequence, [])
            if step.start != len(held):
                self.wrong = f"sequence {step.sequence} goes on at {step.start}, its KV holds {len(held)}"
            held += step.tokens
            known = len(held) - step.drafted
            self.guessed[step.sequence] = known, branches_of(step)
            for path in paths_of(step) if step.want != "nothing" else ():
                behind = [*held[:known], *path]
                if held[:2] == [ord("!"), ord("|")]:
                    rows.append(Row(step.sequence, logits_row=1 << 20))
                elif step.want == "logits":
                    self._logits[index] = logits(behind)
                    rows.append(Row(step.sequence, logits_row=index))
                    index += 1
                else:
                    rows.append(Row(step.sequence, token=next_token(behind)))
        return tuple(rows)

    def die(self) -> None:
        self._die.set()
        self.join(PATIENCE_S)


class Front:
    """``python -m potatod.front`` and its supervisor."""

    def __init__(self, directory: Path, boot: Boot, program: list[str] | None = None) -> None:
        self.directory = directory
        self.socket = boot.settings.front.socket
        self.context: zmq.Context[Any] = zmq.Context()
        self.control = wire.control_router(self.context, directory)
        self.logits_fd = pool.create(logits_rows(boot.settings) * VOCABULARY * 4, "potato-logits")
        self.counted: list[Counted] = []
        self.failed: Failed | None = None
        self.worker: Worker | None = None
        self.epoch = self.model = 0
        self._clients: list[Client] = []
        page = directory / "boot.front.json"
        boot.write(page)
        self.log_path = directory / "front.log"
        with self.log_path.open("wb") as log:
            self.process = Started("front", program[-1] if program else PROGRAM, "--boot", str(page), log=log.fileno(), logits=self.logits_fd)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_ready(self) -> None:
        self.wait_for(lambda message: isinstance(message, Ready | Failed))
        assert self.failed is None, self.failed
        self.tell("starting")

    def wait_for(self, found: Callable[[object], bool]) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if self.control.socket.poll(50) and (said := self.control.receive()) is not None:
                message = said[1]
                if isinstance(message, Counted):
                    self.counted.append(message)
                if isinstance(message, Failed):
                    self.failed = message
                if found(message):
                    return message
            elif self.process.poll() is not None:
                raise AssertionError(f"the front ended with {self.process.returncode}: {self.log}")
        raise AssertionError("the supervisor waited in vain")

    def tell(self, state: Any, why: str = "", model: int | None = None, paused: str = "") -> None:
        """``model``: which has the engine from now on; None: the same as before."""
        self.model = self.model if model is None else model
        own = StageProcess("supervisor", os.getpid(), time.time() - 5)
        stages = (
            own,
            StageProcess("front", self.process.pid, time.time() - 4),
            StageProcess("worker", 1 << 30, time.time()),
        )
        self.control.send(b"front", Engine(self.epoch, state, max(0, self.epoch - 1), why, stages, self.model, paused))

    def engine_up(self, delay_s: float = 0.0, drafter: Callable[[Draft], Drafted] | None = None) -> Worker:
        self.epoch += 1
        self.worker = Worker(self, self.epoch, delay_s, drafter)
        self.tell("up")
        return self.worker

    def switches(self, delay_s: float = 0.0) -> Worker:
        """Waits until the front wants another model, and gives it the engine."""
        wanted = self.wait_for(lambda message: isinstance(message, Switch))
        if self.worker is not None:
            self.worker.die()
        self.tell("switching", model=wanted.model)
        return self.engine_up(delay_s)

    def switch_fails(self, why: str) -> None:
        """Waits until the front wants another model, whose engine then stays down."""
        wanted = self.wait_for(lambda message: isinstance(message, Switch))
        if self.worker is not None:
            self.worker.die()
        self.tell("switching", model=wanted.model)
        self.tell("degraded", why)

    def engine_dies(self) -> None:
        assert self.worker is not None
        self.worker.die()
        self.tell("restarting", "the worker was killed by SIGKILL")

    def client(self, hello: bool = True) -> Client:
        client = Client(self)
        self._clients.append(client)
        if hello:
            client.send(Hello(PROTOCOL_VERSION, "a test"))
            assert isinstance(client.receive(), Welcome)
        return client

    def stop(self) -> int:
        self.control.send(b"front", Stop())
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """A second time does nothing."""
        if self.context.closed:
            return
        self.process.kill()
        self.process.wait()
        if self.worker is not None:
            self.worker.die()
        for client in self._clients:
            client.socket.close(linger=0)
        self.control.socket.close(linger=0)
        self.context.term()
        os.close(self.logits_fd)


@dataclass
class Heard:
    """All that was said about one request."""

    messages: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(m.text for m in self.of("Piece"))

    @property
    def token_ids(self) -> list[int]:
        return [token for m in self.of("Piece") for token in m.token_ids]

    @property
    def last(self) -> Any:
        return self.messages[-1]

    def of(self, name: str) -> list[Any]:
        return [m for m in self.messages if type(m).__name__ == name]


class Client:
    """A client that sees every message, and may send what it likes."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self.socket: zmq.Socket[bytes] = front.context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.connect(front.socket)
        self._requests = 0

    def send(self, message: object) -> None:
        self.socket.send(FROM_CLIENT.encode(message))

    def receive(self, timeout_s: float = PATIENCE_S) -> Any:
        if not self.socket.poll(int(timeout_s * 1000)):
            raise AssertionError(f"nothing came; the front says: {self._front.log}")
        return FROM_FRONT.decode(self.socket.recv())

    def ask(self, prompt: str | None = None, *, messages: tuple[Any, ...] = (), **options: Any) -> int:
        self._requests += 1
        about = {name: options.pop(name) for name in ("key", "follow", "model") if name in options}
        self.send(Generate(self._requests, messages, prompt, Options(**options), **about))
        return self._requests

    def hear(self, heard: Heard, until: str, count: int = 1) -> Heard:
        """Receives until so many messages of that name have come."""
        while len(heard.of(until)) < count:
            message = self.receive()
            heard.messages.append(message)
            name = type(message).__name__
            assert name == until or name not in ("Finished", "Refused"), message
        return heard

    def attach(self, job: str, **has: int) -> Heard:
        """All that is said about a job until it is over."""
        self._requests += 1
        self.send(Attach(self._requests, job, **has))
        return self.hear(Heard(), "Finished")

    def waiting(self) -> Iterator[Any]:
        """What lies there to be received."""
        while self.socket.poll(0):
            yield self.receive()

    def request(self, message: Callable[[int], object]) -> Any:
        """The one answer to a message that is made with the request's number; what comes besides is dropped."""
        self._requests += 1
        self.send(message(self._requests))
        while getattr(found := self.receive(), "request", None) != self._requests:
            pass
        return found

    def answer(self, prompt: str | None = None, **options: Any) -> Heard:
        self.ask(prompt, **options)
        return self.hear(Heard(), "Finished")


VERDICT = {
    "vocabulary": VOCABULARY,
    "embed_rows": VOCABULARY,
    "device": "cpu",
    "kernels": "invariant",
    "architecture": "EchoForCausalLM",
    "dtype": "float32",
    "layers": 4,
    "load": {"weights_bytes": 3000, "streamed_bytes": 1000, "uploaded_bytes": 0, "slots": 0, "layers": 4},
    "resident_bytes": 2000,
    "card_bytes": 0,
    "draft": None,
    "rope_border": None,
    "kv": KvLayout((KvGroup(None, 1),)).to_json(),
    "rates": {"disk": 1000.0, "compute": [[1, 1500.0]], "layer_s": 0.1},
}


def front(
    directory: Path,
    *,
    max_context: int = 256,
    kv_bytes: int = 1 << 20,
    prefill_chunk: int = 512,
    socket: str | None = None,
    program: list[str] | None = None,
    speculation: bool = True,
    draft: bool = False,
    checksum: str = "c0ffee",
    template: str = "",
    others: tuple[str, ...] = (),
    jobs: dict[str, Any] | None = None,
    **limits: int,
) -> Front:
    """A started front; it may not be ready. ``limits`` are keys of [front], ``jobs`` of [jobs]; ``others``: models beside the first, which is called
    "model"; each has its name as checksum."""
    directory.mkdir(exist_ok=True)
    byte_tokenizer(directory / "model", template)
    values: dict[tuple[str, str], Any] = {("front", key): value for key, value in limits.items()}
    values["speculation", "enabled"] = speculation
    values["speculation", "draft"] = "self:int4" if draft else ""
    values["jobs", "path"] = str(directory / "jobs.db")
    values |= {("jobs", key): value for key, value in (jobs or {}).items()}
    values["front", "socket"] = socket or f"ipc://{directory}/front.sock"
    verdict = {**VERDICT, "max_context": max_context, "prefill_chunk": prefill_chunk, "kv_bytes": kv_bytes, "draft": {} if draft else None}
    verdict["checksum"] = checksum
    settings = build(values)
    for other in others:
        byte_tokenizer(directory / other, template)
    pages = tuple(BootModel(str(directory / other), settings, verdict | {"checksum": other}) for other in others)
    boot = Boot(1, str(directory), str(directory / "model"), settings, None, verdict, pages)
    return Front(directory, boot, program)


def start_front(directory: Path, **changes: Any) -> Front:
    """A front that is ready."""
    begun = front(directory, **changes)
    begun.wait_ready()
    return begun


def front_fails(directory: Path, *, name: str, socket: str) -> tuple[Failed, int]:
    """What a front says that cannot start, and its exit code."""
    begun = front(directory / name, socket=socket)
    try:
        failed = begun.wait_for(lambda message: isinstance(message, Failed))
        return failed, begun.process.wait(PATIENCE_S)
    finally:
        begun.close()
