"""``python -m potatod.worker.card DEVICE``: what is free of a card's memory, as one line of JSON. Then it ends.

This process has a context on the card, as the worker will: what that takes is not counted as free.
"""

from __future__ import annotations

import sys

from potatod import errand

from .lenders import open_device


def main(argv: list[str]) -> int:
    return errand.answer(lambda: {"free_bytes": _free_bytes(argv[0])})


def _free_bytes(name: str) -> int:
    device = open_device(name)
    assert device is not None, "the cpu has no memory of its own"
    return device.free_bytes()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
