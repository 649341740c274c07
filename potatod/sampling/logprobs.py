"""Log probabilities of a token and of the likeliest ones, by the logits as the model made them: before bias, penalties and temperature.

In fp64 and over the whole vocabulary, so that they depend on nothing but the row of logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Nothing is said to be less likely than this: it is OpenAI's number for "never", and unlike -inf a number in JSON.
NEVER: Final = -9999.0


@dataclass(frozen=True, slots=True)
class Logprobs:
    #: of the token that was sampled, natural
    sampled: float
    #: (token id, its log probability): the likeliest first, of equally likely ones the smaller id first
    likeliest: tuple[tuple[int, float], ...]


def logprobs(logits: NDArray[np.float32], token: int, count: int) -> Logprobs:
    """Of ``logits (vocabulary,)``, for ``token`` and the ``count`` likeliest tokens, as many as there are at most."""
    best = float(logits.max())
    total = best + float(np.log(np.exp(logits.astype(np.float64) - best).sum()))
    return Logprobs(_of(logits, token, total), tuple((id, _of(logits, id, total)) for id in _likeliest(logits, count)))


def _of(logits: NDArray[np.float32], token: int, total: float) -> float:
    return max(NEVER, float(logits[token]) - total)


def _likeliest(logits: NDArray[np.float32], count: int) -> list[int]:
    count = min(count, logits.size)
    if not count:
        return []
    worst = np.partition(logits, logits.size - count)[logits.size - count]
    among = np.flatnonzero(logits >= worst)  # more than ``count`` where some are as good as the last
    ids: list[int] = among[np.argsort(-logits[among], kind="stable")][:count].tolist()
    return ids
