"""A sequence, what of it the worker holds, and its step in a sweep. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from potatod.messages import Step, Sweep


@dataclass(slots=True)
class Sequence:
    """Token ids inside the engine: a prompt and what has been sampled after it."""

    #: later ones have larger ids
    id: int
    tokens: list[int]
    #: whether sampling needs the logits, or the likeliest token is enough
    needs_logits: bool = False
    #: 0 goes before 1, in the queue and in a sweep
    rank: int = 0
    #: tokens that it may ever have
    most: int = 1 << 62
    #: tokens, from the start, whose KV the worker holds; behind them it holds that of ``guesses``
    held: int = 0
    #: tokens that others held, or were about to, when it was given a place
    expects: int = 0
    #: how many have gone before it since there was no room for it, and whether it has begun before
    passed: int = 0
    begun: bool = False
    #: computed in the last sweep, not yet compared with what was sampled
    guesses: list[int] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens that the worker has not seen."""
        return len(self.tokens) - self.held

    @property
    def turn(self) -> tuple[int, int]:
        """Who has the smaller one comes first."""
        return self.rank, self.id


def step_of(sequence: Sequence, count: int, draft: list[int] | None = None) -> Step:
    """Its next ``count`` tokens, and guesses behind them."""
    end = sequence.held + count
    tokens, known = tuple(sequence.tokens[sequence.held : end]), len(sequence.tokens)
    if end < known:
        return Step(sequence.id, sequence.held, tokens, known, "nothing")
    draft = draft or []
    return Step(sequence.id, sequence.held, (*tokens, *draft), known, "logits" if sequence.needs_logits else "argmax", len(draft))


def weight_of(sweep: Sweep) -> tuple[int, int]:
    """Tokens of a sweep, and the keys that they attend to together."""
    tokens = sum(len(step.tokens) for step in sweep.steps)
    return tokens, sum(len(step.tokens) * step.start + len(step.tokens) * (len(step.tokens) + 1) // 2 for step in sweep.steps)
