"""Guessed tokens: tokens per sweep and seconds per token with each source on and off, of a real model whose weights stream."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from limited import Limits
from quality import with_noise
from serving import Serving, answer, daemon, s_per_token

from potatod import drafts, model_folder
from potatod.sizes import parse_size
from potatod.store import draft as drafting
from potatod.store.prepare import prepare

#: Tokens of each answer, and turns that on and off take.
ANSWER = 64
#: Tokens of an answer that a draft model guesses for, and of one without guesses.
DRAFTED, PLAIN = 96, 12
TEMPERATURES = (0.0, 0.8)
#: Noise on the weights, percent of their size; the second is as far from a 4-bit grid as weights are that never were on one.
NOISES = (2, 8)
#: Texts with a larger share of runs of four words that stood in them before are left out of the means.
MOST_REPEATED = 0.2
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
    """For each prompt: tokens per sweep, and s/token with lookup ÷ without, in turn; then the first one again, whose answer is known by then."""
    flags = ("--front-max-context", "1024", "--front-max-sequences", "1", "--pool-size", POOL)
    result: dict[str, Any] = {}
    with (
        Limits(None, parse_size(read), model) as limits,
        daemon(model, *flags, "--speculation-enabled", "true", limits=limits) as on,
        daemon(model, *flags, limits=limits) as off,
    ):
        for served in (on, off):
            answer(served.client, 4)
        for name, prompt in (*PROMPTS.items(), ("edit asked again", PROMPTS["edit"])):
            result[name] = _in_turn(on, off, prompt)
            click.echo(f"  {name}: {result[name]}")
    return result | {f"{name}_{key}": value for name, row in result.items() for key, value in row.items()}


def drafted(model: Path, read: str = "50MB") -> dict[str, Any]:
    """A copy in int4 guesses for the model, whose weights are off a 4-bit grid by 2 % and 8 % of their size: tokens per sweep, and s/token beside the
    model without guesses and with the draft's memory for residents."""
    result: dict[str, Any] = {}
    for percent in NOISES:
        folder = noisy(model, percent)
        draft = drafts.resident_bytes(model_folder.load(drafts.named(folder, "int4")))
        flags = ("--front-max-context", "1024", "--front-max-sequences", "1")
        pool = parse_size(POOL)
        rows: dict[str, Any] = {}
        with Limits(None, parse_size(read), folder) as limits:
            with daemon(folder, *flags, "--pool-size", str(pool + draft), limits=limits) as off:
                plain_s = s_per_token(off.client, PLAIN)
            for temperature in TEMPERATURES:  # each its own: what was answered before would be guessed from
                with daemon(folder, *flags, "--pool-size", POOL, "--speculation-draft", "self:int4", limits=limits) as on:
                    answer(on.client, 4)
                    for name, prompt in PROMPTS.items():
                        s, finished, text = _asked(on, prompt, temperature, DRAFTED)
                        rows[f"{name} T={temperature}"] = row = {
                            "tokens_per_sweep": _per_sweep(finished), "s_per_token": round(s, 3), "repeats": round(repeats(text), 2),
                        }  # fmt: skip
                        click.echo(f"  {percent} % {name} T={temperature}: {row}")
        means: dict[str, Any] = {"plain_s_per_token": round(plain_s, 3), "draft_bytes": draft}
        for temperature in TEMPERATURES:
            every = [row for name, row in rows.items() if name.endswith(f"T={temperature}")]
            some = [row for row in every if row["repeats"] <= MOST_REPEATED]
            means |= {
                f"T={temperature}_tokens_per_sweep": round(statistics.mean(row["tokens_per_sweep"] for row in some or every), 2),
                f"T={temperature}_times": round(plain_s / statistics.mean(row["s_per_token"] for row in some or every), 2),
                f"T={temperature}_left_out": len(every) - len(some),
            }
        result[f"{percent} %"] = {"rows": rows} | means
        click.echo(f"  {percent} %: {means}")
    return result | {f"{noise} {key}": value for noise, page in result.items() for key, value in page.items() if key != "rows"}


def noisy(model: Path, percent: int) -> Path:
    """The model folder with noise on its weights, and a copy in int4 in it; made once."""
    noisy = model.with_name(f"smol-noise-{percent}")
    if not (drafts.named(noisy, "int4") / model_folder.NAME).exists():
        with tempfile.TemporaryDirectory() as place:
            prepare(with_noise(model, Path(place), percent / 100), noisy)
        drafting.make(noisy, noisy, "int4")
    return noisy


def repeats(text: str) -> float:
    """Share of a text's runs of four words that stood in it before."""
    words = text.split()
    runs = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _per_sweep(finished: Any) -> float:
    return round(finished.completion_tokens / max(1, finished.completion_tokens - finished.accepted_tokens), 2)


def _in_turn(on: Serving, off: Serving, prompt: str) -> dict[str, Any]:
    (with_s, finished, text), (without_s, _, other) = _asked(on, prompt), _asked(off, prompt)
    return {"tokens_per_sweep": _per_sweep(finished), "s_per_token_of_off": round(with_s / without_s, 3), "texts_alike": text == other}


def _asked(served: Serving, prompt: str, temperature: float = 0.0, tokens: int = ANSWER) -> tuple[float, Any, str]:
    """Seconds a token after the first, what the daemon said in the end, and the text."""
    asked = served.client.generate(prompt, raw=True, max_tokens=tokens, temperature=temperature, seed=5)
    first = 0.0
    for piece in asked:
        first = first or (time.monotonic() if piece.token_ids else 0.0)
    assert asked.finished is not None
    return (time.monotonic() - first) / max(1, asked.finished.completion_tokens - 1), asked.finished, asked.text
