"""Runs microkernel.py's machine code on the threads that torch computes with.

The code lies in memory that can be read and executed and not written. It runs in the OpenMP team of torch's own runtime: a second pool of threads would
wait beside the first one, both spinning.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional

from potatod import machine
from potatod.errors import InternalError

from .banded import Banded
from .rows import unwatched

#: Outputs that a thread claims at a time, at most: few enough that threads end together.
CHUNK: Final = 48
#: Outputs in a multiple of which every kind of tile is whole.
WHOLE_TILES: Final = 12
#: Numbers that are multiplied at the same time, a register of AVX2. A row has a multiple of so many columns.
LANES: Final = 8
#: What a processor must say of itself to run the code, as Linux calls it.
FLAGS: Final = frozenset({"avx2", "fma", "f16c"})


class Call(ctypes.Structure):
    """What the code is told. Pointers, then counts."""

    _fields_ = [  # ctypes reads it
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        #: fp32, or null
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("chunk", ctypes.c_int64),
        #: outputs that threads have taken on so far
        ("claimed", ctypes.c_int64),
    ]


class Product:
    """``x @ weight.T + bias`` for rows ``x`` and a weight ``(out, in)`` of the dtype that the code was compiled for.

    Summed in fp32, rounded once to that dtype. A row's bits do not depend on what other rows there are.
    """

    def __init__(self, code: bytes, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.code = code
        self._memory = _executable(code)
        self._address = int(np.frombuffer(self._memory, dtype=np.uint8).ctypes.data)
        self._team = _team()

    @staticmethod
    def takes(shape: Sequence[int]) -> bool:
        """Whether weights of this shape can be multiplied with."""
        return len(shape) == 2 and shape[1] % LANES == 0

    def suits(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        """Whether it can give this product."""
        return (
            x.dtype is weight.dtype is self.dtype and self.takes(weight.shape) and x.shape[-1] == weight.shape[1]
            and weight.is_cpu and x.is_cpu and weight.is_contiguous()
        )  # fmt: skip

    def attempt(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
        """``torch.nn.functional.linear(input, weight, bias)``; None where it cannot give that."""
        if type(weight) is Banded:
            return self._by_pieces(input, weight.pieces, bias)
        if not self.suits(input, weight):
            return None
        with unwatched():
            return self(input, weight, bias)

    def _by_pieces(self, x: torch.Tensor, pieces: Sequence[torch.Tensor], bias: torch.Tensor | None) -> torch.Tensor | None:
        """An output's bits do not depend on where the others are computed."""
        if not all(self.suits(x, piece) for piece in pieces):
            return None
        outs, at = [], 0
        with unwatched():
            for piece in pieces:
                end = at + piece.shape[0]
                outs.append(self(x, piece, None if bias is None else bias[at:end]))
                at = end
            return torch.cat(outs, dim=-1)

    def linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """:meth:`attempt`, and torch's own where that is None."""
        out = self.attempt(input, weight, bias)
        return functional.linear(input, weight, bias) if out is None else out

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(…, in) and (out, in) → (…, out); bias (out) or None."""
        outputs, width = weight.shape
        rows = x.float()
        if not rows.is_contiguous():
            rows = rows.contiguous()
        if bias is not None:
            bias = bias.float()
        out = weight.new_empty(*x.shape[:-1], outputs)
        threads = torch.get_num_threads()
        chunk = min(CHUNK, max(WHOLE_TILES, outputs // (2 * threads) // WHOLE_TILES * WHOLE_TILES))
        call = Call(
            rows.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(), rows.numel() // width, width, outputs, chunk, 0
        )
        self._team(self._address, ctypes.byref(call), threads, 0)
        return out


def _executable(code: bytes) -> mmap.mmap:
    """Memory with the code in it, which nothing can write any more."""
    fd = os.memfd_create("potato-code", os.MFD_CLOEXEC)
    try:
        os.write(fd, code)
        return mmap.mmap(fd, len(code), prot=mmap.PROT_READ | mmap.PROT_EXEC)
    finally:
        os.close(fd)


def runs_here() -> bool:
    """Whether this processor and this torch can run the code."""
    try:
        _team()
        _executable(b"\xc3").close()
    except (InternalError, OSError):  # or a system that lets nobody run what it has made
        return False
    return machine.flags() >= FLAGS


@cache
def _team() -> Any:
    """``GOMP_parallel(function, data, threads, flags)`` of the OpenMP runtime that torch has loaded."""
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line.rpartition("/")[2]}
    for path in sorted(loaded):
        library = ctypes.CDLL(path) if path.startswith("/") else None
        if hasattr(library, "GOMP_parallel"):
            function: Any = library.GOMP_parallel  # type: ignore[union-attr]
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            function.restype = None
            return function
    raise InternalError("torch has no OpenMP runtime here that programs can use")
