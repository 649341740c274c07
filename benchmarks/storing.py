"""What weights cost that are stored in fewer bytes: in RAM beside bf16 and transformers, and streaming beside bf16 in the same RAM."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from computing import transformers_s
from limited import Limits
from peers import environments, models
from serving import ONE, TOKENS, daemon, gaps, s_per_token

from potatod import model_folder
from potatod.sizes import parse_size
from potatod.store.prepare import prepare

#: As `prepare --dtype` calls them.
FORMS = ("bfloat16", "packed", "int8", "int4")
STARTS, TURNS = 1, 4


def folder_of(model: Path, form: str) -> Path:
    """The large model stored so, made once beside it."""
    if form == "bfloat16":
        return model
    out = model.with_name(f"{model.name}.{form}")
    if not (out / "manifest.json").exists():
        prepare(model, out, dtype=form)
    return out


def weights_bytes(folder: Path) -> int:
    """Of what a sweep computes with."""
    return sum(part.length for shard in model_folder.load(folder).shards if shard.kind in ("layer", "head") for part in shard.parts)


def stored(model: Path) -> dict[str, Any]:
    """Everything resident, one row: s/sweep with the weights in each form beside transformers with bf16, all there at once and by turns."""
    import transformers

    from potatod.store import skeleton

    torch.set_num_threads(os.cpu_count() or 1)
    config = skeleton.load_config(model)
    seconds: dict[str, list[float]] = {"transformers": [], **{form: [] for form in FORMS}}
    sizes = {form: weights_bytes(folder_of(model, form)) for form in FORMS}
    for _ in range(STARTS):
        with ExitStack() as running:
            plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
            clients = {}
            for form in FORMS:
                flags = ("--pool-size", f"{sizes[form] + (64 << 20)}", *ONE)
                clients[form] = running.enter_context(daemon(folder_of(model, form), *flags)).client
                s_per_token(clients[form])  # the first sweep is the loading
            for _ in range(TURNS):
                seconds["transformers"].append(statistics.median(transformers_s(plain)))
                for form, client in clients.items():
                    seconds[form].append(s_per_token(client))
    result: dict[str, Any] = {f"{name}_s": round(statistics.median(each), 4) for name, each in seconds.items()}
    for form in FORMS:
        pairs = list(zip(seconds[form], seconds["transformers"], seconds["bfloat16"], strict=True))
        result |= {
            f"{form}_of_transformers": round(statistics.median(a / b for a, b, _ in pairs), 3),
            f"{form}_of_bfloat16": round(statistics.median(a / c for a, _, c in pairs), 3),
            f"{form}_weights_bytes": sizes[form],
        }
    return result


def fewer(model: Path, ram: str = "1.5GB", read: str = "500MB") -> dict[str, Any]:
    """In the same RAM and with the same disk: s/sweep with the weights in each form, and its share of bf16's beside the share of the bytes."""
    result: dict[str, Any] = {"ram": ram, "read_limit": read}
    seconds, streamed = {}, {}
    for form in FORMS:
        folder = folder_of(model, form)
        with Limits(parse_size(ram), parse_size(read), folder) as limits, daemon(folder, *ONE, limits=limits) as served:
            seconds[form] = statistics.median(s_per_token(served.client, 16) for _ in range(2))
            streamed[form] = served.client.status().model.streamed_bytes_per_sweep
        share, of_bytes = seconds[form] / seconds["bfloat16"], streamed[form] / streamed["bfloat16"]
        result |= {f"{form}_s": round(seconds[form], 3), f"{form}_share": round(share, 3), f"{form}_share_streamed": round(of_bytes, 3)}
    return result


def packed(model: Path) -> dict[str, Any]:
    """RAM 2.5 GB, 500 MB/s."""
    folder = folder_of(model, "packed")
    with Limits(parse_size("2.5GB"), parse_size("500MB"), folder) as limits, daemon(folder, *ONE, limits=limits) as served:
        s = statistics.median(s_per_token(served.client) for _ in range(3))
        report = served.client.status().model
    plain = weights_bytes(model)
    return {
        "s_per_token": round(s, 3), "streamed_bytes": report.streamed_bytes_per_sweep, "share_of_bfloat16": round(report.weights_bytes / plain, 4),
    }  # fmt: skip


def beside_llama(model: Path) -> dict[str, Any]:
    """Everything in RAM, one row, by turns: s/token of int8 beside llama.cpp's Q8_0, and of int4 beside its Q4_K_M. Needs llama.cpp's environment
    (peers/environments.py) and the model as its F16 file (peers/models.py)."""
    result: dict[str, Any] = {}
    for form, theirs in (("int8", "q8_0"), ("int4", "q4_k_m")):
        folder, file = folder_of(model, form), models.quantised(theirs)
        with daemon(folder, "--pool-size", f"{weights_bytes(folder) + (64 << 20)}", *ONE) as served:
            s_per_token(served.client)
            pairs = [(s_per_token(served.client), _llama_s(file)) for _ in range(3)]
        ours_s, theirs_s = (round(statistics.median(each), 4) for each in zip(*pairs, strict=True))
        result |= {f"{form}_s": ours_s, f"{theirs}_s": theirs_s, f"{form}_ratio": round(statistics.median(a / b for a, b in pairs), 2)}
    return result


def _llama_s(file: Path) -> float:
    """The median of the tokens' gaps, the first few left out."""
    program = Path(__file__).parent / "peers" / "run_llama.py"
    command = [environments.python("llama.cpp"), program, file, "--prompt", "3,4,5,6,7", "--tokens", str(TOKENS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        return statistics.median(gaps([time.monotonic() for _ in process.stdout]))
