"""How a draft model's trees grow: which nodes it looks behind next, and when it is enough. Pure: no tensor, no clock.

A round is one pass of the draft model over some nodes of all trees; what may follow each of them becomes its children. The likeliest nodes come first,
as many as make a round worth its time, and the growing ends where a round makes tokens slower than what is guessed already does:

    tokens per second now  =  (texts + Σ chances) ÷ (the sweep's seconds + the rounds' so far)

While a sweep waits for weights rounds cost nothing. Then it goes on with whatever the target will most likely come to, as much of that in a second as
may be, and behind what guesses may be now: drafter.py, NOTE [ ahead ].
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from potatod.trees import ROOT, Tree

#: Nodes of a round.
ROWS: Final = (1, 2, 4, 8)
#: Children less likely than this are not kept.
_LEAST_CHANCE: Final = 0.01
#: What is thought of a node's children together, before any was looked at.
_PRIOR_MASS: Final = 0.8
#: Spreads that are tried; what was learned longer ago counts less.
_SPREADS: Final = tuple(0.02 * 1.5**power for power in range(18))
_PRIOR_SPREAD: Final = 0.5
_FORGETS: Final = 0.998
#: Nothing is thought to be less likely than this when it has come; and so likely it is at least that the token is none of the candidates.
_LEAST: Final = 0.001
#: Rounds whose seconds are remembered.
_TIMES: Final = 0.2
#: Seconds of one, before any was measured; and what is left each time that they are doubted.
_FIRST_S: Final = 0.05
DOUBT: Final = 0.9


class Spread:
    """How likely each candidate is the target's token, given by how much the draft prefers the first to it: softmax(−gap ÷ spread).

    Gaps are differences of logits, with the noise that target and draft share; the spread is how far the two models are apart, and is found as
    the likeliest of a few.
    """

    def __init__(self) -> None:
        self._likelihoods = [-0.5 * abs(math.log(spread / _PRIOR_SPREAD)) for spread in _SPREADS]
        self._choose()

    def chances(self, gaps: Sequence[float]) -> list[float]:
        """``gaps``: of candidates, the first one's is 0."""
        return _softmax(gaps, self.value)

    def learn(self, gaps: Sequence[float], right: int | None) -> None:
        """Which of the candidates it was; None: none."""
        for number, spread in enumerate(_SPREADS):
            chances = _softmax(gaps, spread)
            chance = 1 - sum(chances) if right is None else chances[right]
            self._likelihoods[number] = self._likelihoods[number] * _FORGETS + math.log(max(_LEAST, chance))
        self._choose()

    def _choose(self) -> None:
        self.value = _SPREADS[max(range(len(_SPREADS)), key=self._likelihoods.__getitem__)]


def _softmax(gaps: Sequence[float], spread: float) -> list[float]:
    """All that are none of the candidates are together as likely as the last one of these."""
    powers = [math.exp(-gap / spread) for gap in gaps]
    whole = (sum(powers) + (powers[-1] if len(powers) > 1 else 0.0)) / (1 - _LEAST)
    return [power / whole for power in powers]


class RoundTimes:
    """Seconds of a round by its rows: a + b × rows, from those that were measured."""

    def __init__(self, like: RoundTimes | None = None) -> None:
        """Before any is measured they are thought to be ``like`` others."""
        self._seen: dict[int, float] = {}
        self._like = like

    def add(self, rows: int, seconds: float) -> None:
        before = self._seen.get(rows)
        self._seen[rows] = seconds if before is None else before + _TIMES * (seconds - before)

    def __call__(self, rows: int) -> float:
        if rows in self._seen:
            return self._seen[rows]
        if not self._seen:
            return self._like(rows) if self._like else _FIRST_S
        below = [known for known in self._seen if known < rows]
        if not below:
            return min(self._seen.values())
        return self._seen[max(below)] * 1.1  # to be found out

    def doubt(self) -> None:
        """None was made for a while, since they take too long: they may take less by now."""
        self._seen = {rows: seconds * DOUBT for rows, seconds in self._seen.items()}


@dataclass(frozen=True, slots=True)
class Reach:
    """How far behind a text: guesses may be so far, and looked at so far ahead, which is no less."""

    most: int
    room: int


@dataclass(slots=True)
class _Text:
    reach: Reach
    tree: Tree = field(default_factory=Tree)
    depths: dict[int, int] = field(default_factory=lambda: {ROOT: 0})


