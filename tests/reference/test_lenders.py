"""What becomes of a pool that cannot be page-locked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from potatod import pool
from potatod.config import Settings
from potatod.errors import EXITS_THAT_STAY, ConfigError
from potatod.worker import lenders
from potatod.worker.simulated import Simulated

Place = Callable[[bool | Literal["auto"]], list[str]]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    """Places weights on a card whose driver locks nothing; returns what was said."""
    monkeypatch.setattr(Simulated, "page_lock", lambda self, pointer, nbytes: False)
    monkeypatch.setattr(lenders, "SlotLender", lambda *_: SimpleNamespace(wait=None, retire=None))

    def placed(page_lock: bool | Literal["auto"]) -> list[str]:
        said: list[str] = []
        settings = dataclasses.replace(Settings(), pool=dataclasses.replace(Settings().pool, page_lock=page_lock))
        card, plan = Simulated.named("simulated:vram=1000000"), SimpleNamespace(slots=2)
        without: Any = None
        lenders.place(card, settings, pool.Pool(pool.create(4096)), without, plan, [], lambda what, **_: said.append(what))  # type: ignore[arg-type]
        return said

    return placed


def test_it_is_said_and_goes_on_where_nothing_is_asked_for(place: Place) -> None:
    (said,) = place("auto")
    assert "not page-locked" in said and "computing waits" in said


def test_nothing_is_said_where_it_is_not_wanted(place: Place) -> None:
    assert place(False) == []


def test_the_start_is_refused_for_good_where_it_must_be(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"page_lock is true, and the pool of 4\.1kB could not be page-locked: .*page_lock = .auto") as refused:
        place(True)
    assert refused.value.exit_code in EXITS_THAT_STAY, "starting again would change nothing"
