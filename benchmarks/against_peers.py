"""Ours beside AirLLM, accelerate and llama.cpp: the same 3.09 GB of weights, the same prompt, the same RAM and disk, in turn. Needs root (limited.py).

    python benchmarks/against_peers.py [--ram 2.5GB …] [--read 500MB|none] [--rounds 3] [--tokens 6] [--only NAME …] [--resume]
    python benchmarks/against_peers.py --plot docs/peers.svg        # draws what was measured, measures nothing

Makes what is missing: the peers' environments (llama.cpp compiles for long) and the model in their forms, 12 GB in .cache. Every run is written to
bench-out/peers.json as soon as it ends, so ``--resume`` goes on where it was interrupted.

NOTE [ fairness ] Each round runs every system once, one after the other, each in a cgroup of its own with caches dropped before. This process and our
client are outside the cgroup and import no torch, since what they hold mapped would be there for ours without being read or counted. Peers generate in
process, so nothing of theirs lies outside. Each has the settings that are best for it here, named in peers/run_*.py; accelerate runs twice, as it is
and with a line of ours that copies into RAM what it only maps (run_accelerate.py). The first token, which waits for loading, and SKIPPED more are left
out, then ``--tokens`` are measured, or as many as come in ``--seconds``, but two at least. They leave RAM for this prompt of nine tokens, ours for 512.
"""

from __future__ import annotations

import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import click
from limited import Limits
from peers import environments, picture
from peers.results import SYSTEMS, Run, load, save, table
from tokenizers import Tokenizer
from yardstick import machine

from potatod.sizes import parse_size

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks" / "peers"
CACHE = ROOT / ".cache"
BIN = Path(sys.executable).parent
OUT = ROOT / "bench-out" / "peers.json"
PROMPT = "benchmark"
RAM = ("1.5GB", "2.0GB", "2.5GB", "3.0GB", "3.5GB", "4.0GB")
#: Tokens after the first that are left out: ours fills its pool during the first sweeps, the others are as they stay from the second token on.
SKIPPED = {"ours": 4, "accelerate": 1, "accelerate-copied": 1, "llama.cpp": 1, "airllm": 1}
#: What accelerate needs beside the copied weights: at 2.5 GB of RAM 500 and 400 MB were equally fast, 350 half as fast, 300 twenty times slower.
COPIED_BESIDE_BYTES = 450_000_000
#: A run that has not ended after so many seconds is given up as "too slow".
DEADLINE_S = 300.0


# Running one


@contextmanager
def started(system: str, limits: Limits, ram_bytes: int | None, tokens: int, errors: IO[bytes]) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """Its processes; the first one is what can be killed for its RAM, the last one says tokens on its stdout (peers/arrivals.py)."""
    prompt = ",".join(map(str, prompt_ids()))
    with tempfile.TemporaryDirectory(prefix="pp-") as place, ExitStack() as ending:

        def start(command: Sequence[str | Path], popen: Any = limits.popen, **options: Any) -> subprocess.Popen[bytes]:
            process: subprocess.Popen[bytes] = popen(command, stderr=errors, **options)
            ending.callback(_end, process)
            return process

        def peer(program: str, *arguments: str | Path) -> Sequence[subprocess.Popen[bytes]]:
            command = [environments.python(_peer(system)), HERE / program, *arguments, "--prompt", prompt, "--tokens", str(tokens)]
            return [start(command, stdout=subprocess.PIPE, env=os.environ | {"HF_HUB_OFFLINE": "1"})]

        match system:
            case "ours":
                socket = f"ipc://{place}/s"
                daemon = start([BIN / "potatod", "start", CACHE / "random-3gb", "--run-directory", f"{place}/run", "--front-socket", socket,
                                "--jobs-path", f"{place}/jobs.db",
                                "--log-level", "warning", "--front-max-context", "512", "--front-max-sequences", "1"])  # fmt: skip
                client = [sys.executable, HERE / "run_ours.py", socket, "--prompt", PROMPT, "--tokens", str(tokens)]
                yield [daemon, start(client, subprocess.Popen, stdout=subprocess.PIPE)]
            case "accelerate" | "accelerate-copied":
                arguments = ["--room", str(_room_bytes(system, ram_bytes)), "--offload", f"{place}/offload"]
                yield peer("run_accelerate.py", CACHE / "random-3gb.hf", *arguments, *(["--copy"] if system == "accelerate-copied" else []))
            case "llama.cpp":
                yield peer("run_llama.py", CACHE / "random-3gb.f16.gguf")
            case "airllm":
                yield peer("run_airllm.py", CACHE / "random-3gb.hf", "--shards", CACHE / "random-3gb.airllm")


def _peer(system: str) -> str:
    """Whose environment it runs in."""
    return system.removesuffix("-copied")


