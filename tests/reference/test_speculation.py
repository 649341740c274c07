"""Guessed tokens change no bit of a text: right ones, wrong ones, and ones that are wrong from some place on.

By trees the same bits come as one by one, in every family that can be guessed for; and where something about trees is made wrong on purpose it is
found.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import Engine
from families import FAMILIES, Family, by_name
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from potatod.errors import InternalError
from potatod.messages import Cut, Step, Sweep
from potatod.sampling.params import Sampling
from potatod.sampling.sampler import sample
from potatod.trees import ROOT, Tree
from potatod.worker import passes
from potatod.worker.attention import NAME, TILES
from potatod.worker.kv import Branch, Paged
from potatod.worker.worker import Worker

from .conftest import Tiny, make_tiny

PROMPT = [5, 17, 42, 8, 99, 23, 61, 7, 30, 12, 77, 54, 3, 18, 66] * 10
TOKENS = 24
GREEDY = Sampling()
SAMPLED = Sampling(temperature=0.8, seed=11)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
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


def tree_around(path: list[int], chance: random.Random, wrong: int) -> Tree:
    """Guesses that ``path`` is among, somewhere, and others that go on wrong for ``wrong`` tokens and more."""
    tree = Tree()
    others = [[*path[: chance.randrange(len(path) + 1)], *(chance.randrange(3, 100) for _ in range(wrong + chance.randrange(8)))] for _ in range(4)]
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


def one_by_one(engine: Engine, prompt: list[int], count: int, sampling: Sampling = GREEDY) -> tuple[list[int], list[torch.Tensor]]:
    """A text and its logits, (vocabulary,) each."""
    tokens, logits = list(prompt), []
    new = tokens
    for _ in range(count):
        logits.append(engine.sweep({1: new})[1])
        tokens.append(sample(logits[-1].numpy(), tokens, sampling, 0, len(tokens)))
        new = tokens[-1:]
    engine.drop(1)
    return tokens, logits


def by_trees(engine: Engine, prompt: list[int], tokens: list[int], logits: list[torch.Tensor], seed: int, wrong: int = 1) -> int:
    """The same text by verified trees, bit for bit; how many of its tokens lay in branches."""
    chance, at, in_branches = random.Random(seed), len(prompt) - 1, 0
    if at:
        engine.sweep({2: prompt[:-1]}, "nothing")
    while at + 1 < len(tokens) - 1:
        tree = tree_around(tokens[at + 1 :][: chance.randrange(6)], chance, wrong)
        trunk = tree.trunk()
        rows = served(engine, Step(2, at, (tokens[at], *trunk), at + 1, "logits", len(trunk), tree.branches()))
        nodes = follow(tree, tokens[at + 1 : -1])
        for place, row in enumerate([0, *(node + 1 for node in nodes)]):
            assert torch.equal(rows[row], logits[at + 1 - len(prompt) + place]), f"row {row} of {tree}"
        taken(engine, tree, 2, at + 1, nodes)
        in_branches += sum(node >= len(trunk) for node in nodes)
        at += 1 + len(nodes)
    engine.drop(2)
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
        assert in_branches > 5


#: Whoever has a state that cannot be taken back is never guessed for; of the others half are looked at in each dtype.
GUESSED_FOR = [family for family in FAMILIES if family.invariant_batching == "packed"]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("family", GUESSED_FOR, ids=lambda family: family.name)
def test_every_family_has_by_trees_what_it_has_one_by_one(tiny: Callable[[Family, torch.dtype], Tiny], family: Family) -> None:
    number, in_branches = GUESSED_FOR.index(family), 0
    made = tiny(family, (torch.float32, torch.bfloat16)[number % 2])
    with Engine(made.banded, 1 << 22, tile=TILES[number // 2 % 2], max_sequences=64) as engine:
        for seed, sampling in enumerate((GREEDY, SAMPLED)):
            tokens, logits = one_by_one(engine, PROMPT[:118], TOKENS // 2, sampling)
            in_branches += by_trees(engine, PROMPT[:118], tokens, logits, seed, wrong=6)
        assert in_branches > 1


class Faults:
    """What could be wrong with trees, each planted in the one place where it would be."""

    @staticmethod
    def a_branch_follows_the_trunk_where_it_should_follow_another_branch(patch: pytest.MonkeyPatch) -> None:
        begin = Branch.__init__
        patch.setattr(Branch, "__init__", lambda self, of, length: begin(self, of.root if isinstance(of, Branch) else of, length))

    @staticmethod
    def a_branch_sees_one_token_of_the_trunk_too_many(patch: pytest.MonkeyPatch) -> None:
        fork = Paged._fork_layer

        def seen(self: Paged, layer: int, of: Paged, length: int) -> None:
            fork(self, layer, of, length)
            if isinstance(self, Branch) and length % 128 and not isinstance(of, Branch):  # the token before is that of the trunk's end
                last, theirs = self._layers[layer][1][-1], of._layers[layer][1][length // 128]
                assert last is not None and theirs is not None
                for mine, other in zip(self._by_token(last), self._by_token(theirs), strict=True):
                    mine[:, length % 128 - 1] = other[:, length % 128]

        patch.setattr(Paged, "_fork_layer", seen)

    @staticmethod
    def a_branch_s_tokens_stand_one_place_too_deep(patch: pytest.MonkeyPatch) -> None:
        forward = passes._forward

        def deeper(model: PreTrainedModel, *arguments: Any, position_ids: torch.Tensor, **named: Any) -> torch.Tensor:
            batch = ALL_ATTENTION_FUNCTIONS[NAME].batch
            for piece in batch.pieces:
                position_ids[:, piece.first : piece.end] += isinstance(piece.kv, Branch)
            return forward(model, *arguments, position_ids=position_ids, **named)

        patch.setattr(passes, "_forward", deeper)

    @staticmethod
    def the_trunk_s_keys_stay_where_a_branch_was_right(patch: pytest.MonkeyPatch) -> None:
        def adopt(self: Branch, length: int) -> None:
            self.root.length = length

        patch.setattr(Branch, "adopt", adopt)

    @staticmethod
    def another_branch_is_gone_on_with(patch: pytest.MonkeyPatch) -> None:
        cut = Worker.cut

        def wrong(self: Worker, order: Cut) -> None:
            branches = self._branches.get(order.sequence, [])
            fits = [n for n, branch in enumerate(branches) if branch.follows <= order.length <= branch.length and n != order.branch]
            cut(self, order if order.branch is None or not fits else Cut(order.sequence, order.length, fits[0]))

        patch.setattr(Worker, "cut", wrong)

    @staticmethod
    def a_branch_off_a_branch_takes_only_its_own_tokens_over(patch: pytest.MonkeyPatch) -> None:
        def adopt(self: Branch, length: int) -> None:
            root = self.root
            if isinstance(self.of, Paged):
                root.cut(min(self.follows, root.length))
            for layer, (key, value) in self._own.items():
                root._write(layer, key[:, :, : length - self.follows], value[:, :, : length - self.follows])
            root.length = length

        patch.setattr(Branch, "adopt", adopt)

    @staticmethod
    def one_guess_too_few_is_taken_back(patch: pytest.MonkeyPatch) -> None:
        cut = Paged.cut

        def short(self: Paged, length: int) -> None:
            cut(self, min(self.length, length + 1))
            self.length = length
            for _, kept in self._layers.values():
                for block in kept[-1:]:
                    if block is not None and 0 < length % 128 < 127:
                        for half in self._by_token(block):
                            half[:, length % 128 - 1] = half[:, length % 128]

        patch.setattr(Paged, "cut", short)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", [name for name in vars(Faults) if not name.startswith("_")])
def test_a_planted_fault_is_found(folders: dict[str, Path], fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(folders[f"Llama 3 {torch.float32}"], 1 << 22, max_sequences=64) as engine:
        tokens, logits = one_by_one(engine, PROMPT[:118], TOKENS)
        getattr(Faults, fault)(monkeypatch)
        with pytest.raises((AssertionError, InternalError)):
            all(by_trees(engine, PROMPT[:118], tokens, logits, seed) >= 0 for seed in range(4))
