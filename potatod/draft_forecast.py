"""What a draft model would bring: tokens of a sweep, and seconds of each, by how many guesses are thought to be right. Pure.

    a round of the draft model looks behind `width` nodes, and of what follows the right one so many in a hundred are among them:

        tokens a sweep  =  1 + p + p² + … + pⁿ          seconds a token  =  (sweep + n × round) ÷ tokens a sweep

The number of rounds n and their width are what makes the least of the seconds; a guess is also a row of the sweep. What really is right is found out
while serving (front/speculation.py, worker/growth.py), and `potatod status` says it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: Nodes of a round, and the chance that the right one is among them: a copy in int4 of a model whose weights are as far from a 4-bit grid as those in
#: bf16 mostly are. Four: docs/PERFORMANCE.md, `drafted` with 8 % of noise, 8.6 tokens a sweep at T=0. One: supposed.
WIDTHS: Final = ((1, 0.70), (4, 0.88))


@dataclass(frozen=True, slots=True)
class Guessing:
    """Of one sequence."""

    #: tokens of a sweep
    tokens: float
    sweep_s: float
    #: before each sweep
    drafting_s: float

    @property
    def token_s(self) -> float:
        return (self.sweep_s + self.drafting_s) / self.tokens


def best(sweep_s: Callable[[int], float], round_s: Callable[[int], float], deepest: int, guesses: int) -> Guessing:
    """``sweep_s(rows)``, ``round_s(nodes)``: seconds; ``deepest``: tokens that guesses may be ahead of a text; ``guesses``: of a sweep, at most."""
    found = [Guessing(1.0, sweep_s(1), 0.0)]
    for width, right in WIDTHS:
        tokens, chance = 1.0, 1.0
        for rounds in range(1, min(deepest, guesses // width) + 1):
            chance *= right
            tokens += chance
            found.append(Guessing(tokens, sweep_s(1 + rounds * width), rounds * round_s(width)))
    return min(found, key=lambda each: each.token_s)
