"""Guessed tokens: tokens per sweep and seconds per token with each source on and off, of a real model whose weights stream."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import click
from limited import Limits
from serving import Serving, answer, daemon

from potatod.sizes import parse_size

#: Tokens of each answer, and turns that on and off take.
ANSWER, TURNS = 64, 2
POOL = "64MiB"
_CODE = '''def area(shape):
    """The area of a circle or of a rectangle."""
    if shape.kind == "circle":
        return math.pi * shape.radius ** 2
    if shape.kind == "rectangle":
        return shape.width * shape.height
    raise ValueError(f"no area is known of a {shape.kind}")


def perimeter(shape):
    """The way around a circle or a rectangle."""
    if shape.kind == "circle":
        return 2 * math.pi * shape.radius
    if shape.kind == "rectangle":
        return 2 * (shape.width + shape.height)
    raise ValueError(f"no perimeter is known of a {shape.kind}")
'''
#: What is gone on with, as it is. The first repeats a file with a change; the others repeat nothing.
PROMPTS = {
    "edit": f"# shapes.py\n{_CODE}\n# shapes.py, where a shape is called a figure\n{_CODE.replace('shape', 'figure')[:120]}",
    "code": "# A program that reads numbers from a file and prints their mean\nimport sys\n\n",
    "chat": "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "prose": "The old lighthouse keeper climbed the stairs one last time, and",
}


def lookup(model: Path, read: str = "200MB") -> dict[str, Any]:
    """For each prompt: tokens per sweep, and s/token with lookup ÷ without, by turns."""
    flags = ("--front-max-context", "1024", "--front-max-sequences", "1", "--pool-size", POOL)
    result: dict[str, Any] = {}
    with (
        Limits(None, parse_size(read), model) as limits,
        daemon(model, *flags, limits=limits) as on,
        daemon(model, *flags, "--speculation-enabled", "false", limits=limits) as off,
    ):
        for served in (on, off):
            answer(served.client, 4)
        for name, prompt in PROMPTS.items():
            result[name] = _by_turns(on, off, prompt)
            click.echo(f"  {name}: {result[name]}")
    return result | {f"{name}_{key}": value for name, row in result.items() for key, value in row.items()}


def _by_turns(on: Serving, off: Serving, prompt: str) -> dict[str, Any]:
    ratios, texts, sweeps = [], set(), 1
    for _ in range(TURNS):
        (with_s, finished, text), (without_s, _, other) = _asked(on, prompt), _asked(off, prompt)
        ratios.append(with_s / without_s)
        texts |= {text, other}
        sweeps = finished.completion_tokens - finished.accepted_tokens
    per_sweep = finished.completion_tokens / sweeps
    return {"tokens_per_sweep": round(per_sweep, 2), "s_per_token_of_off": round(statistics.median(ratios), 3), "texts_alike": len(texts) == 1}


def _asked(served: Serving, prompt: str) -> tuple[float, Any, str]:
    """Seconds a token after the first, what the daemon said in the end, and the text."""
    asked = served.client.generate(prompt, raw=True, max_tokens=ANSWER, temperature=0)
    first = 0.0
    for piece in asked:
        first = first or (time.monotonic() if piece.token_ids else 0.0)
    assert asked.finished is not None
    return (time.monotonic() - first) / max(1, asked.finished.completion_tokens - 1), asked.finished, asked.text
