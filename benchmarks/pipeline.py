"""`make bench`: what the pipeline reaches of what the hardware allows. Prints a table, writes bench-out/NAME.json for each row.

    python benchmarks/pipeline.py [--model FOLDER] [--only NAME …]

Rows that limit RAM and disk need root (benchmarks/limited.py); without it they say so and are left out, by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import batching
import click
import computing
import guessing
import http_load
import jobs
import planned
import random_model
import speculating
import storing
import streaming
import torch
from peers import environments
from yardstick import machine

from potatod.sizes import human_size

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench-out"
Table = Callable[[Path], dict[str, Any]]
#: Of the large model's folder.
COMPUTING: dict[str, Table] = {
    "machinery": computing.machinery, "rows": computing.rows, "product": computing.product, "stored": storing.stored, "resident": batching.resident,
}  # fmt: skip
#: Of the large model, where llama.cpp's environment has been made.
PEERS: dict[str, Table] = {"beside_llama": storing.beside_llama}
STREAMING: dict[str, Table] = {
    "reading": streaming.reading, "curve": streaming.curve, "unlimited": streaming.unlimited, "invariance": streaming.invariance,
    "bubble": streaming.bubble, "cold": streaming.cold, "fewer": storing.fewer, "packed": storing.packed,
    "together": batching.together, "turns": batching.turns,
}  # fmt: skip
#: Of a folder for models.
PLANNED: dict[str, Table] = {"grid": planned.grid, "simulated": planned.simulated, "slowing": planned.slowing}
#: Of the small model, which is a real one.
SMALL: dict[str, Table] = {
    "first_token": streaming.first_token, "lookup": speculating.lookup, "drafted": speculating.drafted, "guessed": guessing.guessed,
    "steps": computing.steps, "durable": jobs.durable, "eta": jobs.eta,
    "http": http_load.http, "garbage": http_load.garbage,
}  # fmt: skip
LIMITED = {*STREAMING, *PLANNED, "lookup", "drafted", "durable", "eta", "http", "garbage"}


def _of_the_large(table: Table, model: Path) -> dict[str, Any]:
    return table(random_model.make(random_model.large(), model))


def _write(name: str, page: dict[str, Any]) -> None:
    (OUT / f"{name}.json").write_text(json.dumps(page, indent=1))


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=ROOT / ".cache" / "random-3gb", show_default=True)
@click.option("--small", type=click.Path(path_type=Path), default=ROOT / ".cache" / "smollm2-135m", show_default=True)
@click.option("--only", multiple=True, type=click.Choice(sorted({*COMPUTING, *STREAMING, *PEERS, *PLANNED, *SMALL})))
def main(model: Path, small: Path, only: tuple[str, ...]) -> None:
    """Measure and print."""
    tables: dict[str, Callable[[], dict[str, Any]]] = {
        name: partial(_of_the_large, table, model) for name, table in (COMPUTING | STREAMING | PEERS).items()
    }
    tables |= {name: partial(table, model.parent) for name, table in PLANNED.items()}
    tables |= {name: partial(table, small) for name, table in SMALL.items()}
    OUT.mkdir(exist_ok=True)
    results: dict[str, Any] = machine() | {"torch": torch.__version__}
    click.echo(f"{results['processor']}, {results['cores']} cores, torch {results['torch']}")
    for name in only or tables:
        if name in LIMITED and os.geteuid() != 0:
            click.echo(f"{name:12} left out: limits need root")
            continue
        if name in SMALL and not small.exists():
            click.echo(f"{name:12} left out: `make demo` makes {small.name}")
            continue
        if name in PEERS and not environments.python("llama.cpp").exists():
            click.echo(f"{name:12} left out: `python benchmarks/peers/environments.py --only llama.cpp` makes what it needs, in half an hour")
            continue
        results[name] = tables[name]()
        told = {key: value for key, value in results[name].items() if not isinstance(value, dict | list)}
        click.echo(f"{name:12} " + ", ".join(f"{k} {human_size(v) if k.endswith('bytes') else v}" for k, v in told.items()))
        _write(name, {"processor": results["processor"], name: results[name]})


if __name__ == "__main__":
    main()
