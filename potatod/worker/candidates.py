"""What may follow a text by the draft model's logits, with the noise that the target will sample with there. Pure, numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from potatod.messages import Drawn
from potatod.sampling.noise import gumbel
from potatod.sampling.params import Sampling
from potatod.sampling.processors import process

#: Of what may follow a place in a text, so many are looked at.
CANDIDATES: Final = 8
#: Places in texts whose noise is kept: of a large vocabulary each takes a megabyte.
_POSITIONS: Final = 16


class Noise:
    """The numbers that the target will sample with, made once for each position so long as it is near those that were asked for last."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._made: dict[tuple[int, int, int], NDArray[np.float64]] = {}

    def of(self, drawn: Drawn, position: int) -> NDArray[np.float64]:
        """(vocabulary,)"""
        key = drawn.seed, drawn.choice, position
        if (made := self._made.pop(key, None)) is None:
            made = gumbel(drawn.seed, drawn.choice, position, self._vocabulary)
        self._made[key] = made  # the last one now
        if len(self._made) > _POSITIONS:
            del self._made[next(iter(self._made))]
        return made


def candidates(logits: NDArray[np.float32], tokens: Sequence[int], drawn: Drawn, noise: Noise) -> tuple[list[int], list[float]]:
    """What the target would sample if its logits behind ``tokens`` were these, (vocabulary,), and what it would next to that; and by how much the first
    is preferred to each."""
    sampling = Sampling(
        drawn.temperature, drawn.top_k, drawn.top_p, drawn.min_p, drawn.repetition_penalty, frequency_penalty=drawn.frequency_penalty,
        presence_penalty=drawn.presence_penalty, logit_bias=drawn.logit_bias,
    )  # fmt: skip
    scores: NDArray[Any] = process(logits, tokens, sampling, drawn.prompt_tokens)
    unit = 1.0
    if not sampling.greedy:
        scores, unit = scores + noise.of(drawn, len(tokens))[: scores.size], drawn.temperature
    best = np.argpartition(scores, -CANDIDATES)[-CANDIDATES:]
    best = best[np.lexsort((best, -scores[best]))]
    if not np.isfinite(scores[best[0]]):
        raise ArithmeticError("the draft model's logits are no numbers")
    gaps = (scores[best[0]] - scores[best]).astype(np.float64) * unit
    return best.tolist(), gaps.tolist()
