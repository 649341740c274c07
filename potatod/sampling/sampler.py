"""One token from one row of logits, by the Gumbel-max trick.

``argmax(scores + Gumbel noise)`` has the distribution ``softmax(scores)``, and needs no sum over the vocabulary: with
the noise keyed by position the same token comes out whoever computes it, and two models that sample with the same noise
tend to agree, which is what makes drafts good (C. J. Maddison et al., "A* sampling", 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from potatod.errors import InternalError

from .noise import gumbel
from .params import Sampling
from .processors import process


def needs_logits(sampling: Sampling) -> bool:
    """Whether logits must be seen, by :func:`sample` or for their log probabilities; otherwise their argmax is all that is needed of them."""
    penalised = sampling.repetition_penalty != 1.0 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    beside = sampling.top_logprobs is not None or sampling.json_schema is not None
    return not sampling.greedy or penalised or bool(sampling.logit_bias) or beside


def sample(
    logits: NDArray[np.float32], context_ids: Sequence[int], sampling: Sampling, choice: int, position: int, prompt_tokens: int = 0,
    allowed: NDArray[np.bool_] | None = None,
) -> int:  # fmt: skip
    """The next token for ``logits (vocabulary,)``, fp32.

    ``context_ids`` are all tokens so far, the first ``prompt_tokens`` of them the prompt; ``position`` is the one that the new token gets, so usually
    their number; ``choice`` says which of several answers to one prompt this is; ``allowed``, (vocabulary,), which tokens may be chosen. Raises
    :class:`InternalError` where the logits are not numbers, or those of all that is allowed are -inf: no token can be made of those.
    """
    _check(logits)
    scores = process(logits, context_ids, sampling, prompt_tokens, allowed)
    noisy: NDArray[Any] = scores if sampling.greedy else scores + gumbel(sampling.seed, choice, position, scores.size)
    best = int(np.argmax(noisy))  # the first of equal ones, as in torch
    if allowed is not None and not allowed[best]:
        raise InternalError("the model's logits of all tokens that may come here are -inf")
    return best


#: No model's logits come near it, and below it even the lowest temperature leaves scores finite.
_LIMIT: Final = 1e30


def _check(logits: NDArray[np.float32]) -> None:
    best = logits.max()  # NaN where any of them is one
    if not -_LIMIT < best < _LIMIT:
        raise InternalError(f"the model's logits are no numbers to choose among (their maximum is {best})")