class Growth:
    """Of one draft, of all its texts."""

    def __init__(self, texts: Mapping[int, Reach], nodes: int, sweep_s: float, round_s: Callable[[int], float]) -> None:
        """``nodes``: as many as a sweep verifies of all texts."""
        self._texts = {id: _Text(reach) for id, reach in texts.items()}
        self._nodes = nodes
        self._sweep_s = sweep_s
        self._round_s = round_s
        self._spent_s = 0.0
        #: of nodes that nobody has looked behind: (−chance, text, node); and those that are as far as guesses may be
        self._open: list[tuple[float, int, int]] = []
        self._farther: list[tuple[float, int, int]] = []
        #: of the likeliest nodes, as many as will be verified
        self._chances: list[float] = []
        self._expected = 0.0
        self._mass, self._looked = _PRIOR_MASS, 1.0

    @property
    def trees(self) -> dict[int, Tree]:
        """What is guessed."""
        return {id: self._within(text) for id, text in self._texts.items()}

    @staticmethod
    def _within(text: _Text) -> Tree:
        near = [node for node in range(len(text.tree)) if text.depths[node] <= text.reach.most]
        return text.tree if len(near) == len(text.tree) else text.tree.only(near)

    def tree(self, text: int) -> Tree:
        """All that was looked at of it."""
        return self._texts[text].tree

    def children(self, text: int, node: int, candidates: Sequence[tuple[int, float]]) -> list[int]:
        """What may follow that node: tokens, each with its chance where the node itself is right. Those nodes that may be looked behind."""
        grown = self._texts[text]
        whole = 1.0 if node == ROOT else grown.tree.chances[node]
        depth = grown.depths[node] + 1
        if depth > grown.reach.room:
            return []
        self._mass += sum(chance for _, chance in candidates[:2])
        self._looked += 1
        children = []
        for token, chance in candidates:
            if whole * chance < _LEAST_CHANCE:
                continue
            child = grown.tree.add(node, token, whole * chance)
            grown.depths[child] = depth
            children.append(child)
            if depth <= grown.reach.most:
                self._count(whole * chance)
        return children if depth < grown.reach.room else []

    def open(self, text: int, node: int) -> None:
        """Nobody has looked behind that one."""
        grown = self._texts[text]
        heapq.heappush(self._open if grown.depths[node] < grown.reach.most else self._farther, (-grown.tree.chances[node], text, node))

    def spent(self, seconds: float) -> None:
        """A round took so long."""
        self._spent_s += seconds

    def next(self) -> list[tuple[int, int]]:
        """(text, node) of those to look behind in the next round; none: it is enough."""
        likeliest = heapq.nsmallest(ROWS[-1], self._open)
        ahead = len(self._texts) + self._expected
        best, best_rate = 0, ahead / (self._sweep_s + self._spent_s)
        for rows in ROWS:
            some = likeliest[:rows]
            gain = sum(self._gain(-chance) for chance, _, _ in some)
            rate = (ahead + gain) / (self._sweep_s + self._spent_s + self._round_s(rows))
            if rate > best_rate:
                best, best_rate = len(some), rate
            if len(some) < rows:
                break
        return [heapq.heappop(self._open)[1:] for _ in range(best)]

    @property
    def unlooked(self) -> bool:
        """Whether there are nodes that nobody has looked behind."""
        return bool(self._open or self._farther)

    def ahead(self, spare_s: float, round_s: Callable[[int], float]) -> list[tuple[int, int]]:
        """(text, node) of those to look behind in a round that costs nothing and takes no longer than that; none: there are none, or it would.
        ``round_s``: seconds of such a round."""
        for one in self._farther:
            heapq.heappush(self._open, one)
        self._farther.clear()
        likeliest = heapq.nsmallest(ROWS[-1], self._open)
        best, best_rate = 0, 0.0
        for rows in ROWS:
            some, seconds = likeliest[:rows], round_s(rows)
            rate = -sum(chance for chance, _, _ in some) / seconds
            if seconds <= spare_s and rate > best_rate:
                best, best_rate = len(some), rate
        return [heapq.heappop(self._open)[1:] for _ in range(best)]

    def _gain(self, chance: float) -> float:
        """What looking behind such a node yields: its children push others out where there are as many as will be verified."""
        gain = chance * min(1.0, self._mass / self._looked)
        return max(0.0, gain - (self._chances[0] if len(self._chances) >= self._nodes else 0.0))

    def _count(self, chance: float) -> None:
        if len(self._chances) < self._nodes:
            heapq.heappush(self._chances, chance)
            self._expected += chance
        elif chance > self._chances[0]:
            self._expected += chance - heapq.heapreplace(self._chances, chance)
