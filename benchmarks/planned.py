"""What was planned beside what it was, and the pipeline around a card that is only simulated."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import random_model
from limited import Limits
from serving import BIN, ONE, daemon, s_per_token

from potatod.sizes import parse_size


def grid(place: Path) -> dict[str, Any]:
    """Planned and real seconds per sweep for models, dtypes, RAM and disks; the share by which the plan is off. The machine is tried out just before
    each: what it shares with its neighbours changes within minutes."""
    rows = []
    for name, model, ram, read in _points(place):
        with Limits(parse_size(ram), parse_size(read), model) as limits:
            with limits.popen([str(BIN / "potatod"), "measure", str(model)], stdout=subprocess.DEVNULL) as measuring:
                if measuring.wait() != 0:
                    raise SystemExit(f"`potatod measure` ended with exit code {measuring.returncode}")
            with daemon(model, *ONE, limits=limits) as served:
                s = s_per_token(served.client, 12)
                planned = served.client.status().engine.expected_s_per_sweep or 0.0
        off = round(planned / s - 1, 3)
        rows.append({"model": name, "ram": ram, "read": read, "s": round(s, 3), "planned_s": round(planned, 3), "off": off})
        click.echo(f"  {rows[-1]}")
    distances = [abs(row["off"]) for row in rows]
    within = sum(distance <= 0.15 for distance in distances)
    return {"points": len(rows), "worst": max(distances), "median": round(statistics.median(distances), 3), "within_15_percent": within, "rows": rows}


def _points(place: Path) -> Iterator[tuple[str, Path, str, str]]:
    """Each disk slower than the real one ever is, and RAM for a part of the weights or for all of them: then computing is the longest."""
    large = random_model.make(random_model.large(), place / "random-3gb")
    for ram, read in [*itertools.product(("1.6GB", "2.5GB", "3.2GB"), ("250MB", "400MB")), ("3.6GB", "400MB"), ("4.2GB", "400MB")]:
        yield "3.09 GB bf16", large, ram, read
    for dtype in ("float16", "float32"):
        small = random_model.make(random_model.small(), place / f"random-small-{dtype}", dtype)
        for ram, read in (("700MB", "100MB"), ("900MB", "400MB"), ("2.2GB", "400MB")):
            yield f"0.34 billion weights {dtype}", small, ram, read


def slowing(place: Path, read: int = 500_000_000) -> dict[str, Any]:
    """The disk slows down to a tenth in the middle of an answer: s/token before and after beside what each disk allows, whether the answer stays what
    it is, and whether the log says it."""
    model = random_model.make(random_model.small(), place / "random-small-bfloat16", "bfloat16")
    with tempfile.TemporaryDirectory() as where, Limits(parse_size("800MB"), read, model) as limits:
        log = Path(where) / "log"
        with daemon(model, *ONE, limits=limits, log=log) as served:
            before = s_per_token(served.client, 24)
            streamed = served.client.status().model.streamed_bytes_per_sweep
            ids: list[int] = []
            arrivals: list[float] = []
            slowed = 0.0
            for piece in served.client.generate("benchmark", raw=True, max_tokens=_TOKENS, temperature=0):
                ids += piece.token_ids
                arrivals.append(time.monotonic())
                if not slowed and len(ids) >= 24:
                    limits.read_at(read // 10)
                    slowed = arrivals[-1]
            slow = [at for at in arrivals if at > slowed]
            after = statistics.median(b - a for a, b in itertools.pairwise(slow[4:]))
            said = "tries out anew" in log.read_text()
            limits.read_at(read)
            again = served.client.generate("benchmark", raw=True, max_tokens=_TOKENS, temperature=0)
            same = ids == [token for piece in again for token in piece.token_ids]
    return {
        "before_s": round(before, 3), "before_ratio": round(before * read / streamed, 3), "after_s": round(after, 3),
        "after_ratio": round(after * read / 10 / streamed, 3), "same_answer": same, "said": said,
    }  # fmt: skip


#: Of the answer in which the disk slows down: minutes, since it is said after two of them are over.
_TOKENS = 24 + 44

#: (disk, upload, compute) of a machine with a card, bytes a second.
LINKS = [
    (100e6, 400e6, 800e6), (100e6, 150e6, 800e6), (200e6, 200e6, 200e6), (400e6, 150e6, 400e6), (400e6, 200e6, 150e6), (150e6, 800e6, 300e6),
    (400e6, 300e6, 250e6), (300e6, 600e6, 120e6),
]  # fmt: skip


def simulated(place: Path) -> dict[str, Any]:
    """A model of 0.34 billion weights through the whole daemon onto a simulated card that keeps rates to the clock, the disk limited: s/sweep beside
    the longest of its three links alone."""
    model = random_model.make(random_model.small(), place / "random-small-bfloat16", "bfloat16")
    rows = []
    for disk, upload, compute in LINKS:
        device = f"simulated:upload={upload:.0f},compute={compute:.0f},vram=500000000"
        flags = (*ONE, "--worker-device", device, "--pool-size", "200MB", "--worker-threads", "1")
        with Limits(None, int(disk), model) as limits, daemon(model, *flags, limits=limits) as served:
            s = s_per_token(served.client, 14)
            report = served.client.status().model
        uploaded = report.weights_bytes - report.card_bytes
        links = {"disk": report.streamed_bytes_per_sweep / disk, "upload": uploaded / upload, "compute": report.weights_bytes / compute}
        longest = max(links.values())
        rows.append({**{f"{n}_s": round(t, 3) for n, t in links.items()}, "s": round(s, 3), "ratio": round(s / longest, 3)})
        click.echo(f"  {rows[-1]}")
    ratios = [row["ratio"] for row in rows]
    return {"points": len(rows), "median_ratio": statistics.median(ratios), "worst_ratio": max(ratios), "rows": rows}