def _room_bytes(system: str, ram_bytes: int | None) -> int:
    """Weights that accelerate is to keep. What it only maps the kernel evicts with the rest, so more than half of the RAM made it slower."""
    if ram_bytes is None:
        return 10**12
    return max(0, ram_bytes - COPIED_BESIDE_BYTES) if system == "accelerate-copied" else ram_bytes // 2


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def measure(system: str, ram: str, read: str, number: int, tokens: int, seconds: float) -> Run:
    """One run, in a cgroup of its own."""
    arrivals: list[float] = []
    ids: list[int] = []
    read_bytes: list[int] = []
    skipped = SKIPPED[system]
    ram_bytes = _size(ram)
    outcome = "ok"
    with Limits(ram_bytes, _size(read), CACHE) as limits, tempfile.TemporaryFile() as errors:
        began = time.monotonic()
        with started(system, limits, ram_bytes, 1 + skipped + tokens, errors) as processes:
            for token in _said(processes, began + DEADLINE_S):
                arrivals.append(time.monotonic())
                read_bytes.append(limits.read_bytes())
                ids.append(token)
                count = len(ids) - 1 - skipped
                if count >= tokens or (count >= 2 and arrivals[-1] - arrivals[skipped] >= seconds):
                    break
            else:
                outcome = _why(processes, errors)
        peak = limits.peak_ram_bytes()
    gaps = [round(b - a, 4) for a, b in itertools.pairwise(arrivals[skipped:])]
    per_token = round((read_bytes[-1] - read_bytes[skipped]) / len(gaps)) if gaps else None
    first = round(arrivals[0] - began, 2) if arrivals else None
    return Run(ram, read, number, system, outcome, first, tuple(gaps), per_token, peak, tuple(ids))


def _said(processes: Sequence[subprocess.Popen[bytes]], deadline: float) -> Iterator[int]:
    """Token ids as they are said, until the deadline or the end of any process. What libraries print beside them is passed over."""
    stdout = processes[-1].stdout
    assert stdout is not None
    os.set_blocking(stdout.fileno(), False)
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if not selector.select(0.5):
                if any(process.poll() is not None for process in processes):
                    return
                continue
            new = os.read(stdout.fileno(), 1 << 16)
            if not new:
                return
            *lines, rest = (rest + new).split(b"\n")
            yield from (json.loads(line)["token"] for line in lines if line.startswith(b'{"token"'))


def _why(processes: Sequence[subprocess.Popen[bytes]], errors: IO[bytes]) -> str:
    """Why it said too little."""
    try:
        code = processes[0].wait(2 if len(processes) > 1 else 10)
    except subprocess.TimeoutExpired:
        client = processes[-1].poll()
        if client is None or client == 0:
            return "too slow"
        code = client
    if code == -signal.SIGKILL:
        return "killed"
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f"failed: exit code {code}: {lines[-1] if lines else 'it said nothing'}"


def _size(text: str) -> int | None:
    return None if text == "none" else parse_size(text)


def prompt_ids() -> list[int]:
    """What the model's tokenizer makes of PROMPT; ours is told the text and makes the same of it."""
    ids: list[int] = Tokenizer.from_file(str(CACHE / "random-3gb.hf" / "tokenizer.json")).encode(PROMPT, add_special_tokens=False).ids
    return ids


def about_this() -> dict[str, Any]:
    """What must be the same for runs to be compared."""
    weights = sum(file.stat().st_size for file in (CACHE / "random-3gb.hf").glob("*.safetensors"))
    return machine() | {
        "weights_bytes": weights, "prompt_ids": prompt_ids(),
        "versions": {name: list(pins) for name, pins in environments.PINS.items()},
    }  # fmt: skip


@click.command()
@click.option("--ram", multiple=True, default=RAM, show_default=True, help='RAM, page cache included; "none" for no limit. May be given again.')
@click.option("--read", default="500MB", show_default=True, help='Bytes a second from disk, or "none".')
@click.option("--rounds", default=3, show_default=True)
@click.option("--tokens", default=6, show_default=True, help="Tokens to measure in each run …")
@click.option("--seconds", default=30.0, show_default=True, help="… or as many as come in so long, but two at least.")
@click.option("--only", multiple=True, type=click.Choice(SYSTEMS), help="This system only; may be given again.")
@click.option("--resume", is_flag=True, help="Keep what bench-out/peers.json has, run what is missing or failed.")
@click.option("--plot", "drawing", type=click.Path(path_type=Path), help="Draw what bench-out/peers.json has into this SVG file; measure nothing.")
def main(ram: tuple[str, ...], read: str, rounds: int, tokens: int, seconds: float, only: tuple[str, ...], resume: bool, drawing: Path | None) -> None:
    """Measure ours and its peers in turn, print a table."""
    if drawing is not None:
        picture.draw(*load(OUT), read, drawing)
        return
    if os.geteuid() != 0:
        raise click.ClickException("limits need root")
    systems = [system for system in SYSTEMS if not only or system in only]
    for system in environments.PINS:
        if system in map(_peer, systems):
            environments.make(system)
    subprocess.run([sys.executable, "-m", "peers.models"], cwd=ROOT / "benchmarks", check=True)  # apart: it imports torch
    about, runs = about_this(), []
    if OUT.exists() and not resume:
        OUT.replace(OUT.with_suffix(".before.json"))
    elif OUT.exists():
        before, runs = load(OUT)
        if before != about:
            raise click.ClickException(f"{OUT.name} is of another machine, model or version: start without --resume")
        runs = [run for run in runs if not run.outcome.startswith("failed")]
    done = {run.key for run in runs}
    for limit, number, system in itertools.product(ram, range(rounds), systems):
        if (limit, read, number, system) in done:
            continue
        run = measure(system, limit, read, number, tokens, seconds)
        runs.append(run)
        save(about, runs, OUT)
        seen = f"{run.s_per_token:.2f} s/token" if run.s_per_token is not None else run.outcome
        click.echo(f"  RAM {limit}, round {number + 1}, {system}: {seen}, first token {run.first_token_s} s")
    table(about, runs)


if __name__ == "__main__":
    main()
