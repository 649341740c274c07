"""What a peer's program is told and what it says: a line of JSON on stdout, ``{"token": 17}``, as soon as the token is there.

Standard library only: every peer's Python imports it. Whoever started the program looks at the clock (benchmarks/against_peers.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any


def asked(*extra: str, flags: tuple[str, ...] = ()) -> argparse.Namespace:
    """The command line: ``model``, ``prompt`` (token ids), ``tokens`` (how many to generate), strings named by ``extra``, and ``flags``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--prompt", required=True, type=lambda text: [int(part) for part in text.split(",")], help="token ids: 3,4,5")
    parser.add_argument("--tokens", required=True, type=int)
    for name in extra:
        parser.add_argument(f"--{name}")
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


def cores() -> int:
    """How many threads each of them computes with."""
    return len(os.sched_getaffinity(0))


def say(token: int) -> None:
    """Says that a token has come."""
    sys.stdout.write(json.dumps({"token": int(token)}) + "\n")
    sys.stdout.flush()


class Saying:
    """transformers' streamer protocol: it is put the prompt first, then every token."""

    def __init__(self) -> None:
        self._prompt = True

    def put(self, value: Any) -> None:
        """``value``: ids, (1, tokens) for the prompt, (1,) afterwards."""
        if not self._prompt:
            say(value.reshape(-1)[-1].item())
        self._prompt = False

    def end(self) -> None:
        """Nothing is left to say."""
