from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .fake_front import FakeFront, Script, paris

StartFront = Callable[..., FakeFront]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="potato-") as name:
        yield Path(name)


@pytest.fixture
def start(place: Path) -> Iterator[StartFront]:
    fronts: list[FakeFront] = []
    umask = os.umask(0o077)

    def begin(script: Script = paris) -> FakeFront:
        fronts.append(FakeFront(place / "front.sock", script))
        return fronts[-1]

    yield begin
    for front in fronts:
        front.close()
    os.umask(umask)
