"""How many tokens are guessed for whom. Pure.

    running texts ─▶ sources (lookup) ─▶ candidates, each with its chance ─▶ as many as make tokens per second the most ─▶ drafts in the sweep

A draft costs rows of the sweep that verifies it, and yields a token for each guess that is right as long as all before it are. What a sweep costs
is the cost model's to say: while weights stream rows are free, and where everything is resident a guess must be likely. The chance of a guess is
learned from those that were verified, by the length of the stretch that was found again; so a source that does not pay is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from .lookup import Lookup

#: What is thought of guesses behind a stretch of so many tokens and more before any was verified, and as how many guesses that counts.
_PRIOR: Final = {16: 0.9, 8: 0.8, 4: 0.6, 3: 0.5, 2: 0.35}
_PRIOR_WEIGHS: Final = 4.0
#: What was learned longer ago counts less, by this factor for each guess since.
_FORGETS: Final = 0.995
#: A guess less likely than this is not worth a row even where rows are free.
_LEAST_CHANCE: Final = 0.02


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


@dataclass(slots=True)
class _Text:
    lookup: Lookup = field(default_factory=Lookup)
    #: of the stretch that the present draft follows
    chance: Chance | None = None


class Speculation:
    """``sweep_s(tokens)``: seconds of a sweep with so many tokens more than one of each text; ``most``: tokens of a draft."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._chances = {length: Chance(_PRIOR[length] * _PRIOR_WEIGHS, _PRIOR_WEIGHS) for length in _PRIOR}
        self._texts: dict[int, _Text] = {}
        self.counts = Counts()

    def draft(self, texts: Sequence[tuple[int, Sequence[int], int]], most: int, sweep_s: Callable[[int], float]) -> dict[int, list[int]]:
        """Guesses for some of these texts, (id, tokens, guesses that it has room for), ``most`` together."""
        found: dict[int, list[int]] = {}
        gains: list[tuple[float, int]] = []
        for id, tokens, room in texts:
            text = self._texts.setdefault(id, _Text())
            guesses, length = text.lookup.propose(tokens, min(self._most, room))
            if guesses:
                found[id] = guesses
                text.chance = self._chances[max(least for least in _PRIOR if least <= length)]
                chance = text.chance.value
                gains += [(gain, id) for place in range(len(guesses)) if (gain := chance ** (place + 1)) >= _LEAST_CHANCE]
        gains.sort(key=lambda gain: -gain[0])  # those of one text stay in order
        taken = self._best(len(texts), [gain for gain, _ in gains[:most]], sweep_s)
        counts: dict[int, int] = {}
        for _, id in gains[:taken]:
            counts[id] = counts.get(id, 0) + 1
        return {id: found[id][:count] for id, count in counts.items()}

    def verified(self, id: int, drafted: int, accepted: int) -> None:
        """Of a draft so many guesses were looked at and so many were right, before the text ended or another token came."""
        self.counts.drafted += drafted
        self.counts.accepted += accepted
        text = self._texts.get(id)
        if text is None or text.chance is None:
            return
        for place in range(min(drafted, accepted + 1)):
            text.chance.learn(place < accepted)

    def forget(self, id: int) -> None:
        self._texts.pop(id, None)

    @staticmethod
    def _best(texts: int, gains: Sequence[float], sweep_s: Callable[[int], float]) -> int:
        """How many guesses, likeliest first, make tokens per second the most."""
        best, best_rate, tokens = 0, texts / sweep_s(0), float(texts)
        for count, gain in enumerate(gains, 1):
            tokens += gain
            if (rate := tokens / sweep_s(count)) > best_rate:
                best, best_rate = count, rate
        return best
