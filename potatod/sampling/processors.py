"""Logits processors: the values and the order of transformers' ``GenerationMixin._get_logits_processor``, and OpenAI's penalties between them.

    bias ─▶ repetition penalty ─▶ frequency and presence penalties ─▶ what is allowed ─▶ temperature ─▶ top-k ─▶ top-p ─▶ min-p

Each takes scores ``(vocabulary,)`` in fp32 and returns new ones; a token that may not be drawn has -inf. Arithmetic is
fp32 as in transformers, sums of probabilities are accumulated in fp64 and rounded to fp32 as torch does on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .params import Sampling

Scores = NDArray[np.float32]

_NEVER: Final = np.float32(-np.inf)
#: Tokens that top-p sorts when these are enough.
_FEW: Final = 1024


def process(
    logits: Scores, context_ids: Sequence[int], sampling: Sampling, prompt_tokens: int = 0, allowed: NDArray[np.bool_] | None = None
) -> Scores:
    """What is drawn from, ``(vocabulary,)``; the logits themselves where nothing is to be done. Never writes into them.

    ``context_ids`` are all tokens so far, of which the first ``prompt_tokens`` are the prompt and the others the answer. ``allowed``: others than
    these, (vocabulary,), are never drawn. Greedy sampling knows only bias, penalties and what is allowed.
    """
    scores = logits
    if sampling.logit_bias:
        scores = logit_bias(scores, sampling.logit_bias)
    if sampling.repetition_penalty != 1.0:
        scores = repetition_penalty(scores, context_ids, sampling.repetition_penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        scores = answer_penalties(scores, context_ids[prompt_tokens:], sampling.frequency_penalty, sampling.presence_penalty)
    if allowed is not None:
        scores = np.where(allowed, scores, _NEVER)
    if sampling.greedy:
        return scores
    if sampling.temperature != 1.0:
        scores = temperature(scores, sampling.temperature)
    if sampling.top_k != 0:
        scores = top_k(scores, sampling.top_k)
    if sampling.top_p < 1.0:
        scores = top_p(scores, sampling.top_p)
    if sampling.min_p > 0.0:
        scores = min_p(scores, sampling.min_p)
    return scores


def logit_bias(scores: Scores, biases: Sequence[tuple[int, float]]) -> Scores:
    """Each of these tokens, named once, has its number added; ids beyond the scores do nothing."""
    processed = scores.copy()
    known = [(token, bias) for token, bias in biases if token < scores.size]
    processed[[token for token, _ in known]] += np.array([bias for _, bias in known], dtype=np.float32)
    return processed


def repetition_penalty(scores: Scores, context_ids: Sequence[int], penalty: float) -> Scores:
    """The context's tokens become less likely, each once however often it occurs; ids beyond the scores do nothing."""
    seen = np.unique(np.asarray(context_ids, dtype=np.int64))
    seen = seen[(seen >= 0) & (seen < scores.size)]
    factor, values = np.float32(penalty), scores[seen]
    processed = scores.copy()
    processed[seen] = np.where(values < 0, values * factor, values / factor)
    return processed


def answer_penalties(scores: Scores, answer_ids: Sequence[int], frequency: float, presence: float) -> Scores:
    """The answer's tokens lose ``frequency`` for each time that they occur, and ``presence`` once; ids beyond the scores do nothing.

    Source: OpenAI's API reference, "Frequency and presence penalties".
    """
    seen, counts = np.unique(np.asarray(answer_ids, dtype=np.int64), return_counts=True)
    known = seen < scores.size
    seen, counts = seen[known], counts[known].astype(np.float32)
    processed = scores.copy()
    processed[seen] -= counts * np.float32(frequency) + np.float32(presence)
    return processed


def temperature(scores: Scores, value: float) -> Scores:
    return scores / np.float32(value)


def top_k(scores: Scores, k: int) -> Scores:
    """Keeps the k best and every token as good as the k-th."""
    if k >= scores.size:
        return scores
    worst = np.partition(scores, scores.size - k)[scores.size - k]
    return np.where(scores < worst, _NEVER, scores)


def top_p(scores: Scores, p: float) -> Scores:
    """Keeps the smallest set of best tokens whose probabilities sum to p or more.

    Where the border runs among equal scores the later ones in the vocabulary stay. (Transformers leaves that to an
    unstable sort.)
    """
    finite = np.flatnonzero(scores > _NEVER)  # after top-k few are left, and the others add nothing to any sum
    values = scores[finite]
    probabilities = _softmax(values)
    likely = _likely(values, probabilities, p)
    ascending = likely[np.argsort(values[likely], kind="stable")]
    below = probabilities.sum(dtype=np.float64) - probabilities[likely].sum(dtype=np.float64)
    sums = (below + np.cumsum(probabilities[ascending], dtype=np.float64)).astype(np.float32)
    kept = ascending[(sums > np.float32(1 - p)) | (np.arange(ascending.size) == ascending.size - 1)]
    processed = np.full_like(scores, _NEVER)
    processed[finite[kept]] = values[kept]
    return processed


def _likely(values: Scores, probabilities: Scores, p: float) -> NDArray[np.intp]:
    """Where the tokens lie that top-p may keep: a thousand where these clearly suffice; sorting all takes 20 ms."""
    if values.size > _FEW:
        likely = np.flatnonzero(values >= np.partition(values, values.size - _FEW)[values.size - _FEW])
        if probabilities[likely].sum(dtype=np.float64) > p + 1e-3:
            return likely
    return np.arange(values.size)


def min_p(scores: Scores, p: float) -> Scores:
    """Keeps tokens whose probability is at least the share p of the likeliest one's."""
    probabilities = _softmax(scores)
    return np.where(probabilities < np.float32(p) * probabilities.max(), _NEVER, scores)


def _softmax(scores: Scores) -> Scores:
    powers: Scores = np.exp(scores - scores.max())
    powers /= powers.sum(dtype=np.float32)
    return powers
