"""Streaming inside limits of RAM and disk, beside what the bytes allow."""

from __future__ import annotations

import json
import statistics
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from limited import Limits
from serving import BIN, ONE, answer, beside_the_pool, daemon, gaps, s_per_token
from yardstick import floor_s

from potato_client import Client, ClientError
from potatod import trace
from potatod.config import Settings
from potatod.sizes import parse_size


def reading(model: Path, ram: str = "2.5GB", read: str = "500MB") -> dict[str, Any]:
    """Bytes a second during decode as a share of the limit, s/token, memory beside the pool; the pool as large as the daemon makes it."""
    limit = parse_size(read)
    with Limits(parse_size(ram), limit, model) as limits, daemon(model, *ONE, limits=limits) as served:
        times = gaps(answer(served.client))
        report = served.client.status()
        beside = beside_the_pool(served.process)
        rate = report.model.streamed_bytes_per_sweep / statistics.mean(times)
        return {
            "ram": ram, "read_limit": read, "s_per_token": round(statistics.median(times), 3), "resident_bytes": report.model.resident_bytes,
            "streamed_bytes": report.model.streamed_bytes_per_sweep,
            "bytes_per_s": round(rate), "share_of_limit": round(rate / limit, 3), "peak_ram_bytes": limits.peak_ram_bytes(), **beside,
        }  # fmt: skip


def curve(model: Path, read: str = "500MB") -> dict[str, Any]:
    """s/token against RAM, beside the floor and what was planned."""
    result: dict[str, Any] = {}
    for ram in ("1.5GB", "2.0GB", "2.5GB", "3.0GB", "3.5GB", "4.0GB"):
        with Limits(parse_size(ram), parse_size(read), model) as limits, daemon(model, *ONE, limits=limits) as served:
            s = s_per_token(served.client, 16)
            report = served.client.status()
        floor = floor_s(report.model.weights_bytes, ram, read)
        planned, waited = report.engine.expected_s_per_sweep or 0, report.engine.waited_s_per_sweep or 0
        result[ram] = {
            "s_per_token": round(s, 3), "floor_s": round(floor, 3), "of_floor": round(s / floor, 3) if floor else None,
            "planned_s": round(planned, 3), "computing_s": round(s - waited, 3), "streamed_bytes": report.model.streamed_bytes_per_sweep,
        }  # fmt: skip
        click.echo(f"  {ram}: {result[ram]}")
    return result


def unlimited(model: Path, ram: str = "2.5GB") -> dict[str, Any]:
    """The disk as fast as it is: s/token beside the longer of reading alone (the same reads, nobody computes) and computing alone (everything
    resident), three times in turn."""
    rows: list[tuple[float, float, float]] = []
    for _ in range(3):
        with daemon(model, *ONE, "--pool-size", "3300MB") as served:
            answer(served.client, 6)
            computing = s_per_token(served.client)
        with Limits(parse_size(ram), None, model) as limits:
            rate = _raw_bytes_per_s(limits, model)
            with daemon(model, *ONE, limits=limits) as served:
                s = s_per_token(served.client)
                streamed = served.client.status().model.streamed_bytes_per_sweep
        rows.append((s, streamed / rate, computing))
    s, raw, computing = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(mine / max(others) for mine, *others in rows)
    seconds = {"s_per_token": s, "reading_alone_s": raw, "computing_alone_s": computing}
    return {"ram": ram, **{name: round(each, 3) for name, each in seconds.items()}, "ratio": round(ratio, 3)}


def _raw_bytes_per_s(limits: Limits, model: Path) -> float:
    command = [BIN / "python", "-m", "potatod.reader.measure", model, Settings().to_json()]
    with limits.popen(command, stdout=subprocess.PIPE) as process:
        out, _ = process.communicate()
    return float(json.loads(out)["bytes_per_s"])


def invariance(model: Path, ram: str = "2.5GB", read: str = "500MB") -> dict[str, Any]:
    """`invariant` against `fast` while streaming, one row, in turn."""
    ratios = []
    for _ in range(3):
        seconds = {}
        for kernels in ("invariant", "fast"):
            with Limits(parse_size(ram), parse_size(read), model) as limits, daemon(model, *ONE, "--worker-kernels", kernels, limits=limits) as served:
                seconds[kernels] = s_per_token(served.client, 12)
        ratios.append(seconds["invariant"] / seconds["fast"])
    return {"ram": ram, "read_limit": read, "ratio": round(statistics.median(ratios), 3), "ratios": [round(each, 3) for each in ratios]}


def bubble(model: Path, ram: str = "2.5GB", read: str = "500MB", seconds: float = 60.0) -> dict[str, Any]:
    """A minute of decode, watched: how much of it the reader had room and read nothing, and the worker had weights and computed nothing."""
    with Limits(parse_size(ram), parse_size(read), model) as limits, daemon(model, *ONE, limits=limits) as served:
        answer(served.client, 4)
        asked = threading.Thread(target=_ask_until_closed, args=(served.client,), daemon=True)
        asked.start()
        stages = trace.collect(served.directory, seconds)
        found = trace.shares(stages)
        served.client.close()
    Path("bench-out/bubble.trace.json").write_text(trace.as_chrome(stages))
    names = {"reader": ("busy", "held", "lost"), "worker": ("busy", "held", "own", "lost")}
    return {f"{stage}_{name}": round(getattr(share, name), 4) for stage, share in found.items() for name in names[stage]}


def _ask_until_closed(client: Client) -> None:
    with suppress(ClientError):  # what is asked for lasts longer than anybody watches
        answer(client, 200, "bubble")


def cold(model: Path, ram: str = "2.5GB", read: str = "500MB") -> dict[str, Any]:
    """Start to first token, the page cache empty, the probe's verdict kept: beside one pass over the file."""
    times = []
    for attempt in range(4):
        with Limits(parse_size(ram), parse_size(read), model) as limits, daemon(model, *ONE, limits=limits) as served:
            arrivals = answer(served.client, 2)
            weights = served.client.status().model.weights_bytes
            if attempt:  # the first may have tried out the machine
                times.append(arrivals[0] - served.began)
    one_pass = weights / parse_size(read)
    s = statistics.median(times)
    return {"s": round(s, 2), "one_pass_s": round(one_pass, 2), "beyond_1.1_passes_s": round(s - 1.1 * one_pass, 2)}


def first_token(model: Path) -> dict[str, Any]:
    """Warm: `potatod start` to the first token, the probe's verdict cached."""
    times = []
    for attempt in range(4):
        with daemon(model, "--pool-size", "96MiB", "--front-max-context", "512") as served:
            arrivals = answer(served.client, 2)
            if attempt:
                times.append(arrivals[0] - served.began)
    return {"s": round(statistics.median(times), 2)}
