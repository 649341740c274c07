"""Whether a family's code is another's: transformers writes functions anew into every family's file, and many of them are alike."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def same_code(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether they are the same instructions with the same constants and names. What those names mean in each of their files is not looked at."""
    mine, theirs = (inspect.unwrap(function).__code__ for function in (one, other))
    return (mine.co_code, mine.co_consts, mine.co_names) == (theirs.co_code, theirs.co_consts, theirs.co_names)
