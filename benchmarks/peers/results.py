"""What was measured of ours and its peers: kept in a file, judged, told as a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from yardstick import floor_s

from potatod.sizes import human_size

SYSTEMS = ("ours", "accelerate", "accelerate-copied", "llama.cpp", "airllm")


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


def load(path: Path) -> tuple[dict[str, Any], list[Run]]:
    """What was measured: about the machine and the model, and the runs."""
    kept = json.loads(path.read_text())
    runs = [Run(**row | {"gaps_s": tuple(row["gaps_s"]), "tokens": tuple(row["tokens"])}) for row in kept.pop("runs")]
    return kept, runs


def save(about: dict[str, Any], runs: list[Run], path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(about | {"runs": [asdict(run) for run in runs]}, indent=1))
    part.replace(path)


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
