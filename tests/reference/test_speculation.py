"""Guessed tokens change no bit of a text: right ones, wrong ones, and ones that are wrong from some place on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine import Engine
from families import by_name

from potatod.messages import Cut, Step, Sweep

PROMPT = [5, 17, 42, 8, 99, 23, 61, 7, 30, 12, 77, 54, 3, 18, 66] * 10
TOKENS = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from .conftest import make_tiny

    return {
        f"{name} {dtype}": make_tiny(by_name(name), dtype, tmp_path_factory.mktemp("spec")).folder
        for name in ("Llama 3", "Gemma 3")
        for dtype in (torch.float32, torch.bfloat16)
    }


def verified(engine: Engine, sequence: int, held: int, token: int, guesses: list[int]) -> torch.Tensor:
    """Logits (1 + guesses, vocabulary) of a sweep that feeds a token and guesses behind it."""
    engine._number += 1
    step = Step(sequence, held, (token, *guesses), held + 1, "logits", len(guesses))
    rows = engine.worker.serve(Sweep(1, engine._number, (step,))).rows
    assert [row.sequence for row in rows] == [sequence] * (1 + len(guesses))
    return torch.stack([engine._logits[row.logits_row].clone() for row in rows if row.logits_row is not None])


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["Llama 3", "Gemma 3"])
def test_verified_logits_have_the_bits_of_those_that_come_one_by_one(folders: dict[str, Path], name: str, dtype: torch.dtype) -> None:
    with Engine(folders[f"{name} {dtype}"], 1 << 22, tile=1 if dtype == torch.bfloat16 else 8, max_sequences=12) as engine:
        tokens, logits = list(PROMPT), []
        new = tokens
        for _ in range(TOKENS):
            logits.append(engine.sweep({1: new})[1])
            tokens.append(int(logits[-1].argmax()))
            new = tokens[-1:]
        engine.sweep({2: PROMPT[:-1]}, "nothing")
        held, taken = len(PROMPT) - 1, 0
        for right in (0, 3, 1, 7, 0, 5):
            wrong = [tokens[held + right + 1] ^ 1, 9, 9][: right % 3 + 1]
            guesses = [*tokens[held + 1 : held + 1 + right], *wrong]
            rows = verified(engine, 2, held, tokens[held], guesses)
            for place in range(right + 1):
                assert torch.equal(rows[place], logits[taken + place]), f"guess {place} of {right} right ones"
            held, taken = held + 1 + right, taken + 1 + right
            engine.worker.cut(Cut(2, held))
