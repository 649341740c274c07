"""HTTP under load: streams and a long queue beside one another, and garbage at the door. What they cost those who are answered."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import tempfile
import time
from contextlib import suppress
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
GARBAGE = 2000
FLAGS = (
    "--front-max-context", "512", "--front-max-sequences", "16", "--pool-size", "64MiB", "--front-max-queue", "3000", "--jobs-per-user", "3000",
)  # fmt: skip


def http(model: Path) -> dict[str, Any]:
    """200 clients that stream while 1,000 jobs wait: none is dropped, and what the front takes of the time. Then 2,000 connections of garbage beside 16
    answers, by turns with none."""
    with tempfile.TemporaryDirectory() as place, socket.create_server(("127.0.0.1", 0)) as free:
        port, token = free.getsockname()[1], Path(place) / "token"
        free.close()
        flags = (*FLAGS, "--gateway-listen", f"127.0.0.1:{port}", "--gateway-token", str(token), "--gateway-path", place)
        with Limits(None, parse_size(READ), model) as limits, daemon(model, *flags, limits=limits) as served:
            answer(served.client, 4)
            key = token.read_text().strip()
            found = _loaded(served, port, key, model.name)
            plain, beside = [], []
            for _ in range(3):
                plain.append(together_s(served.client, 16, 16))
                beside.append(asyncio.run(_beside(served, port, key)))
                click.echo(f"  16 answers: {plain[-1]:.3f} s a sweep, beside garbage {beside[-1]:.3f} s")
    ratios = [one / other for one, other in zip(beside, plain, strict=True)]
    return found | {"garbage_of_plain_s": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}


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


async def _beside(served: Serving, port: int, key: str) -> float:
    """Seconds a sweep of 16 answers while garbage comes, spread over their time."""
    chance = random.Random(1)
    task = asyncio.create_task(asyncio.to_thread(together_s, served.client, 16, 16))
    for _ in range(GARBAGE):
        if task.done():
            break
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_garbage(key, chance))
            await asyncio.sleep(0.015)
            writer.close()
        except OSError:
            pass
    return await task


def _garbage(key: str, chance: random.Random) -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n".encode()
    return chance.choice([
        b"", chance.randbytes(1000), b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10, b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000,
        head + b"Content-Length: 99999999999\r\n\r\n", head + b'Content-Length: 50\r\n\r\n{"model":', head + b"Content-Length: 2\r\n\r\n{}",
    ])  # fmt: skip
