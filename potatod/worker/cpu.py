"""What this processor says it can do."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import torch

#: What a processor says of itself that multiplies matrices in a dtype smaller than fp32.
_NATIVE: Final = {torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"}, torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"}}


@cache
def flags() -> frozenset[str]:
    """As Linux calls them."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().split("\n\n")[0].split())
    except OSError:
        return frozenset()


def multiplies(dtype: torch.dtype) -> bool:
    """Whether there are instructions that multiply numbers of this dtype."""
    return dtype == torch.float32 or not _NATIVE[dtype].isdisjoint(flags())
