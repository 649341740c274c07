"""Runs microkernel.py's machine code on the threads that torch computes with.

The code lies in memory that can be read and executed and not written. It runs in the OpenMP team of torch's own runtime: a second pool of threads would
wait beside the first one, both spinning.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from potatod import forms, machine
from potatod.errors import InternalError

from .banded import Banded, Piece
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
        #: from one row of ``out`` to the next, in numbers
        ("out_width", ctypes.c_int64),
        #: of the weight's memory: from one output's record to the next, and in all
        ("row_bytes", ctypes.c_int64),
        ("weight_bytes", ctypes.c_int64),
        ("chunk", ctypes.c_int64),
        #: outputs from the first of a chunk to the first of the one that the same thread will probably claim next
        ("stride", ctypes.c_int64),
        #: outputs that threads have taken on so far
        ("claimed", ctypes.c_int64),
        #: nothing
        ("spare", ctypes.c_int64),
    ]


class Product:
    """``x @ weight.T + bias`` for rows ``x`` and a weight ``(out, in)`` of the dtype that the code was compiled for, stored in any scheme that there is
    code for.

    Summed in fp32, rounded once to that dtype. A row's bits do not depend on what other rows there are.
    """

    def __init__(self, codes: Mapping[str, bytes], dtype: torch.dtype) -> None:
        """``codes``: machine code by the scheme's name."""
        self.dtype = dtype
        self.codes = codes
        self._memory = {scheme: executable(code) for scheme, code in codes.items()}
        self._addresses = {scheme: address(memory) for scheme, memory in self._memory.items()}
        self._team = team()

    @staticmethod
    def takes(shape: Sequence[int]) -> bool:
        """Whether weights of this shape can be multiplied with."""
        return len(shape) == 2 and shape[1] % LANES == 0

    def suits(self, x: torch.Tensor, piece: Piece) -> bool:
        """Whether it can give this product."""
        return (
            piece.scheme in self.codes and x.dtype is piece.dtype is self.dtype and self.takes(piece.shape) and x.shape[-1] == piece.shape[1]
            and piece.lies.is_cpu and x.is_cpu and holds(piece)
        )  # fmt: skip

    def attempt(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
        """``torch.nn.functional.linear(input, weight, bias)``; None where it cannot give that."""
        with unwatched():
            pieces = weight.pieces if type(weight) is Banded else _pieces(weight)
            if not pieces or not all(self.suits(input, piece) for piece in pieces):
                return None
            if bias is not None and bias.shape != (sum(piece.shape[0] for piece in pieces),):
                return None  # torch says what is wrong with it
            return self.by_pieces(input, pieces, bias)

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(…, in) and (out, in), contiguous, → (…, out); bias (out) or None."""
        return self.by_pieces(x, _pieces(weight), bias)

    def by_pieces(self, x: torch.Tensor, pieces: Sequence[Piece], bias: torch.Tensor | None = None) -> torch.Tensor:
        """(…, in) and the pieces of (out, in) → (…, out). An output's bits do not depend on where the others are computed."""
        width = pieces[0].shape[1]
        rows = x.float()
        if not rows.is_contiguous():
            rows = rows.contiguous()
        if bias is not None:
            bias = bias.float()
        outputs = sum(piece.shape[0] for piece in pieces)
        out = torch.empty(*x.shape[:-1], outputs, dtype=self.dtype)
        threads = torch.get_num_threads()
        first = 0
        for piece in pieces:
            count = piece.shape[0]
            chunk = min(CHUNK, max(WHOLE_TILES, count // (2 * threads) // WHOLE_TILES * WHOLE_TILES))
            call = Call(
                rows.data_ptr(), piece.lies.data_ptr(), 0 if bias is None else bias.data_ptr() + first * bias.itemsize,
                out.data_ptr() + first * out.itemsize, rows.numel() // width, width, count, outputs,
                forms.record_bytes(piece.scheme, width) if piece.scheme != "raw" else width * self.dtype.itemsize,
                piece.lies.nbytes, chunk, threads * chunk, 0, 0,
            )  # fmt: skip
            self._team(self._addresses[piece.scheme], ctypes.byref(call), threads, 0)
            first += count
        return out


def holds(piece: Piece) -> bool:
    """Whether its memory is as large as its shape says: the code does not look."""
    if piece.scheme == "raw":
        return piece.lies.nbytes == piece.shape[0] * piece.shape[1] * piece.dtype.itemsize
    return forms.fits(piece.scheme, piece.shape[0], piece.shape[1], piece.lies.nbytes)


def _pieces(weight: torch.Tensor) -> tuple[Piece, ...]:
    """A matrix that is there as it is, if it is contiguous."""
    if weight.dim() != 2 or not weight.is_contiguous() or weight.is_meta:
        return ()
    return (Piece.of(weight),)


def executable(code: bytes) -> mmap.mmap:
    """Memory with the code in it, which nothing can write any more."""
    fd = os.memfd_create("potato-code", os.MFD_CLOEXEC)
    try:
        os.write(fd, code)
        return mmap.mmap(fd, len(code), prot=mmap.PROT_READ | mmap.PROT_EXEC)
    finally:
        os.close(fd)


def address(memory: mmap.mmap) -> int:
    """Where it lies."""
    return int(np.frombuffer(memory, dtype=np.uint8).ctypes.data)


def runs_here() -> bool:
    """Whether this processor and this torch can run the code."""
    try:
        team()
        executable(b"\xc3").close()
    except (InternalError, OSError):  # or a system that lets nobody run what it has made
        return False
    return machine.flags() >= FLAGS


@cache
def team() -> Any:
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
