"""Which dtypes this processor multiplies."""

from __future__ import annotations

from typing import Final

import torch

from potatod import machine

#: What a processor says of itself that multiplies matrices in a dtype smaller than fp32.
_NATIVE: Final = {torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"}, torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"}}


def multiplies(dtype: torch.dtype) -> bool:
    """Whether there are instructions that multiply numbers of this dtype."""
    return dtype == torch.float32 or not _NATIVE[dtype].isdisjoint(machine.flags())
