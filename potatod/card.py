"""How much of a card's memory is free: asked anew at every start, by a short process, since asking takes torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from . import errand

#: Importing torch takes seconds, and a card's first context some more.
_LIMIT_S: Final = 120.0


def free_bytes(device: str, cancelled: Callable[[], bool] = lambda: False) -> int | None:
    """Of ``device``, as the probe describes it, with torch at work on it; None where that is the cpu."""
    name = device.split(" ")[0]
    return None if name == "cpu" else int(errand.run("worker.card", name, limit_s=_LIMIT_S, cancelled=cancelled)["free_bytes"])
