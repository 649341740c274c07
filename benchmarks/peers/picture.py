"""The picture of what was measured: seconds a token against RAM. Needs the extra ``plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from yardstick import floor_s

from potatod.sizes import human_size, parse_size

from .results import SYSTEMS, Run, medians


def draw(about: dict[str, Any], runs: Sequence[Run], read: str, out: Path) -> None:
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
