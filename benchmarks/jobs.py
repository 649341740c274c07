"""What durability costs, and how well it is known when a job will be over."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from batching import together_s
from limited import Limits
from serving import answer, daemon

from potato_client.job_report import OVER, JobReport
from potatod.jobs.database import Added, Changed, Database, Said
from potatod.jobs.job import Ask, Job
from potatod.sampling.params import Sampling
from potatod.sizes import parse_size

#: SmolLM2 streams from it, so that a sweep takes about as long as a large model's from a usual disk.
READ = "100MB"
POOL = "64MiB"
TURNS = 3
COMMITS = 200
#: Jobs, of so many tokens, on so many places.
JOBS, TOKENS, PLACES = 12, 40, 2


def durable(model: Path) -> dict[str, Any]:
    """Sixteen answers that stream, their jobs on this disk and in memory by turns; and a commit alone, of so many jobs."""
    found: dict[str, list[float]] = {"disk": [], "memory": []}
    with tempfile.TemporaryDirectory(dir=model.parent) as disk, tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        commits = {count: commit_s(Path(disk) / f"{count}.db", count) for count in (1, 16, 64)}
        for turn in range(TURNS):
            for name, place in (("disk", disk), ("memory", memory)):
                flags = ("--front-max-context", "512", "--front-max-sequences", "16", "--pool-size", POOL, "--jobs-path", f"{place}/{turn}.db")
                with Limits(None, parse_size(READ), model) as limits, daemon(model, *flags, limits=limits) as served:
                    answer(served.client, 4)
                    found[name].append(together_s(served.client, 16))
                click.echo(f"  jobs on {name}: {found[name][-1]:.3f} s a sweep")
    ratios = [on_disk / in_memory for on_disk, in_memory in zip(found["disk"], found["memory"], strict=True)]
    return {f"commit_of_{count}_ms": round(1000 * s, 2) for count, s in commits.items()} | {
        "s_per_sweep": round(statistics.median(found["disk"]), 3), "of_memory_s": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }  # fmt: skip


def commit_s(path: Path, count: int) -> float:
    """The median time of what one sweep of so many jobs writes."""
    database = Database(path)
    jobs = [
        Job(n, f"{n:016x}", "uid:0", "", "m", "model", "?", 0, 0, 0, prompt_tokens=9, limit_tokens=1 << 20, accepted_at=time.time())
        for n in range(1, count + 1)
    ]
    database.commit(Added(job.copy(), Ask(b"x" * 200, tuple(range(9)), Sampling(), False, "")) for job in jobs)
    seconds = []
    for first in range(COMMITS):
        began = time.monotonic()
        database.commit(write for job in jobs for write in (Said(job.number, first, (7,), " word", ""), Changed(job)))
        seconds.append(time.monotonic() - began)
    database.close()
    return statistics.median(seconds)


def eta(model: Path) -> dict[str, Any]:
    """Jobs in a queue: half-way through each, how far what is said of its end is off, as a share of what it then takes. Nobody can know when an answer
    ends by itself before its limit: of those only whether they ended within what was said."""
    flags = ("--front-max-context", "512", "--front-max-sequences", str(PLACES), "--pool-size", POOL, "--speculation-enabled", "true")
    halfway: dict[str, tuple[float, JobReport]] = {}
    ended: dict[str, tuple[float, JobReport]] = {}
    with Limits(None, parse_size(READ), model) as limits, daemon(model, *flags, limits=limits) as served:
        answer(served.client, 4)
        ids = [served.client.submit(f"benchmark {n}", raw=True, max_tokens=TOKENS, temperature=0.8, seed=n) for n in range(JOBS)]
        while len(ended) < JOBS:
            now = time.monotonic()
            for report in served.client.jobs():
                if report.job in ids and report.eta_s is not None and report.completion_tokens >= TOKENS / 2:
                    halfway.setdefault(report.job, (now, report))
                if report.job in ids and report.state in OVER:
                    ended.setdefault(report.job, (now, report))
            time.sleep(0.1)
    off, within = [], []
    for id, (at, said) in halfway.items():
        left_s, reason = ended[id][0] - at, ended[id][1].reason
        assert said.eta_s is not None and said.eta_least_s is not None and said.eta_most_s is not None
        within.append(said.eta_least_s <= left_s <= said.eta_most_s)
        off += [abs(said.eta_s - left_s) / left_s] if reason == "length" else []
        click.echo(f"  said {said.eta_least_s:.0f} to {said.eta_most_s:.0f} s, {said.eta_s:.1f}; took {left_s:.1f} s ({reason})")
    return {
        "jobs": len(within), "within_what_was_said": sum(within), "to_their_limit": len(off), "off_median": round(statistics.median(off), 3),
        "off_most": round(max(off), 3),
    }  # fmt: skip
