"""What the tests of front and gateway share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .front_harness import Front, start_front
from .gateway_harness import House


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Makes a front, an engine's place and a gateway, of whatever sort the test wants."""
    houses: list[House] = []

    def make(**changes: Any) -> House:
        houses.append(House(tmp_path, **changes))
        return houses[-1]

    yield make
    for each in houses:
        each.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Front]]:
    """Starts a front, as the test wants it."""
    fronts: list[Front] = []

    def begin(**changes: Any) -> Front:
        fronts.append(start_front(tmp_path, **changes))
        return fronts[-1]

    yield begin
    for each in fronts:
        each.close()
