"""What computing costs where nothing streams, beside transformers with as many rows, the same dtype and threads."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from batching import together_s
from serving import TOKENS, answer, daemon, s_per_token
from torch.nn import functional
from transformers import AutoModelForCausalLM

from potato_client import Client
from potatod import manifest as manifests
from potatod import model_folder, pool, schemes
from potatod.store import skeleton as skeletons
from potatod.worker import arithmetic, kernels, native
from potatod.worker.attention import PackedAttention
from potatod.worker.banded import Piece
from potatod.worker.machine_code import microkernel
from potatod.worker.selfcheck import Runner

#: Tokens of a long prompt.
PROMPT = 512
#: Those that are compared are started so often (which pages a process gets is luck), and take so many turns each time.
STARTS, TURNS = 4, 2
#: Of a product of one row: more layers than any cache holds, and the turns.
LAYERS, PRODUCTS = 6, 25
#: Sweeps of one row; those before them warm up.
SWEEPS, WARM = 60, 10
SCHEMES = ("packed", "int8", "int4")


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
                clients[kernels] = running.enter_context(daemon(model, *flags)).client
                answer(clients[kernels], 6)  # the first sweep is the loading
            for _ in range(TURNS):
                seconds["transformers"].append(statistics.median(transformers_s(plain)))
                for kernels, client in clients.items():
                    seconds[kernels].append(s_per_token(client, prompt="b"))
    theirs = seconds["transformers"]
    ratios = {
        kernels: statistics.median(s / t for s, t in zip(seconds[kernels], theirs, strict=True)) for kernels in ("invariant", "fast")
    }
    return {f"{n}_s": round(statistics.median(t), 4) for n, t in seconds.items()} | {f"{n}_ratio": round(r, 3) for n, r in ratios.items()}


@torch.inference_mode()
def product(model: Path) -> dict[str, Any]:
    """One row with the matrices of some layers, in the pool's kind of memory and by turns: bytes of weights a second through our product and torch's,
    and through a sum of the same bytes, which does nothing but read; and of the same weights stored in SCHEMES the share of bf16's time."""
    shard = next(shard for shard in model_folder.load(model).shards if shard.kind == "layer")
    shapes = [shape for shape in manifests.shapes_of(shard).values() if len(shape) == 2]
    memory = pool.Pool(pool.create(LAYERS * sum(2 * rows * columns for rows, columns in shapes)))
    flat = torch.frombuffer(memory.view, dtype=torch.bfloat16)
    for some in flat.split(1 << 24):
        some.normal_(std=0.02)
    weights, at = [], 0
    for rows, columns in shapes * LAYERS:
        weights.append(flat[at : at + rows * columns].view(rows, columns))
        at += rows * columns
    row = {columns: torch.randn(1, columns).bfloat16() for _, columns in shapes}
    torch.set_num_threads(os.cpu_count() or 1)
    ours = native.Product(microkernel.codes("bfloat16", ("raw", *SCHEMES)), torch.bfloat16)
    stored = {
        scheme: [Piece(scheme, schemes.get(scheme).pack(weight), weight.dtype, weight.shape) for weight in weights] for scheme in SCHEMES
    }  # fmt: skip
    ways: dict[str, Callable[[torch.Tensor], object]] = {
        "ours": lambda weight: ours(row[weight.shape[1]], weight),
        "torch": lambda weight: functional.linear(row[weight.shape[1]], weight),
        "reading": lambda weight: weight.view(torch.int64).sum(),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {scheme: [] for scheme in SCHEMES}
    for _ in range(PRODUCTS):
        for name, way in ways.items():
            began = time.perf_counter()
            for weight in weights:
                way(weight)
            rates[name].append(memory.size / (time.perf_counter() - began))
        for scheme, pieces in stored.items():
            began = time.perf_counter()
            for piece in pieces:
                ours.by_pieces(row[piece.shape[1]], [piece])
            seconds[scheme].append(time.perf_counter() - began)
    of_reading = statistics.median(a / b for a, b in zip(rates["ours"], rates["reading"], strict=True))
    return {f"{name}_bytes_per_s": round(statistics.median(each)) for name, each in rates.items()} | {"ours_of_reading": round(of_reading, 3)} | {
        f"{scheme}_of_bfloat16": round(statistics.median(s * rate / memory.size for s, rate in zip(each, rates["ours"], strict=True)), 3)
        for scheme, each in seconds.items()
    } | {
        f"{scheme}_bytes_per_s": round(sum(piece.lies.nbytes for piece in stored[scheme]) / statistics.median(each)) for scheme, each in seconds.items()
    }  # fmt: skip


@torch.inference_mode()
def steps(model: Path) -> dict[str, Any]:
    """One row, everything in memory, three times in turn: s/sweep with layers as lists of steps and without, by this processor's product."""
    torch.set_num_threads(os.cpu_count() or 1)
    config, cpu, attention = skeletons.load_config(model), torch.device("cpu"), PackedAttention()
    found = arithmetic.find("fast", (), torch.bfloat16, cpu)
    pairs = []
    for _ in range(3):
        pair = []
        for way in (found, dataclasses.replace(found, steps=None)):
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
            pair.append(_sweep_s(Runner(plain, kernels.choose("fast", "packed", config, cpu, attention, way))))
        pairs.append(pair)
    with_s, without_s = (round(statistics.median(each), 4) for each in zip(*pairs, strict=True))
    return {"steps_s": with_s, "without_s": without_s, "steps_of_without": round(statistics.median(a / b for a, b in pairs), 3)}


def _sweep_s(runner: Runner) -> float:
    text, times = runner.new_kv(), []
    for at in range(WARM + SWEEPS):
        began = time.perf_counter()
        runner.run([(text, [3 + at])], at + 1)
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM:])


@torch.inference_mode()
def transformers_s(model: Any) -> list[float]:
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
    flags = ("--pool-size", "3300MB", "--front-max-context", "640", "--front-max-sequences", "64", "--kv-size", "512MiB")
    with daemon(model, *flags, "--worker-kernels", "invariant") as invariant, daemon(model, *flags, "--worker-kernels", "fast") as fast:
        ours = {"invariant": invariant.client, "fast": fast.client}
        for client in ours.values():
            answer(client, 6)
        for count in (16, 64):
            theirs = _transformers_rows_s(plain, count)
            for name, client in ours.items():
                seconds = together_s(client, count)
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


def _first_piece_s(client: Client) -> float:
    """Until the first token after a prompt of PROMPT tokens, which are bytes."""
    began = time.monotonic()
    return answer(client, 1, "a" * PROMPT)[0] - began
