"""Many answers at once: what a sweep yields, streaming and resident, beside one answer; and what the next turn of a chat costs."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch
from limited import Limits
from serving import answer, daemon, gaps
from torch.nn import functional

from potato_client import Client
from potatod import manifest as manifests
from potatod.sizes import parse_size

#: Answers at once; of as many tokens, prompts of a few.
COUNTS = (1, 2, 4, 8, 16, 32, 64)
ANSWER = 12
#: Tokens of history before the next turn, which are bytes.
HISTORY = 2000
#: KV of 64 texts of 128 tokens, and of one of HISTORY and its answer.
KV = "512MiB"


def together_s(client: Client, count: int, tokens: int = ANSWER) -> float:
    """The median sweep while exactly so many answers are under way."""
    with ThreadPoolExecutor(count) as threads:
        asked = [threads.submit(answer, client, tokens, f"number {n}") for n in range(count)]
        arrivals = [each.result() for each in asked]
    begun, ended = max(times[0] for times in arrivals), min(times[-1] for times in arrivals)
    between = [b - a for times in arrivals for a, b in itertools.pairwise(times) if a >= begun and b <= ended]
    return statistics.median(between)


def together(model: Path, read: str = "500MB") -> dict[str, Any]:
    """Tokens a second of so many answers at once ÷ that of one: the weights streaming (RAM 2.5 GB beside the KV), and everything resident, there beside
    the products alone."""
    result: dict[str, Any] = {}
    ram = parse_size("2.5GB") + parse_size(KV)
    flags = ("--front-max-context", "512", "--front-max-sequences", str(COUNTS[-1]), "--kv-size", KV)
    with Limits(ram, parse_size(read), model) as limits, daemon(model, *flags, limits=limits) as served:
        answer(served.client, 6)
        result["streaming"] = _counted(served.client)
    with daemon(model, *flags, "--pool-size", "3300MB") as served:
        answer(served.client, 6)
        result["resident"] = _counted(served.client)
        report = served.client.status()
    limit_s = products_s(model, COUNTS[-1])
    told = {f"{where}_{count}_times_one": each["times_one"] for where, by in result.items() for count, each in by.items() if count in (16, 64)}
    resident_s = result["resident"][COUNTS[-1]]["s_per_sweep"]
    return result | told | {"products_64_rows_s": round(limit_s, 3), "of_products": round(limit_s / resident_s, 3), "kernels": report.engine.kernels}


def _counted(client: Client) -> dict[int, dict[str, float]]:
    seconds = {count: together_s(client, count) for count in COUNTS}
    by = {
        count: {"s_per_sweep": round(s, 3), "tokens_per_s": round(count / s, 3), "times_one": round(count * seconds[1] / s, 2)}
        for count, s in seconds.items()
    }  # fmt: skip
    for count, each in by.items():
        click.echo(f"  {count}: {each}")
    return by


@torch.inference_mode()
def products_s(model: Path, rows: int) -> float:
    """Seconds of all products of a sweep of so many rows, made by torch in fp32 of weights that lie there in fp32: a layer and more, scaled to all."""
    torch.set_num_threads(os.cpu_count() or 1)
    shards = manifests.load(model).shards
    weights = [shape for shard in shards if shard.kind == "layer" for shape in manifests.shapes_of(shard).values() if len(shape) == 2]
    head = [shape for shard in shards if shard.kind == "head" for shape in manifests.shapes_of(shard).values() if len(shape) == 2]
    total = sum(rows * columns for rows, columns in (*weights, *head))
    some = weights[: len({*weights}) + 2]
    tensors = [torch.randn(out, columns) for out, columns in some]
    best = []
    for _ in range(5):
        began = time.perf_counter()
        for weight in tensors:
            functional.linear(torch.ones(rows, weight.shape[1]), weight)
        best.append(time.perf_counter() - began)
    return min(best) * total / sum(weight.numel() for weight in tensors)


def turns(model: Path, ram: str = "2.5GB", read: str = "500MB") -> dict[str, Any]:
    """A chat with HISTORY tokens goes on: tokens prefilled and seconds to the first token, beside the first time and beside a token's own time."""
    flags = ("--front-max-context", "2304", "--front-max-sequences", "2")
    with Limits(parse_size(ram), parse_size(read), model) as limits, daemon(model, *flags, limits=limits) as served:
        answer(served.client, 4)
        history = "".join(chr(97 + (7 * at + at // 11) % 26) for at in range(HISTORY))
        first_s = _first_s(served.client, history)
        said = served.client.generate(history, raw=True, max_tokens=8, temperature=0)
        said.wait(120)
        sweep_s = statistics.median(gaps(answer(served.client)))
        next_s = [_first_s(served.client, history + said.text + f" turn {n}") for n in range(5)]
    return {
        "history_tokens": HISTORY, "first_token_s": round(first_s, 2), "next_turn_s": round(statistics.median(next_s), 2),
        "sweep_s": round(sweep_s, 2), "sweeps": round(statistics.median(next_s) / sweep_s, 2),
    }  # fmt: skip


def _first_s(client: Client, prompt: str) -> float:
    began = time.monotonic()
    return answer(client, 1, prompt)[0] - began
