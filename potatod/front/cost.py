"""What a sweep costs, as a function of what is in it: planned first, then fitted to what was measured while running. Pure.

    seconds = max(streaming, computing)
    computing = scale × what was planned for so many tokens + per_key × keys that they attend to

A sweep says how long it took and how much of that it had nothing to compute with, so both halves are seen whichever of them is the longer one.
"""

from __future__ import annotations

import operator
import statistics
from collections import deque
from collections.abc import Callable
from typing import Final

#: Sweeps that the fit remembers. What was planned for tokens, and that keys cost nothing, weigh as much as so many of them.
_REMEMBERED: Final = 64
_PLAN_WEIGHS: Final = 0.01
_NO_KEYS_WEIGH: Final = 1.0
#: A sweep that waited for a larger share of its time was as long as its weights take to stream.
_STREAMING: Final = 0.05
#: Of the time that weights stream, so much is filled with computing: the rest is for what is computed worse than forecast.
_FILLED: Final = 0.95


class CostModel:
    """``compute_s``: seconds of computing that were planned for a sweep of so many tokens; ``stream_s``: planned for its weights to come."""

    def __init__(self, compute_s: Callable[[int], float], stream_s: float) -> None:
        self._planned = compute_s
        self._stream_planned = stream_s
        #: (tokens, keys they attend to, seconds of computing)
        self._seen: deque[tuple[int, int, float]] = deque(maxlen=_REMEMBERED)
        self._streamed: deque[float] = deque(maxlen=_REMEMBERED)
        self._scale, self._per_key = 1.0, 0.0

    def observe(self, tokens: int, keys: int, seconds: float, waited_s: float) -> None:
        """A sweep of so many tokens, which together attended to so many keys, took ``seconds`` and waited for weights ``waited_s`` of them."""
        computed = seconds - waited_s
        if computed <= 0:
            return
        if waited_s > _STREAMING * seconds:
            self._streamed.append(seconds)
        self._seen.append((tokens, keys, computed))
        self._fit()

    @property
    def stream_s(self) -> float:
        """Seconds that the weights of a sweep take to come; computing may be longer."""
        return statistics.median(self._streamed) if self._streamed else self._stream_planned

    def compute_s(self, tokens: int, keys: int) -> float:
        return self._scale * self._planned(tokens) + self._per_key * keys

    def sweep_s(self, tokens: int, keys: int) -> float:
        return max(self.stream_s, self.compute_s(tokens, keys))

    def spare_s(self, tokens: int, keys: int) -> float:
        """Of that, seconds in which nothing is computed: weights are waited for."""
        return max(0.0, self.stream_s - self.compute_s(tokens, keys))

    def free(self, tokens: int, keys: int, most: int, share: float) -> int:
        """Tokens that a sweep may take beside ``tokens`` of running sequences: those whose computing hides behind the streaming of its weights, and as
        many as make it longer by ``share``. Each is counted as attending to as many keys as those do on average."""
        alone = self.sweep_s(tokens, keys)
        limit = max(_FILLED * self.stream_s, (1 + share) * alone)
        each = keys / tokens if tokens else 0.0
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.compute_s(tokens + middle, int(keys + middle * each)) <= limit:
                low = middle
            else:
                high = middle - 1
        return low

    def _fit(self) -> None:
        """Least squares of the errors relative to the plan; neither coefficient below 0. Where sweeps are too much alike to tell tokens from keys, the
        tokens are thought to cost the difference."""
        many = len(self._seen)
        planned = [self._planned(tokens) for tokens, _, _ in self._seen]
        keys = [keys / plan for (_, keys, _), plan in zip(self._seen, planned, strict=True)]
        took = [seconds / plan for (_, _, seconds), plan in zip(self._seen, planned, strict=True)]
        pp, py = _PLAN_WEIGHS + many, _PLAN_WEIGHS + sum(took)
        pk, ky = sum(keys), sum(map(operator.mul, keys, took))
        kk = sum(key * key for key in keys) * (1 + _NO_KEYS_WEIGH / many)
        determinant = pp * kk - pk * pk
        if determinant > 0:
            scale, per_key = (py * kk - ky * pk) / determinant, (ky * pp - py * pk) / determinant
            if scale > 0 and per_key >= 0:
                self._scale, self._per_key = scale, per_key
                return
        self._scale, self._per_key = py / pp, 0.0
