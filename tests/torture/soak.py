"""Mixed work for a long time: memory, descriptors and the database of a daemon stay as they are.

    python tests/torture/soak.py --minutes 5

Native and HTTP clients ask, stream, leave, cancel, submit, delete and send batches, and strangers send garbage. Every few seconds each process is
looked at. What it takes in the last quarter of the time is held against the second quarter: the first one is for warming up. Ctrl-C ends it sooner.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import click
import openai
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from daemons import Daemon, know_rates, make_model

from potato_client import Client, ClientError

FLAGS = (
    "--pool-size", "560KiB", "--front-max-context", "320", "--front-max-sequences", "8", "--jobs-keep", "20s", "--jobs-per-user", "10000",
    "--gateway-listen", "127.0.0.1:0",
)  # fmt: skip
EVERY_S = 2.0
#: What may be more in the end, of each process: noise of allocators.
GROWTH_BYTES, GROWTH_SHARE = 8 << 20, 0.05
GROWTH_DESCRIPTORS = 8


class Soak:
    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.over = threading.Event()
        self.done: defaultdict[str, int] = defaultdict(int)
        self.faults: list[str] = []
        self.url = daemon.text().rsplit("listening at ", 1)[1].split('"', 1)[0]
        self.token = (daemon.place / "state" / "potato" / "gateway.token").read_text().strip()

    def work(self, name: str, do: Callable[[random.Random], None], seed: int) -> None:
        chance = random.Random(seed)
        while not self.over.is_set():
            try:
                do(chance)
                self.done[name] += 1
            except (ClientError, openai.OpenAIError) as error:
                if not self.over.is_set():
                    self.faults.append(f"{name}: {error}")
            time.sleep(chance.uniform(0.0, 0.3))

    def ask(self, chance: random.Random) -> None:
        """And read all of it, a part, or cancel."""
        with Client(self.daemon.socket) as client:
            answer = client.generate(f"question {chance.random()}", max_tokens=chance.randrange(1, 60), temperature=chance.choice([0.0, 1.0]))
            for number, _ in enumerate(answer):
                if number > 20 and chance.random() < 0.1:
                    answer.cancel()

    def submit(self, chance: random.Random) -> None:
        with Client(self.daemon.socket) as client:
            job = client.submit(f"job {chance.random()}", max_tokens=chance.randrange(1, 60), priority=chance.choice(["batch", "interactive"]))
            list(client.attach(job))
            if chance.random() < 0.5:
                client.manage(job, "delete")
            client.jobs(limit=20)
            client.status()

    def stream(self, chance: random.Random) -> None:
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.token) as client:
            messages = [{"role": "user", "content": f"over HTTP {chance.random()}"}]
            stream = client.chat.completions.create(model="model", messages=messages, max_tokens=40, stream=True, n=chance.choice([1, 2]))  # type: ignore[call-overload]
            for number, _ in enumerate(stream):
                if number > 10 and chance.random() < 0.05:
                    stream.close()
                    break

    def respond(self, chance: random.Random) -> None:
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.token) as client:
            made = client.responses.create(model="model", input=f"response {chance.random()}", max_output_tokens=30, background=chance.random() < 0.5)
            while made.status in ("queued", "in_progress"):
                time.sleep(0.1)
                made = client.responses.retrieve(made.id)
            client.responses.delete(made.id)

    def batch(self, chance: random.Random) -> None:
        page = {"model": "model", "prompt": f"{chance.random()}", "max_tokens": 8}
        lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": page} for n in range(20)]
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.token) as client:
            file = client.files.create(file=("lines", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
            made = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
            while made.status not in ("completed", "failed", "cancelled") and not self.over.is_set():
                time.sleep(0.2)
                made = client.batches.retrieve(made.id)
            for id in (file.id, made.output_file_id):
                if id:
                    client.files.delete(id)

    def garbage(self, chance: random.Random) -> None:
        host, port = self.url.removeprefix("http://").split(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(chance.choice([b"", chance.randbytes(500), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"]))
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as local:
            local.connect(self.daemon.socket.removeprefix("ipc://"))
            local.sendall(chance.randbytes(100))


def look(daemon: Daemon) -> dict[str, float]:
    """By what is measured, and of which process."""
    state = daemon.place / "state" / "potato"
    found: dict[str, float] = {"database bytes": sum(path.stat().st_size for path in state.glob("jobs.db*"))}
    found["gateway's folder bytes"] = sum(_size(path) for path in (state / "gateway").rglob("*"))
    assert daemon.process is not None
    for name, process in {**daemon.stages(), "supervisor": psutil.Process(daemon.process.pid)}.items():
        found[f"{name} bytes"] = process.memory_info().rss
        found[f"{name} descriptors"] = process.num_fds()
    return found


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):  # it has just gone
        return path.lstat().st_size
    return 0


def growth(samples: list[dict[str, float]], key: str) -> tuple[float, float]:
    """Medians of the second and of the last quarter."""
    quarter = len(samples) // 4
    values = [sample[key] for sample in samples if key in sample]
    return statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])


@click.command()
@click.option("--minutes", default=5.0, show_default=True)
def main(minutes: float) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in its background ignore it
    with tempfile.TemporaryDirectory(prefix="potato-soak-") as place:
        model, cache = make_model(Path(place)), Path(place) / "cache"
        know_rates(cache)
        with Daemon(model, cache, *FLAGS) as daemon:
            soak = Soak(daemon)
            works = [("ask", soak.ask), ("ask", soak.ask), ("submit", soak.submit), ("stream", soak.stream), ("stream", soak.stream),
                     ("respond", soak.respond), ("batch", soak.batch), ("garbage", soak.garbage)]  # fmt: skip
            threads = [threading.Thread(target=soak.work, args=(*work, seed), daemon=True) for seed, work in enumerate(works)]
            for thread in threads:
                thread.start()
            samples, until = [], time.monotonic() + 60 * minutes
            with contextlib.suppress(KeyboardInterrupt):
                for number in itertools.count():
                    if time.monotonic() > until or soak.faults:
                        break
                    time.sleep(EVERY_S)
                    samples.append(look(daemon))
                    if number % 30 == 29:
                        click.echo(f"{number * EVERY_S / 60:.0f} minutes: {dict(soak.done)}")
            soak.over.set()
            for thread in threads:
                thread.join(30)
        grown = report(samples)
    click.echo(f"done: {dict(soak.done)}")
    for fault in soak.faults:
        click.echo(f"FAULT: {fault}", err=True)
    sys.exit(1 if grown or soak.faults else 0)


def report(samples: list[dict[str, float]]) -> bool:
    """Whether anything has grown."""
    grown = False
    for key in sorted(samples[0]):
        before, after = growth(samples, key)
        most = GROWTH_DESCRIPTORS if key.endswith("descriptors") else max(GROWTH_BYTES, GROWTH_SHARE * before)
        too_much = after - before > most
        grown |= too_much
        unit = 1 if key.endswith("descriptors") else 1 << 20
        click.echo(f"{key:28} {before / unit:10.1f} {after / unit:10.1f}{'   GROWN' if too_much else ''}")
    return grown


if __name__ == "__main__":
    main()
