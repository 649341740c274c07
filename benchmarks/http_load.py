"""HTTP under load: streams and a long queue beside one another, and garbage at the door. What they cost those who are answered."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import click
import psutil
from batching import together_s
from limited import Limits
from serving import Serving, answer, daemon

from potato_client.errors import RequestRefused
from potatod.sizes import parse_size

#: SmolLM2 streams from it, so that a sweep takes about as long as a large model's from a usual disk.
READ = "100MB"
STREAMS, QUEUED, TOKENS = 200, 1000, 4
GARBAGE, ANSWERS, TURNS = 2000, 16, 3
FLAGS = (
    "--front-max-context", "512", "--front-max-sequences", "16", "--pool-size", "64MiB", "--front-max-queue", "3000", "--jobs-per-user", "3000",
)  # fmt: skip


def http(model: Path) -> dict[str, Any]:
    """200 clients that stream while 1,000 jobs wait: none is dropped, and what the front takes of the time."""
    with _gateway(model) as (served, port, key):
        return _loaded(served, port, key, model.name)


def garbage(model: Path) -> dict[str, Any]:
    """16 answers beside 2,000 connections of garbage, to the gateway and to the clients' socket, by turns with none."""
    ratios: dict[str, list[float]] = {"http": [], "socket": []}
    with _gateway(model) as (served, port, key):
        connects = {"http": partial(asyncio.open_connection, "127.0.0.1", port), "socket": partial(asyncio.open_unix_connection, served.socket)}
        for turn in range(TURNS):
            plain = together_s(served.client, ANSWERS, ANSWERS)
            for door, connect in connects.items():
                beside, came = asyncio.run(_beside(served, connect, partial(_garbage, door, key, random.Random(turn))))
                ratios[door].append(beside / plain)
                click.echo(f"  {ANSWERS} answers: {plain:.3f} s a sweep, beside {came} connections of {door} {beside:.3f} s")
    return {f"{door}_of_plain": round(statistics.median(each), 3) for door, each in ratios.items()} | {
        "ratios": {door: [round(ratio, 3) for ratio in each] for door, each in ratios.items()}
    }


@contextmanager
def _gateway(model: Path) -> Iterator[tuple[Serving, int, str]]:
    """A daemon that has one; its port and token."""
    with tempfile.TemporaryDirectory() as place, socket.create_server(("127.0.0.1", 0)) as free:
        port, token = free.getsockname()[1], Path(place) / "token"
        free.close()
        flags = (*FLAGS, "--gateway-listen", f"127.0.0.1:{port}", "--gateway-token", str(token), "--gateway-path", place)
        with Limits(None, parse_size(READ), model) as limits, daemon(model, *flags, limits=limits) as served:
            answer(served.client, 4)
            yield served, port, token.read_text().strip()


def _loaded(served: Serving, port: int, key: str, model: str) -> dict[str, Any]:
    jobs = [served.client.submit(f"queued {n}", raw=True, max_tokens=1, priority="batch") for n in range(QUEUED)]
    processes = {stage.name: psutil.Process(stage.pid) for stage in served.client.status().stages if stage.name in ("front", "gateway")}
    before, began, sweeps = {name: _cpu_s(each) for name, each in processes.items()}, time.monotonic(), served.client.status().engine.sweeps
    texts = asyncio.run(_streams(port, key, model))
    wall = time.monotonic() - began
    shares = {f"{name}_share": round((_cpu_s(each) - before[name]) / wall, 4) for name, each in processes.items()}
    there = {report.job for report in served.client.jobs(limit=QUEUED + STREAMS + 100)}
    for report in served.client.jobs(["queued", "running", "set aside"], limit=QUEUED):
        with suppress(RequestRefused):  # it has just finished
            served.client.manage(report.job, "cancel")
    return {
        "streams_complete": sum(texts), "of": STREAMS, "queued_there": len(there & set(jobs)), "of_queued": QUEUED,
        "s_per_sweep": round(wall / (served.client.status().engine.sweeps - sweeps), 3), **shares,
    }  # fmt: skip


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def _streams(port: int, key: str, model: str) -> list[bool]:
    """Whether each came to its end."""

    async def one(number: int) -> bool:
        page = {"model": model, "messages": [{"role": "user", "content": f"number {number}"}], "max_tokens": TOKENS, "stream": True}
        body = json.dumps(page)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        text = await reader.read(-1)
        writer.close()
        return b"data: [DONE]" in text and text.startswith(b"HTTP/1.1 200")

    return await asyncio.gather(*(one(number) for number in range(STREAMS)))


async def _beside(served: Serving, connect: Callable[[], Awaitable[tuple[Any, asyncio.StreamWriter]]], make: Callable[[], bytes]) -> tuple[float, int]:
    """Seconds a sweep of answers while garbage comes, spread over their time; and how many connections there were."""
    task, came = asyncio.create_task(asyncio.to_thread(together_s, served.client, ANSWERS, ANSWERS)), 0
    while came < GARBAGE and not task.done():
        try:
            _, writer = await connect()
            writer.write(make())
            await asyncio.sleep(0.015)
            writer.close()
            came += 1
        except OSError:
            pass
    return await task, came


def _garbage(door: str, key: str, chance: random.Random) -> bytes:
    if door == "socket":
        zmtp = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
        noise = chance.randbytes(1000)
        return chance.choice([b"", noise, zmtp, zmtp + noise, zmtp + b"\x02" + b"\xff" * 8, b"GET / HTTP/1.1\r\n\r\n"])
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n".encode()
    return chance.choice([
        b"", chance.randbytes(1000), b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10, b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000,
        head + b"Content-Length: 99999999999\r\n\r\n", head + b'Content-Length: 50\r\n\r\n{"model":', head + b"Content-Length: 2\r\n\r\n{}",
    ])  # fmt: skip
