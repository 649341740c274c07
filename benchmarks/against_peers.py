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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import click
from limited import Limits
from peers import environments
from tokenizers import Tokenizer
from yardstick import floor_s, machine

from potatod.sizes import human_size, parse_size

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks" / "peers"
CACHE = ROOT / ".cache"
BIN = Path(sys.executable).parent
OUT = ROOT / "bench-out" / "peers.json"
SYSTEMS = ("ours", "accelerate", "accelerate-copied", "llama.cpp", "airllm")
PROMPT = "benchmark"
RAM = ("1.5GB", "2.0GB", "2.5GB", "3.0GB", "3.5GB", "4.0GB")
#: Tokens after the first that are left out: ours fills its pool during the first sweeps, the others are as they stay from the second token on.
SKIPPED = {"ours": 4, "accelerate": 1, "accelerate-copied": 1, "llama.cpp": 1, "airllm": 1}
#: What accelerate needs beside the copied weights: at 2.5 GB of RAM 500 and 400 MB were equally fast, 350 half as fast, 300 twenty times slower.
COPIED_BESIDE_BYTES = 450_000_000
#: A run that has not ended after so many seconds is given up as "too slow".
DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True)
class Run:
    """One system in one cgroup."""

    ram: str
    #: bytes a second, "none" for what the disk gives
    read: str
    round: int
    system: str
    #: "ok", "killed" (out of RAM), "too slow", or "failed: …"
    outcome: str
    #: from the start of the process; None where none came
    first_token_s: float | None
    #: seconds between the tokens that count
    gaps_s: tuple[float, ...]
    #: read from disk during these
    read_bytes_per_token: int | None
    #: page cache included
    peak_ram_bytes: int
    #: ids, from the first
    tokens: tuple[int, ...]

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self.ram, self.read, self.round, self.system

    @property
    def s_per_token(self) -> float | None:
        return statistics.median(self.gaps_s) if self.outcome == "ok" else None


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


# Keeping and judging


def load(path: Path = OUT) -> tuple[dict[str, Any], list[Run]]:
    """What was measured: about the machine and the model, and the runs."""
    kept = json.loads(path.read_text())
    runs = [Run(**row | {"gaps_s": tuple(row["gaps_s"]), "tokens": tuple(row["tokens"])}) for row in kept.pop("runs")]
    return kept, runs


def save(about: dict[str, Any], runs: list[Run], path: Path = OUT) -> None:
    """Whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(about | {"runs": [asdict(run) for run in runs]}, indent=1))
    part.replace(path)


def about_this() -> dict[str, Any]:
    """What must be the same for runs to be compared."""
    weights = sum(file.stat().st_size for file in (CACHE / "random-3gb.hf").glob("*.safetensors"))
    return machine() | {
        "weights_bytes": weights, "prompt_ids": prompt_ids(),
        "versions": {name: list(pins) for name, pins in environments.PINS.items()},
    }  # fmt: skip


def medians(runs: Sequence[Run]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """By (ram, read, system): the median over rounds of each round's median, and of its ratio to ours of the same round."""
    by_key = {run.key: run for run in runs}
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.ram, run.read, run.system), []).append(run)
    result = {}
    for group, members in groups.items():
        good = [run for run in members if run.s_per_token is not None]
        pairs = [(run, by_key.get((run.ram, run.read, run.round, "ours"))) for run in good]
        result[group] = {
            "s": _median(run.s_per_token for run in good),
            "ratio": _median(run.s_per_token / ours.s_per_token for run, ours in pairs if run.s_per_token and ours and ours.s_per_token),
            "first_token_s": _median(run.first_token_s for run in good),
            "read_bytes": _median(run.read_bytes_per_token for run in good),
            "peak_ram_bytes": max(run.peak_ram_bytes for run in members),
            "rounds": len(good),
            "outcomes": sorted({run.outcome for run in members if run.outcome != "ok"}),
        }
    return result


def _median(values: Iterator[Any]) -> Any:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def table(about: dict[str, Any], runs: Sequence[Run]) -> None:
    """Prints a line for each limit and system."""
    head = f"{'RAM':>6} {'disk':>6}  {'system':17} {'s/token':>8} {'x ours':>7} {'read/token':>11} {'peak RAM':>9} {'first s':>8} {'rounds':>6}"
    click.echo(f"{about['processor']}, {about['cores']} cores, {human_size(about['weights_bytes'])} of weights\n{head}")
    found = medians(runs)
    for ram, read in dict.fromkeys((ram, read) for ram, read, _ in found):
        if "none" not in (ram, read):
            floor = floor_s(about["weights_bytes"], ram, read)
            click.echo(f"{ram:>6} {read:>6}  {'floor':17} {floor:8.2f}")
        for system in SYSTEMS:
            row = found.get((ram, read, system))
            if row is None:
                continue
            amounts = [human_size(round(row["read_bytes"])) if row["read_bytes"] is not None else "-", human_size(row["peak_ram_bytes"])]
            numbers = [f"{row[name]:.2f}" if row[name] is not None else "-" for name in ("s", "ratio", "first_token_s")]
            click.echo(
                f"{ram:>6} {read:>6}  {system:17} {numbers[0]:>8} {numbers[1]:>7} {amounts[0]:>11} {amounts[1]:>9} {numbers[2]:>8} {row['rounds']:>6}"
                + "".join(f"  {outcome}" for outcome in row["outcomes"])
            )


