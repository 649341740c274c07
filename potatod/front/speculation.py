"""What is guessed for whom. Pure.

    running texts ─┬─▶ lookup, earlier texts ───────┬─▶ one tree for each text ─▶ the nodes that make tokens per second the most ─▶ the sweep
                   └─▶ draft model (worker/drafter) ┘

A guess costs a row of the sweep that verifies it, and yields a token if it is right and all before it are. What a sweep costs is the cost model's to
say: while weights stream rows are free, and where everything is resident a guess must be likely. How likely guesses are is learned from those
that were verified: lookup's by the length of the stretch that was found again, a draft model's where it computes. A source that does not pay is
not asked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Final

from potatod.messages import Draft, Drafted, DraftText
from potatod.trees import Tree

from .earlier import Earlier
from .lookup import Lookup

#: Who guesses.
LOOKUP: Final = "lookup"
DRAFT: Final = "draft"
SOURCES: Final = (LOOKUP, DRAFT)
#: What is thought of guesses behind a stretch of so many tokens and more before any was verified, and as how many guesses that counts.
_PRIOR: Final = {16: 0.9, 8: 0.8, 4: 0.6, 3: 0.5, 2: 0.35}
_PRIOR_WEIGHS: Final = 4.0
#: Ways to go on that are looked up; the second and later ones are as likely as what is found behind the shortest stretch. And what goes on with what
#: is copied, with the changes that were made before.
WAYS: Final = 3
_OTHER_WAY: Final = 0
_COPIED: Final = -1
_OTHER_PRIORS: Final = {_OTHER_WAY: 0.2, _COPIED: 0.5}
#: The same behind a stretch of so many tokens of another text.
_EARLIER_PRIOR: Final = {16: 0.85, 8: 0.6, 4: 0.3}
#: What was learned longer ago counts less, by this factor for each guess since.
_FORGETS: Final = 0.995
#: A guess less likely than this is not worth a row even where rows are free.
_LEAST_CHANCE: Final = 0.02
#: The draft model is asked no more for so many sweeps where over so many asked ones there were fewer tokens per second than without.
_JUDGED_OVER: Final = 12
_NOT_ASKED_FOR: Final = 100
#: The draft model reads prompts for this share of a sweep's time, and at least so many tokens.
_READS_SHARE: Final = 0.5
_LEAST_READS: Final = 64


@dataclass(slots=True)
class Chance:
    """Of one guess being right where all before it were."""

    right: float
    tried: float

    @property
    def value(self) -> float:
        return self.right / self.tried

    def learn(self, right: bool) -> None:
        self.right = self.right * _FORGETS + right
        self.tried = self.tried * _FORGETS + 1


@dataclass(slots=True)
class Counts:
    """Since the front started."""

    drafted: int = 0
    accepted: int = 0

    def add(self, drafted: int, accepted: int) -> None:
        self.drafted += drafted
        self.accepted += accepted


@dataclass(slots=True)
class _Text:
    lookup: Lookup = field(default_factory=Lookup)
    #: what was looked up last, and of each guess the chance that is learned of it
    paths: list[tuple[list[int], list[Chance]]] = field(default_factory=list)
    #: what was guessed last, by everyone
    tree: Tree = field(default_factory=Tree)


@dataclass(slots=True)
class _Judged:
    """Sweeps that the draft model guessed for, since it was asked again."""

    sweeps: int = 0
    #: that came of them, and that would have come without it
    tokens: int = 0
    without: int = 0
    drafting_s: float = 0.0
    sweeping_s: float = 0.0

    @property
    def pays(self) -> bool:
        """Whether they made more tokens per second than they would have without."""
        return self.tokens / (self.sweeping_s + self.drafting_s) > self.without / self.sweeping_s


class Speculation:
    """``most``: tokens that a guess may be ahead of a text."""

    def __init__(self, most: int, *, lookup: bool = True, draft: bool = False) -> None:
        self._most = most
        self._looks_up = lookup
        self._has_draft = draft
        self._chances = {length: Chance(_PRIOR[length] * _PRIOR_WEIGHS, _PRIOR_WEIGHS) for length in _PRIOR}
        self._chances |= {kind: Chance(prior * _PRIOR_WEIGHS, _PRIOR_WEIGHS) for kind, prior in _OTHER_PRIORS.items()}
        self._earlier_chances = {length: Chance(prior * _PRIOR_WEIGHS, _PRIOR_WEIGHS) for length, prior in _EARLIER_PRIOR.items()}
        self._earlier = Earlier()
        self._texts: dict[int, _Text] = {}
        self.counts = Counts()
        self.by_source = {source: Counts() for source in SOURCES}
        #: why there is no draft model any more
        self.failed = ""
        self._number = 0
        #: of the sweep to come, and for whom the draft model guessed in the last one
        self._guessed: dict[int, Tree] = {}
        self._guessed_for: frozenset[int] = frozenset()
        self._judged = _Judged()
        self._not_asked_for = 0
        self._read_s = 0.0

    # the draft model

    def ask(self, epoch: int, texts: Sequence[DraftText], nodes: int, sweep_s: float, spare_s: float) -> Draft | None:
        """What the draft model is asked; None where there is none, or it does not pay."""
        self._guessed, self._guessed_for = {}, frozenset()
        if not self._has_draft or self.failed:
            return None
        if self._not_asked_for > 0:
            self._not_asked_for -= 1
            return None
        if self._judged.sweeps >= _JUDGED_OVER:
            pays, self._judged = self._judged.pays, _Judged()
            if not pays:
                self._not_asked_for = _NOT_ASKED_FOR
                return None
        reads = max(_LEAST_READS, int(_READS_SHARE * sweep_s / self._read_s)) if self._read_s else _LEAST_READS
        self._number += 1
        self._sweep_s = sweep_s
        limited = tuple(replace(text, most=min(text.most, self._most)) for text in texts)
        return Draft(epoch, self._number, limited, nodes, reads, sweep_s, spare_s)

    def told(self, drafted: Drafted) -> None:
        if drafted.failed:
            self.failed = drafted.failed
            return
        if drafted.read_tokens >= _LEAST_READS:
            self._read_s = drafted.read_s / drafted.read_tokens
        for guessed in drafted.guessed:
            tree = self._guessed[guessed.sequence] = Tree()
            for token, parent, chance in zip(guessed.tokens, guessed.parents, guessed.chances, strict=True):
                tree.add(parent, token, chance, DRAFT)
        if drafted.guessed:  # else it has only read, which a prompt costs once
            self._judged.sweeps += 1
            self._guessed_for = frozenset(self._guessed)
            self._judged.without += len(drafted.guessed)
            self._judged.tokens += len(drafted.guessed)
            self._judged.drafting_s += drafted.seconds - drafted.read_s
            self._judged.sweeping_s += self._sweep_s

    def restarted(self) -> None:
        """The worker was started anew, and its draft model with it."""
        self.failed = ""

    # what a sweep verifies

    def draft(self, texts: Sequence[tuple[int, Sequence[int], int]], most: int, sweep_s: Callable[[int], float]) -> dict[int, Tree]:
        """Guesses for some of these texts, (id, tokens, how far they may go), ``most`` together, each tree in a sweep's order. ``sweep_s(guesses)``:
        seconds of a sweep with so many tokens more than one of each text."""
        gains: list[tuple[float, int, int]] = []
        for id, tokens, room in texts:
            tree = self._grown(id, tokens, min(self._most, room))
            gains += [(-tree.chances[node], id, place) for place, node in enumerate(tree.likeliest()) if tree.chances[node] >= _LEAST_CHANCE]
        gains.sort()  # those of one text stay in order
        taken = self._best(len(texts), [-gain for gain, _, _ in gains[:most]], sweep_s)
        counts: dict[int, int] = {}
        for _, id, _ in gains[:taken]:
            counts[id] = counts.get(id, 0) + 1
        self._guessed = {}
        return {id: self._texts[id].tree.only(self._texts[id].tree.likeliest()[:count]) for id, count in counts.items()}

    def _grown(self, id: int, tokens: Sequence[int], room: int) -> Tree:
        text = self._texts.setdefault(id, _Text())
        text.tree, text.paths = Tree(), []
        for number, way in enumerate(text.lookup.propose(tokens, room, WAYS) if self._looks_up else ()):
            chance = self._chances[_COPIED if not way.length else _OTHER_WAY if number else max(least for least in _PRIOR if least <= way.length)]
            each = chance.value if number == 0 or not way.length else self._behind(way.length)
            text.paths.append((way.tokens, [chance] * (len(way.tokens) if number == 0 or not way.length else 1)))
            # of the other ways each has what is left over by those before it; behind its first token it is as good as any
            text.tree.add_path(way.tokens, [chance.value * each**place for place in range(len(way.tokens))], LOOKUP)
        if self._looks_up and (earlier := self._earlier.propose(tokens, room)) is not None:
            lengths = range(earlier.length, earlier.length + len(earlier.tokens))  # each that is right makes the stretch longer
            chances = [self._earlier_chances[max(least for least in _EARLIER_PRIOR if least <= length)] for length in lengths]
            text.paths.append((earlier.tokens, chances))
            text.tree.add_path(earlier.tokens, list(accumulate((chance.value for chance in chances), operator.mul)), LOOKUP)
        if (guessed := self._guessed.get(id)) is not None:
            text.tree.merge(guessed)
        return text.tree

    def _behind(self, length: int) -> float:
        return self._chances[max(least for least in _PRIOR if least <= length)].value

    def verified(self, id: int, guesses: Tree, accepted: Sequence[int]) -> dict[str, tuple[int, int]]:
        """These guesses were computed with a sweep, and of them ``accepted`` were right, one after the other, before the text ended or another token
        came. Returns of each source how many it had guessed, and how many of them were right."""
        text = self._texts.get(id)
        if text is None:
            return {}
        for path, chances in text.paths:
            for place, token in enumerate(path[: len(accepted) + 1]):
                if guesses.node(path[: place + 1]) is None:
                    break  # it was not computed
                right = place < len(accepted) and accepted[place] == token
                if place < len(chances):
                    chances[place].learn(right)
                if not right:
                    break
        if id in self._guessed_for:
            nodes = [text.tree.node(accepted[: place + 1]) for place in range(len(accepted))]
            self._judged.tokens += len(accepted)
            self._judged.without += sum(node is not None and LOOKUP in text.tree.sources[node] for node in nodes)
        return self._counted(text.tree, guesses, accepted)

    def _counted(self, tree: Tree, guesses: Tree, accepted: Sequence[int]) -> dict[str, tuple[int, int]]:
        found = dict.fromkeys(SOURCES, (0, 0))
        for node in range(len(guesses)):
            path = guesses.path(node)
            right = list(accepted[: len(path)]) == path
            known = tree.node(path)
            sources = tree.sources[known] if known is not None else frozenset()
            self.counts.add(1, right)
            for source in sources:
                self.by_source[source].add(1, right)
                found[source] = found[source][0] + 1, found[source][1] + right
        return {source: counts for source, counts in found.items() if counts[0]}

    def forget(self, id: int) -> None:
        self._texts.pop(id, None)

    def said(self, tokens: Sequence[int]) -> None:
        """A text has ended so: what others say like it will be guessed from it."""
        if self._looks_up:
            self._earlier.add(tokens)

    @staticmethod
    def _best(texts: int, gains: Sequence[float], sweep_s: Callable[[int], float]) -> int:
        """How many guesses, likeliest first, make tokens per second the most."""
        best, best_rate, tokens = 0, texts / sweep_s(0), float(texts)
        for count, gain in enumerate(gains, 1):
            tokens += gain
            if (rate := tokens / sweep_s(count)) > best_rate:
                best, best_rate = count, rate
        return best
