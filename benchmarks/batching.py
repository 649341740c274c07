"""Many answers at once: what a sweep yields, streaming and resident, beside one answer; and what the next turn of a chat costs."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
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
from potatod import model_folder
from potatod.sizes import parse_size
from potatod.worker import native
from potatod.worker.machine_code import microkernel

#: Answers at once; of as many tokens, prompts of a few.
COUNTS = (1, 2, 4, 8, 16, 32, 64)
ANSWER = 12
#: Turns that the daemon and the products alone take: what two cores yield changes within minutes.
TURNS = 5
#: Tokens of history before the next turn, which are bytes.
HISTORY = 2000
#: KV of 64 texts of 128 tokens, and of one of HISTORY and its answer.
KV = "512MiB"
FLAGS = ("--front-max-context", "512", "--front-max-sequences", str(COUNTS[-1]), "--kv-size", KV)


def together_s(client: Client, count: int, tokens: int = ANSWER) -> float:
    """The median sweep while exactly so many answers are under way."""
    with ThreadPoolExecutor(count) as threads:
        asked = [threads.submit(answer, client, tokens, f"number {n}") for n in range(count)]
        arrivals = [each.result() for each in asked]
    begun, ended = max(times[0] for times in arrivals), min(times[-1] for times in arrivals)
    between = [b - a for times in arrivals for a, b in itertools.pairwise(times) if a >= begun and b <= ended]
    return statistics.median(between)


def together(model: Path, read: str = "500MB") -> dict[str, Any]:
    """Tokens a second of so many answers at once ÷ that of one, the weights streaming: RAM 2.5 GB beside the KV."""
    ram = parse_size("2.5GB") + parse_size(KV)
    with Limits(ram, parse_size(read), model) as limits, daemon(model, *FLAGS, limits=limits) as served:
        answer(served.client, 6)
        by = _counted(served.client)
    return {"by": by} | {f"{count}_times_one": by[count]["times_one"] for count in (16, 64)}


def resident(model: Path) -> dict[str, Any]:
    """The same with everything resident; then the most answers and the products alone by turns: the faster of torch's in fp32 and of our own."""
    rows = COUNTS[-1]
    with daemon(model, *FLAGS, "--pool-size", "3300MB") as served:
        answer(served.client, 6)
        by = _counted(served.client)
        turns_s = [(products_s(model, rows), together_s(served.client, rows)) for _ in range(TURNS)]
    alone = {name: statistics.median(products[name] for products, _ in turns_s) for name in turns_s[0][0]}
    return {"by": by, **{f"{name}_products_s": round(s, 3) for name, s in alone.items()}} | {
        f"{rows}_rows_s": round(statistics.median(s for _, s in turns_s), 3),
        "of_products": round(statistics.median(min(products.values()) / s for products, s in turns_s), 3),
    }  # fmt: skip


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
def products_s(model: Path, rows: int) -> dict[str, float]:
    """Seconds of all products of a sweep of so many rows, by turns: torch's of weights that lie there in fp32, and ours of bf16. Of two layers'
    matrices, scaled to all."""
    torch.set_num_threads(os.cpu_count() or 1)
    shards = [shard for shard in model_folder.load(model).shards if shard.kind in ("layer", "head")]
    shapes = [shape for shard in shards for shape in manifests.shapes_of(shard).values() if len(shape) == 2]
    some = [shape for shard in shards[:2] for shape in manifests.shapes_of(shard).values() if len(shape) == 2]
    whole = sum(out * columns for out, columns in shapes) / sum(out * columns for out, columns in some)
    weights = [torch.randn(out, columns) for out, columns in some]
    halves = [weight.bfloat16() for weight in weights]
    product = native.Product(microkernel.codes("bfloat16", ["raw"]), torch.bfloat16)
    ways: dict[str, Callable[[], object]] = {
        "torch": lambda: [functional.linear(torch.ones(rows, weight.shape[1]), weight) for weight in weights],
        "our": lambda: [product(torch.ones(rows, weight.shape[1], dtype=torch.bfloat16), weight) for weight in halves],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(7):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) * whole for name, each in times.items()}


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
