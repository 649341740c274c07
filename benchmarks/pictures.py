"""Pictures of what `make bench` measured: docs/batching.svg and docs/speculation.svg. Needs the extra ``plot``.

    python benchmarks/pictures.py        reads bench-out/together.json, resident.json and drafted.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

ROOT = Path(__file__).resolve().parent.parent
OURS, OTHER = "#c2410c", "#2563eb"


def batching(docs: Path) -> None:
    """Tokens a second against answers at once."""
    figure, axes = _axes()
    for name, label, colour in (("together", "weights stream from a disk of 500 MB/s", OURS), ("resident", "everything in RAM", OTHER)):
        by = {int(count): row["tokens_per_s"] for count, row in _measured(name)["by"].items()}
        axes.plot(list(by), list(by.values()), color=colour, marker="o", markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for axis, formatter in ((axes.xaxis, ScalarFormatter()), (axes.yaxis, ScalarFormatter())):
        axis.set_major_formatter(formatter)
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("answers at once")
    axes.set_ylabel("tokens per second, all together")
    axes.set_title("3.1 GB of bf16 weights, 2 cores", loc="left", fontsize=11)
    _finish(figure, axes, docs / "batching.svg")


def speculation(docs: Path) -> None:
    """Seconds a token with a copy in int4 that guesses, and without guesses and the copy's memory for weights, for each kind of text."""
    page = _measured("drafted")
    figure, axes = _axes()
    for shift, (noise, colour) in zip((-0.19, 0.19), (("2 %", OURS), ("8 %", OTHER)), strict=True):
        rows, plain = page[noise]["rows"], page[noise]["plain_s_per_token"]
        shares = [row["s_per_token"] / plain for row in rows.values()]
        bars = axes.bar([place + shift for place in range(len(rows))], shares, 0.36, color=colour, label=f"weights {noise} off a 4-bit grid")
        axes.bar_label(bars, [f"{row['tokens_per_sweep']:.2g}" for row in rows.values()], padding=2, fontsize=8)
        axes.set_xticks(range(len(rows)), [name.replace(" ", "\n") for name in rows], fontsize=8)
    axes.axhline(1.0, color="#6b7280", linewidth=1, label="no guesses, the same RAM")
    axes.set_ylabel("s/token ÷ that without guesses")
    axes.set_title("SmolLM2 135M from a disk of 50 MB/s; on the bars: tokens a sweep", loc="left", fontsize=11)
    _finish(figure, axes, docs / "speculation.svg")


def _measured(name: str) -> dict[str, Any]:
    page: dict[str, Any] = json.loads((ROOT / "bench-out" / f"{name}.json").read_text())
    return page[name]  # type: ignore[no-any-return]


def _axes() -> tuple[Any, Axes]:
    mpl.rcParams.update({"svg.hashsalt": "potato", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10})
    return pyplot.subplots(figsize=(7.2, 3.8), layout="constrained")


def _finish(figure: Any, axes: Axes, file: Path) -> None:
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    batching(ROOT / "docs")
    speculation(ROOT / "docs")