def plot(about: dict[str, Any], runs: Sequence[Run], read: str, out: Path) -> None:
    """s/token against RAM. The same runs give the same bytes."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "potato", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10})
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

    colours = {"ours": "#c2410c", "accelerate": "#2563eb", "accelerate-copied": "#0891b2", "llama.cpp": "#15803d", "airllm": "#7c3aed"}
    names = {"ours": "Potato LM", "airllm": "AirLLM", "accelerate-copied": "accelerate, residents copied"}
    found = medians([run for run in runs if run.read == read and run.ram != "none"])
    if not found:
        raise click.ClickException(f"nothing was measured with --read {read}")
    rams = sorted({ram for ram, *_ in found}, key=parse_size)
    figure, axes = pyplot.subplots(figsize=(7.2, 4.4), layout="constrained")
    floor = [(parse_size(ram) / 1e9, floor_s(about["weights_bytes"], ram, read)) for ram in rams] if read != "none" else []
    if floor := [(x, y) for x, y in floor if y]:
        axes.plot(*zip(*floor, strict=True), color="#6b7280", linestyle="--", linewidth=1.2, label="floor: what the disk alone allows")
    missing = False
    for system in reversed(SYSTEMS):
        rows = [(parse_size(ram) / 1e9, found[ram, read, system]) for ram in rams if (ram, read, system) in found]
        points = [(x, row["s"]) for x, row in rows if row["s"] is not None]
        if points:
            width = 2.4 if system == "ours" else 1.6
            axes.plot(*zip(*points, strict=True), color=colours[system], marker="o", markersize=4, linewidth=width, label=names.get(system, system))
        height = 0.98 - 0.04 * SYSTEMS.index(system)
        for x in (x for x, row in rows if row["s"] is None):
            axes.plot([x], [height], color=colours[system], marker="x", linestyle="", transform=axes.get_xaxis_transform())
            missing = True
    if missing:
        axes.plot([], [], color="#6b7280", marker="x", linestyle="", label="killed for its RAM, or no token in time")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([parse_size(ram) / 1e9 for ram in rams])
    disk = "" if read == "none" else f", disk {human_size(parse_size(read))}/s"
    axes.set_title(f"{human_size(about['weights_bytes'])} of bf16 weights, {about['cores']} cores{disk}", loc="left", fontsize=11)
    axes.set_xlabel("RAM, GB")
    axes.set_ylabel("seconds per token")
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None})
    pyplot.close(figure)


@click.command()
@click.option("--ram", multiple=True, default=RAM, show_default=True, help='RAM, page cache included; "none" for no limit. May be given again.')
@click.option("--read", default="500MB", show_default=True, help='Bytes a second from disk, or "none".')
@click.option("--rounds", default=3, show_default=True)
@click.option("--tokens", default=6, show_default=True, help="Tokens to measure in each run …")
@click.option("--seconds", default=30.0, show_default=True, help="… or as many as come in so long, but two at least.")
@click.option("--only", multiple=True, type=click.Choice(SYSTEMS), help="This system only; may be given again.")
@click.option("--resume", is_flag=True, help="Keep what bench-out/peers.json has, run what is missing or failed.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw what bench-out/peers.json has into this SVG file; measure nothing.")
def main(ram: tuple[str, ...], read: str, rounds: int, tokens: int, seconds: float, only: tuple[str, ...], resume: bool, picture: Path | None) -> None:
    """Measure ours and its peers in turn, print a table."""
    if picture is not None:
        plot(*load(), read, picture)
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
        before, runs = load()
        if before != about:
            raise click.ClickException(f"{OUT.name} is of another machine, model or version: start without --resume")
        runs = [run for run in runs if not run.outcome.startswith("failed")]
    done = {run.key for run in runs}
    for limit, number, system in itertools.product(ram, range(rounds), systems):
        if (limit, read, number, system) in done:
            continue
        run = measure(system, limit, read, number, tokens, seconds)
        runs.append(run)
        save(about, runs)
        seen = f"{run.s_per_token:.2f} s/token" if run.s_per_token is not None else run.outcome
        click.echo(f"  RAM {limit}, round {number + 1}, {system}: {seen}, first token {run.first_token_s} s")
    table(about, runs)


if __name__ == "__main__":
    main()
