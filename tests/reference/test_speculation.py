"""Guessed tokens change no bit of a text: right ones, wrong ones, and ones that are wrong from some place on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from engine import Engine
from families import by_name

from potatod.messages import Cut, Step, Sweep
from potatod.trees import ROOT, Tree

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


def served(engine: Engine, step: Step) -> torch.Tensor:
    """Logits (wanted rows, vocabulary)."""
    engine._number += 1
    rows = engine.worker.serve(Sweep(1, engine._number, (step,))).rows
    assert [row.sequence for row in rows] == [step.sequence] * step.wanted
    return torch.stack([engine._logits[row.logits_row].clone() for row in rows if row.logits_row is not None])


def verified(engine: Engine, sequence: int, held: int, token: int, guesses: list[int]) -> torch.Tensor:
    """Logits (1 + guesses, vocabulary) of a sweep that feeds a token and guesses behind it."""
    return served(engine, Step(sequence, held, (token, *guesses), held + 1, "logits", len(guesses)))


def tree_around(path: list[int], chance: random.Random) -> Tree:
    """Guesses that ``path`` is among, somewhere, and others as long as it and longer."""
    tree = Tree()
    others = [[*path[: chance.randrange(len(path) + 1)], *(chance.randrange(3, 100) for _ in range(chance.randrange(1, 9)))] for _ in range(4)]
    for each in chance.sample([path, *others], 5):
        tree.add_path(each, [1.0] * len(each), "test")
    return tree.only(range(len(tree)))


def follow(tree: Tree, tokens: list[int]) -> list[int]:
    """The nodes that these go along, as far as they do."""
    nodes: list[int] = []
    for token in tokens:
        node = tree.child(nodes[-1] if nodes else ROOT, token)
        if node is None:
            break
        nodes.append(node)
    return nodes


def taken(engine: Engine, tree: Tree, sequence: int, known: int, nodes: list[int]) -> None:
    """These were right."""
    run = tree.run_of(nodes[-1] if nodes else ROOT)
    engine.worker.cut(Cut(sequence, known + len(nodes), run - 1 if run else None))


def one_by_one(engine: Engine, prompt: list[int], count: int) -> tuple[list[int], list[torch.Tensor]]:
    tokens, logits = list(prompt), []
    new = tokens
    for _ in range(count):
        logits.append(engine.sweep({1: new})[1])
        tokens.append(int(logits[-1].argmax()))
        new = tokens[-1:]
    return tokens, logits


def by_trees(engine: Engine, prompt: list[int], tokens: list[int], logits: list[torch.Tensor], seed: int) -> int:
    """The same text by verified trees, bit for bit; how many of its tokens lay in branches."""
    chance, at, in_branches = random.Random(seed), len(prompt) - 1, 0
    if at:
        engine.sweep({2: prompt[:-1]}, "nothing")
    while at + 1 < len(tokens) - 1:
        tree = tree_around(tokens[at + 1 :][: chance.randrange(6)], chance)
        trunk = tree.trunk()
        rows = served(engine, Step(2, at, (tokens[at], *trunk), at + 1, "logits", len(trunk), tree.branches()))
        nodes = follow(tree, tokens[at + 1 : -1])
        for place, row in enumerate([0, *(node + 1 for node in nodes)]):
            assert torch.equal(rows[row], logits[at + 1 - len(prompt) + place]), f"row {row} of {tree}"
        taken(engine, tree, 2, at + 1, nodes)
        in_branches += sum(node >= len(trunk) for node in nodes)
        at += 1 + len(nodes)
    return in_branches


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


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["Llama 3", "Gemma 3"])
def test_trees_have_the_bits_of_what_comes_one_by_one(folders: dict[str, Path], name: str, dtype: torch.dtype) -> None:
    """Branches off branches, over the borders of blocks and of windows."""
    with Engine(folders[f"{name} {dtype}"], 1 << 22, tile=1 if dtype == torch.bfloat16 else 8, max_sequences=64) as engine:
        prompt = PROMPT[:118]
        tokens, logits = one_by_one(engine, prompt, TOKENS)
        in_branches = 0
        for seed in range(3):
            in_branches += by_trees(engine, prompt, tokens, logits, seed)
            engine.drop(2)
        assert in_branches > 5
