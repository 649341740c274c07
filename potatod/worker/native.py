"""Runs microkernel.py's machine code on the threads that torch computes with.

The code lies in memory that can be read and executed and not written. It runs in the OpenMP team of torch's own runtime: a second pool of threads would
wait beside the first one, both spinning.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from potatod import forms, machine
from potatod.dtypes import RAW
from potatod.errors import InternalError

from .banded import Banded, Piece
from .rows import unwatched

#: Outputs that a thread claims at a time, at most: few enough that threads end together.
CHUNK: Final = 48
#: Outputs in a multiple of which every kind of tile is whole.
WHOLE_TILES: Final = 12
#: The same of AMX: what lies in its registers is sixteen outputs at a time.
BLOCK_OUTPUTS: Final = 64
WHOLE_BLOCKS: Final = 16
#: fp32 in a register of AVX2.
LANES: Final = 8
#: Schemes whose weights are multiplied as integers, with rows that are rounded first: see integer_walk.py.
INTEGERS: Final = frozenset({"int8", "int4", "q4_k", "q5_k", "q6_k"})
#: Columns that share a scale.
GROUP: Final = 32
#: Schemes whose weights are multiplied by AMX where there is code that makes PAIRED rows: see amx_walk.py.
IN_PAIRS: Final = frozenset({RAW, "packed"})
#: Forms of rows: fp32, and what becomes of that in rounding.py and pairs.py. The code that makes them is called so among the schemes' codes.
PLAIN, ROUNDED, PAIRED = "", "rounded", "paired"
#: Columns of a row that are rounded to 16 bits of the largest of them.
ALIKE: Final = 128
#: A row has a multiple of so many columns: a register of AVX-512, a group, a tile's row of AMX.
_COLUMNS: Final = {PLAIN: 16, ROUNDED: GROUP, PAIRED: 32}


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

    def __init__(self, codes: Mapping[str, bytes], dtype: torch.dtype, most_rows: int | None = None) -> None:
        """``codes``: machine code by the scheme's name; ``most_rows``: of more than so many the products with plain numbers are left to torch."""
        self.dtype = dtype
        self.most_rows = most_rows
        self.codes = codes
        if PAIRED in codes and not machine.lets_us_use_amx():
            raise InternalError("this process may not use the processor's AMX, which the one that tried it out could")
        self._memory = {scheme: executable(code) for scheme, code in codes.items()}
        self.addresses = {scheme: address(memory) for scheme, memory in self._memory.items()}
        self._team = team()

    def takes(self, shape: Sequence[int], scheme: str = RAW) -> bool:
        """Whether weights of this shape can be multiplied with."""
        return whole(shape, self.form(scheme))

    def form(self, scheme: str) -> str:
        """What rows are multiplied with weights of this scheme: ROUNDED, PAIRED, or PLAIN ones."""
        if scheme in INTEGERS:
            return ROUNDED
        return PAIRED if scheme in IN_PAIRS and PAIRED in self.codes else PLAIN

    def forms(self, pieces: Iterable[Piece]) -> list[str]:
        """Those that are not PLAIN and have to be made of rows first, to multiply them with all pieces: codes' names."""
        return sorted({self.form(piece.scheme) for piece in pieces} - {PLAIN})

    def suits(self, x: torch.Tensor, piece: Piece) -> bool:
        """Whether it can give this product."""
        return x.dtype is self.dtype and x.is_cpu and x.shape[-1] == piece.shape[-1] and self.has(piece)

    def leaves(self, rows: int, pieces: Iterable[Piece]) -> bool:
        """Whether torch's product is the faster with so many rows."""
        return self.most_rows is not None and rows > self.most_rows and all(piece.scheme == RAW for piece in pieces)

    def has(self, piece: Piece) -> bool:
        """Whether there is code for such weights."""
        return (
            piece.scheme in self.codes and piece.dtype is self.dtype and self.takes(piece.shape, piece.scheme) and piece.lies.is_cpu
            and holds(piece)
        )  # fmt: skip

    def attempt(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
        """``torch.nn.functional.linear(input, weight, bias)``; None where it cannot give that."""
        with unwatched():
            pieces = pieces_of(weight)
            if not pieces or not all(self.suits(input, piece) for piece in pieces) or self.leaves(input.numel() // input.shape[-1], pieces):
                return None
            if bias is not None and bias.shape != (sum(piece.shape[0] for piece in pieces),):
                return None  # torch says what is wrong with it
            return self.by_pieces(input, pieces, bias)

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(…, in) and (out, in), contiguous, → (…, out); bias (out) or None."""
        return self.by_pieces(x, pieces_of(weight), bias)

    def by_pieces(self, x: torch.Tensor, pieces: Sequence[Piece], bias: torch.Tensor | None = None) -> torch.Tensor:
        """(…, in) and the pieces of (out, in) → (…, out). An output's bits do not depend on where the others are computed."""
        rows = x.float()
        if not rows.is_contiguous():
            rows = rows.contiguous()
        if bias is not None:
            bias = bias.float()
        out = torch.empty(*x.shape[:-1], sum(piece.shape[0] for piece in pieces), dtype=self.dtype)
        threads, width = torch.get_num_threads(), rows.shape[-1]
        count = rows.numel() // width
        made = {form: torch.empty(count * row_bytes(form, width), dtype=torch.uint8) for form in self.forms(pieces)}
        for form, lies in made.items():
            self._take(form, making(rows.data_ptr(), count, width, lies.data_ptr()), threads)
        at = {PLAIN: rows.data_ptr(), **{form: lies.data_ptr() for form, lies in made.items()}}
        for scheme, call in self.calls(at, count, pieces, bias, out.data_ptr()):
            self._take(scheme, call, threads)
        return out

    def _take(self, code: str, call: Call, threads: int) -> None:
        self._team(self.addresses[code], ctypes.byref(call), threads, 0)

    def calls(self, x: Mapping[str, int], rows: int, pieces: Sequence[Piece], bias: torch.Tensor | None, out: int) -> Iterator[tuple[str, Call]]:
        """What the code of each scheme is told to multiply ``rows`` rows with the pieces of a matrix. ``x``: addresses of the rows in each form that
        the pieces need, PLAIN ones in fp32; ``out``: of what is given; the bias is in fp32."""
        threads = torch.get_num_threads()
        outputs = sum(piece.shape[0] for piece in pieces)
        first = 0
        for piece in pieces:
            count, width = piece.shape
            form = self.form(piece.scheme)
            most, step = (BLOCK_OUTPUTS, WHOLE_BLOCKS) if form == PAIRED else (CHUNK, WHOLE_TILES)
            chunk = min(most, max(step, count // (2 * threads) // step * step))
            yield piece.scheme, Call(
                x[form], piece.lies.data_ptr(), 0 if bias is None else bias.data_ptr() + first * bias.itemsize,
                out + first * self.dtype.itemsize, rows, width, count, outputs,
                forms.record_bytes(piece.scheme, width) if piece.scheme != RAW else width * self.dtype.itemsize,
                piece.lies.nbytes, chunk, threads * chunk, 0, 0,
            )  # fmt: skip
            first += count


def whole(shape: Sequence[int], form: str) -> bool:
    """Whether rows in this form have whole steps in a matrix of this shape."""
    return len(shape) == 2 and shape[1] % _COLUMNS[form] == 0


def row_bytes(form: str, width: int) -> int:
    """Of a row in this form, which is not PLAIN.

    ROUNDED: its integers; of each 64 of them their higher bytes, then their lower ones; the scale of each ALIKE of them, the sum of each GROUP of them;
    whole lines of a cache. PAIRED: bf16.
    """
    if form == PAIRED:
        return 2 * width
    numbers = 2 * width + 2 * 64 * (width // 64) + 4 * -(-width // ALIKE) + 4 * -(-width // (GROUP * LANES)) * LANES
    return -(-numbers // 64) * 64


def making(x: int, rows: int, width: int, out: int) -> Call:
    """What the code that makes a form of ``rows`` rows of fp32 at the address ``x`` is told; ``out``: so many times :func:`row_bytes`."""
    return Call(x, 0, 0, out, rows, width, 0, 0, 0, 0, 1, 0, 0, 0)


def holds(piece: Piece) -> bool:
    """Whether its memory is as large as its shape says: the code does not look."""
    if piece.scheme == RAW:
        return piece.lies.nbytes == piece.shape[0] * piece.shape[1] * piece.dtype.itemsize
    return forms.fits(piece.scheme, piece.shape[0], piece.shape[1], piece.lies.nbytes)


def pieces_of(weight: torch.Tensor) -> tuple[Piece, ...]:
    """Of a matrix; none where it lies as no code of ours reads it."""
    if type(weight) is Banded:
        return weight.pieces
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
    return machine.runs_our_code()


@cache
def team() -> Any:
    """``GOMP_parallel(function, data, threads, flags)`` of the OpenMP runtime that torch itself uses: others that are loaded, as sentencepiece's own,
    have threads of their own, and those of both would wait for work at the same time. It is looked for where the linker has looked: among what all
    libraries see, which torch's is, unless one was loaded before it; then among what torch needs."""
    for library in (None, str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")):
        with contextlib.suppress(OSError, AttributeError):
            function: Any = ctypes.CDLL(library).GOMP_parallel
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            function.restype = None
            return function
    raise InternalError("torch has no OpenMP runtime here that programs can use")
