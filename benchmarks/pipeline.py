"""`make bench`: what the pipeline reaches of what the hardware allows. Prints a table, writes bench-out/pipeline.json.

    python benchmarks/pipeline.py [--model FOLDER] [--only NAME …]

Rows that limit RAM and disk need root (benchmarks/limited.py); without it they say so and are left out, by name.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import psutil
import random_model
import torch
from limited import Limits

from potato_client import Client, NoDaemon
from potatod.sizes import human_size, parse_size

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
OUT = ROOT / "bench-out"
#: The prompt has a few tokens, the answer so many: the middle ones are measured.
TOKENS = 24
#: Tokens of a long prompt.
PROMPT = 512
#: Those that are compared are started so often (which pages a process gets is luck), and take so many turns each time.
STARTS, TURNS = 4, 2


@contextmanager
def daemon(model: Path, *flags: str, limits: Limits | None = None) -> Iterator[tuple[Client, subprocess.Popen[bytes], float]]:
    """A running daemon, a client of it, its process, and when it was started (time.monotonic())."""
    with tempfile.TemporaryDirectory(prefix="pb-") as place:
        command = [str(BIN / "potatod"), "start", str(model), "--run-directory", f"{place}/run", "--front-socket", f"ipc://{place}/s",
                   "--log-level", "warning", *flags]  # fmt: skip
        began = time.monotonic()
        process = (limits.popen if limits else subprocess.Popen)(command)
        try:
            while True:
                try:
                    client = Client(f"ipc://{place}/s")
                    client.status()
                    break
                except NoDaemon:
                    if process.poll() is not None:
                        raise SystemExit(f"the daemon ended with exit code {process.returncode}") from None
                    time.sleep(0.1)
            with client:
                yield client, process, began
        finally:
            process.terminate()
            process.wait(30)


def answer(client: Client, tokens: int = TOKENS, prompt: str = "benchmark") -> list[float]:
    """Arrival of each token, time.monotonic()."""
    return [time.monotonic() for piece in client.generate(prompt, raw=True, max_tokens=tokens, temperature=0) if piece.token_ids]


def gaps(arrivals: list[float]) -> list[float]:
    """Seconds per token, the first few left out."""
    return [b - a for a, b in itertools.pairwise(arrivals[4:])]


def machinery(model: Path) -> dict[str, Any]:
    """Everything resident, one row: s/sweep of the daemon beside transformers in RAM, the same dtype and threads.

    All are there at once and take turns, so that each turn's ratio is of things measured within seconds of each other.
    """
    import transformers

    from potatod.store import skeleton

    torch.set_num_threads(os.cpu_count() or 1)
    config = skeleton.load_config(model)
    seconds: dict[str, list[float]] = {"transformers": [], "invariant": [], "fast": []}
    for _ in range(STARTS):
        with ExitStack() as running:
            plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
            clients = {}
            for kernels in ("invariant", "fast"):
                flags = ("--pool-size", "3300MB", "--front-max-context", "512", "--worker-kernels", kernels)
                clients[kernels] = running.enter_context(daemon(model, *flags))[0]
                answer(clients[kernels], 6)  # the first sweep is the loading
            for _ in range(TURNS):
                seconds["transformers"].append(statistics.median(_transformers_s(plain)))
                for kernels, client in clients.items():
                    seconds[kernels].append(statistics.median(gaps(answer(client, prompt="b"))))
    theirs = seconds["transformers"]
    ratios = {
        kernels: statistics.median(s / t for s, t in zip(seconds[kernels], theirs, strict=True)) for kernels in ("invariant", "fast")
    }
    return {f"{n}_s": round(statistics.median(t), 4) for n, t in seconds.items()} | {f"{n}_ratio": round(r, 3) for n, r in ratios.items()}


@torch.inference_mode()
def _transformers_s(model: Any) -> list[float]:
    cache, times = None, []
    ids = torch.tensor([list(range(3, 12))])
    for _ in range(TOKENS):
        began = time.monotonic()
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = out.past_key_values, out.logits[0, -1:].argmax(-1, keepdim=True)
        times.append(time.monotonic() - began)
    return times[5:]


def rows(model: Path) -> dict[str, Any]:
    """Everything resident: s/sweep with 16 and 64 sequences at once, and seconds for a prompt of 512 tokens, beside transformers with as many rows."""
    import transformers

    from potatod.store import skeleton

    torch.set_num_threads(os.cpu_count() or 1)
    plain = transformers.AutoModelForCausalLM.from_config(
        skeleton.load_config(model), dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    result: dict[str, Any] = {}
    flags = ("--pool-size", "3300MB", "--front-max-context", "640", "--front-max-sequences", "64")
    with daemon(model, *flags, "--worker-kernels", "invariant") as (invariant, *_), daemon(model, *flags, "--worker-kernels", "fast") as (fast, *_):
        ours = {"invariant": invariant, "fast": fast}
        for client in ours.values():
            answer(client, 6)
        for count in (16, 64):
            theirs = _transformers_rows_s(plain, count)
            for name, client in ours.items():
                seconds = _together_s(client, count)
                result |= {f"{name}_{count}_rows_s": round(seconds, 3), f"{name}_{count}_rows_ratio": round(seconds / theirs, 3)}
            result[f"transformers_{count}_rows_s"] = round(theirs, 3)
        theirs = _prompt_s(plain)  # minutes, where bf16 is not native
        for name, client in ours.items():
            seconds = _first_piece_s(client)
            result |= {f"{name}_prompt_s": round(seconds, 2), f"{name}_prompt_ratio": round(seconds / theirs, 3)}
        result["transformers_prompt_s"] = round(theirs, 2)
    return result


@torch.inference_mode()
def _transformers_rows_s(model: Any, count: int) -> float:
    cache, times = None, []
    ids = torch.arange(3, 3 + count).view(count, 1)
    for _ in range(5):
        began = time.monotonic()
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        times.append(time.monotonic() - began)
    return statistics.median(times[2:])


@torch.inference_mode()
def _prompt_s(model: Any) -> float:
    began = time.monotonic()
    model(torch.arange(3, 3 + PROMPT).view(1, PROMPT), use_cache=True, logits_to_keep=1)
    return time.monotonic() - began


def _together_s(client: Client, count: int) -> float:
    """The median sweep while so many answers are under way."""
    with ThreadPoolExecutor(count) as threads:
        answers = [threads.submit(answer, client, 12, f"number {n}") for n in range(count)]
        arrivals = [each.result() for each in answers]
    begun, ended = max(times[0] for times in arrivals), min(times[-1] for times in arrivals)
    return statistics.median(b - a for times in arrivals for a, b in itertools.pairwise(times) if a >= begun and b <= ended)


def _first_piece_s(client: Client) -> float:
    """Until the first token after a prompt of PROMPT tokens, which are bytes."""
    began = time.monotonic()
    return answer(client, 1, "a" * PROMPT)[0] - began


def reading(model: Path, ram: str = "2.5GB", read: str = "500MB") -> dict[str, Any]:
    """Streaming inside limits, the pool as large as the daemon makes it: bytes a second during decode as a share of the limit, s/token, memory
    beside the pool."""
    limit = parse_size(read)
    with Limits(parse_size(ram), limit, model) as limits, daemon(
        model, "--front-max-context", "512", "--front-max-sequences", "1", limits=limits
    ) as (client, process, _):
        arrivals = answer(client)
        report = client.status()
        times = gaps(arrivals)
        beside = _beside_the_pool(process)
        s = statistics.median(times)
        rate = report.model.streamed_bytes_per_sweep / statistics.mean(times)
        return {
            "ram": ram, "read_limit": read, "s_per_token": round(s, 3), "resident_bytes": report.model.resident_bytes,
            "streamed_bytes": report.model.streamed_bytes_per_sweep,
            "bytes_per_s": round(rate), "share_of_limit": round(rate / limit, 3), "peak_ram_bytes": limits.peak_ram_bytes(), **beside,
        }  # fmt: skip


def curve(model: Path, read: str = "500MB") -> dict[str, Any]:
    """s/token against RAM, beside what the bytes allow: floor(RAM) = (weights - (RAM - 0.55 GB)) / bandwidth, and what was planned."""
    result: dict[str, Any] = {}
    for ram in ("1.5GB", "2.0GB", "2.5GB", "3.0GB", "3.5GB", "4.0GB"):
        with Limits(parse_size(ram), parse_size(read), model) as limits, daemon(
            model, "--front-max-context", "512", "--front-max-sequences", "1", limits=limits
        ) as (client, *_):
            times = gaps(answer(client, 16))
            report = client.status()
        weights = report.model.resident_bytes + report.model.streamed_bytes_per_sweep
        floor = max(0.0, weights - (parse_size(ram) - 550_000_000)) / parse_size(read)
        s = statistics.median(times)
        result[ram] = {
            "s_per_token": round(s, 3), "floor_s": round(floor, 3), "planned_s": round(report.engine.expected_s_per_sweep or 0, 3),
            "waited_s": round(report.engine.waited_s_per_sweep or 0, 3), "streamed_bytes": report.model.streamed_bytes_per_sweep,
        }  # fmt: skip
        click.echo(f"  {ram}: {result[ram]}")
    return result


def _beside_the_pool(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Summed PSS of all processes less the pool's own pages."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    total = pooled = 0
    for one in family:
        for region in one.memory_maps(grouped=False):
            total += region.pss
            pooled += region.pss if "memfd:potato-pool" in region.path else 0
    return {"pss_bytes": total, "pss_beside_pool_bytes": total - pooled}


def first_token(model: Path) -> dict[str, Any]:
    """Warm: `potatod start` to the first token, the probe's verdict cached."""
    times = []
    for attempt in range(4):
        with daemon(model, "--pool-size", "96MiB", "--front-max-context", "512") as (client, _, began):
            arrivals = answer(client, 2)
            if attempt:
                times.append(arrivals[0] - began)
    return {"s": round(statistics.median(times), 2)}


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=ROOT / ".cache" / "random-3gb", show_default=True)
@click.option("--small", type=click.Path(path_type=Path), default=ROOT / ".cache" / "smollm2-135m", show_default=True)
@click.option("--only", multiple=True, type=click.Choice(["machinery", "rows", "reading", "curve", "first_token"]))
def main(model: Path, small: Path, only: tuple[str, ...]) -> None:
    """Measure and print."""
    tables: dict[str, Callable[[], dict[str, Any]]] = {
        "machinery": lambda: machinery(random_model.make(random_model.large(), model)),
        "rows": lambda: rows(random_model.make(random_model.large(), model)),
        "reading": lambda: reading(random_model.make(random_model.large(), model)),
        "curve": lambda: curve(random_model.make(random_model.large(), model)),
        "first_token": lambda: first_token(small),
    }
    results: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count(), "torch": torch.__version__}
    click.echo(f"{results['processor']}, {results['cores']} cores, torch {results['torch']}")
    for name in only or tables:
        if name in ("reading", "curve") and os.geteuid() != 0:
            click.echo(f"{name:12} left out: limits need root")
            continue
        if name == "first_token" and not small.exists():
            click.echo(f"{name:12} left out: `make demo` makes {small.name}")
            continue
        results[name] = tables[name]()
        click.echo(f"{name:12} " + ", ".join(f"{k} {human_size(v) if k.endswith('bytes') else v}" for k, v in results[name].items()))
    OUT.mkdir(exist_ok=True)
    (OUT / "pipeline.json").write_text(json.dumps(results, indent=1))


def _processor() -> str:
    flags = Path("/proc/cpuinfo").read_text()
    kind = "avx512_bf16" if "avx512_bf16" in flags else "avx2" if "avx2" in flags else "other"
    return f"{platform.machine()} ({kind} class)"


if __name__ == "__main__":
    main()
