"""Memory behind which nothing may be read or written: whoever does dies of it."""

from __future__ import annotations

import ctypes
import mmap

import torch

PAGE = mmap.PAGESIZE
#: Kept, so that nothing is ever put where a wall stands.
_WALLS: list[mmap.mmap] = []


def before_a_wall(size: int) -> torch.Tensor:
    """So many bytes of it."""
    whole = -(-size // PAGE) * PAGE
    pages = mmap.mmap(-1, whole + PAGE)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(memory.data_ptr() + whole), ctypes.c_size_t(PAGE), 0) == 0
    _WALLS.append(pages)
    return memory[whole - size : whole]


def moved_before_a_wall(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers there."""
    there = before_a_wall(tensor.numel() * tensor.itemsize).view(tensor.dtype).view(tensor.shape)
    return there.copy_(tensor)
