"""What the tests of the gateway share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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
