"""Counts that are too long for one run: what has been tried is summed in the file of POTATO_STATE, and the next run tries others from there on.

    {"power cuts": 6500, "frames": 200000}

Without that variable nothing is kept, and each run begins at the first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def portions(name: str, target: int, most: int) -> Iterator[tuple[int, int]]:
    """``(first, count)``: how many have been tried, and how many others are to be now, ``most`` at a time, until there have been ``target`` of that
    name. A portion counts as soon as the next one is asked for: nothing was wrong with it then."""
    file = Path(os.environ["POTATO_STATE"]) if os.environ.get("POTATO_STATE") else None
    tried = _kept(file).get(name, 0)
    if tried >= target:
        pytest.skip(f"{tried} {name} have been tried, as {file} says; without it others are tried from the first")
    while tried < target:
        count = min(most, target - tried)
        yield tried, count
        tried += count
        if file is not None:
            made = file.with_suffix(".new")
            made.write_text(json.dumps(_kept(file) | {name: tried}, indent=1))
            made.replace(file)


def _kept(file: Path | None) -> dict[str, int]:
    kept: dict[str, int] = json.loads(file.read_text()) if file is not None and file.exists() else {}
    return kept
