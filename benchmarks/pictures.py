"""Pictures of what `make bench` measured: docs/batching.svg and docs/speculation.svg. Needs the extra ``plot``.

    python benchmarks/pictures.py        reads bench-out/together.json, resident.json and lookup.json
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
    """Seconds a token with lookup, as a share of those without, for each kind of text."""
    rows = {name: row for name, row in _measured("lookup").items() if isinstance(row, dict)}
    figure, axes = _axes()
    places = range(len(rows))
    axes.bar([place - 0.18 for place in places], [1.0] * len(rows), 0.34, color="#d1d5db", label="off")
    bars = axes.bar([place + 0.18 for place in places], [row["s_per_token_of_off"] for row in rows.values()], 0.34, color=OURS, label="lookup")
    axes.bar_label(bars, [f"{row['tokens_per_sweep']:.2g} a sweep" for row in rows.values()], padding=2, fontsize=9)
    axes.set_xticks(list(places), list(rows))
    axes.set_ylabel("seconds per token, share of off")
    axes.set_title("SmolLM2 135M, streaming from a disk of 200 MB/s", loc="left", fontsize=11)
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
