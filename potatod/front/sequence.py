"""A sequence, what of it the worker holds, and its step in a sweep. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from potatod.messages import Drawn, Step, Sweep
from potatod.trees import ROOT, Tree


@dataclass(slots=True, eq=False)
class Sequence:
    """Token ids inside the engine: a prompt and what has been sampled after it."""

    #: later ones have larger ids
    id: int
    tokens: list[int]
    #: whether sampling needs the logits, or the likeliest token is enough
    needs_logits: bool = False
    #: how it is sampled
    drawn: Drawn = field(default_factory=Drawn)
    #: 0 goes before 1, in the queue and in a sweep; of those with the same one, who arrived first
    rank: int = 0
    arrival: int = 0
    #: tokens that it may ever have
    most: int = 1 << 62
    #: tokens, from the start, whose KV the worker holds; behind them it holds that of ``guesses``
    held: int = 0
    #: tokens that others held, or were about to, when it was given a place
    expects: int = 0
    #: how many have gone before it since there was no room for it, and whether it has begun before
    passed: int = 0
    begun: bool = False
    #: an engine may have died of it: until it has its next token it shares no sweep
    alone: bool = False
    #: computed in the last sweep, and the one of them that was sampled last
    guesses: Tree = field(default_factory=Tree)
    at: int = ROOT

    @property
    def pending(self) -> int:
        """Tokens that the worker has not seen."""
        return len(self.tokens) - self.held

    @property
    def turn(self) -> tuple[int, int, int]:
        """Who has the smaller one comes first."""
        return self.rank, self.arrival, self.id

    def is_long(self, rope_border: int) -> bool:
        """Whether it is computed as longrope computes long texts."""
        return len(self.tokens) > rope_border

    def anew(self) -> None:
        """Its KV is gone."""
        self.held = 0
        self.guesses, self.at = Tree(), ROOT


def step_of(sequence: Sequence, count: int, guesses: Tree | None = None) -> Step:
    """Its next ``count`` tokens, and guesses behind them, in a sweep's order."""
    end = sequence.held + count
    tokens, known = tuple(sequence.tokens[sequence.held : end]), len(sequence.tokens)
    if end < known:
        return Step(sequence.id, sequence.held, tokens, known, "nothing")
    want: Literal["logits", "argmax"] = "logits" if sequence.needs_logits else "argmax"
    if not guesses:
        return Step(sequence.id, sequence.held, tokens, known, want)
    trunk = guesses.trunk()
    return Step(sequence.id, sequence.held, (*tokens, *trunk), known, want, len(trunk), guesses.branches())


def weight_of(sweep: Sweep) -> tuple[int, int]:
    """Tokens of a sweep, and the keys that they attend to together, those of branches counted as if they followed the others."""
    tokens = sum(step.rows for step in sweep.steps)
    return tokens, sum(step.rows * step.start + step.rows * (step.rows + 1) // 2 for step in sweep.steps)
