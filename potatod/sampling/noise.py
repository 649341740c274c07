"""Noise as a function: Gumbel numbers from Philox 4x64-10, keyed by (seed, choice, position).

The key of the generator is (seed, choice); its 256-bit counter is (block, position, 0, 0) in words of 64 bits, lowest
first. A block gives four words of 64 bits, and the word with index ``token`` belongs to that token of the vocabulary.
So the number for a token depends on nothing that was drawn before it, nor on the size of the vocabulary.

Uniforms are made here from the raw words and not by numpy's distributions, whose streams may change between versions:
the upper 52 bits, plus one half, over 2^52. All of them are exact and lie strictly between 0 and 1, so every Gumbel
number is finite, from about -3.6 to 36.7. What is left to the platform is the last bit of ``log``.

Algorithm: J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_UNIT: Final = 2.0**-52


def gumbel(seed: int, choice: int, position: int, size: int) -> NDArray[np.float64]:
    """Standard Gumbel numbers, ``(size,)``, for the tokens 0 … size - 1. The arguments are whole numbers below 2^64."""
    values = np.log(_uniforms(seed, choice, position, size))  # (size,), all below 0
    np.negative(values, out=values)
    np.log(values, out=values)
    return np.negative(values, out=values)


def _uniforms(seed: int, choice: int, position: int, size: int) -> NDArray[np.float64]:
    key = np.array([seed, choice], dtype=np.uint64)
    counter = np.array([0, position, 0, 0], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(size)  # (size,) uint64
    uniforms = (words >> np.uint64(12)).astype(np.float64)
    uniforms += 0.5
    uniforms *= _UNIT
    return uniforms
