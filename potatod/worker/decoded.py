"""torch's product with matrices that are another way of writing bf16: they are decoded first, a whole one at a time.

For a processor that has instructions for bf16: there torch multiplies what lies in memory as bf16, and its sums are in an order that depends on the
matrix's shape. Only a whole matrix gives the same bits. Elsewhere our own product decodes while it multiplies (native.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
from torch.nn import functional

from potatod import forms

from .banded import Banded, Piece
from .native import CHUNK, LANES, Call, address, executable, holds, team
from .rows import Table, linear_in_groups, unwatched


class Decoded:
    def __init__(self, codes: Mapping[str, bytes]) -> None:
        """``codes``: machine code by the scheme's name, microkernel.decoding."""
        self.codes = codes
        self._memory = {scheme: executable(code) for scheme, code in codes.items()}
        self._team = team()
        #: where a matrix is put, until the next one
        self._matrix = torch.empty(0, dtype=torch.bfloat16)

    def attempt(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, table: Table | None = None
    ) -> torch.Tensor | None:
        """``torch.nn.functional.linear(input, weight, bias)``, in the groups of ``table`` where there is one; None where it cannot give that."""
        with unwatched():
            if type(weight) is not Banded or not all(self._suits(piece) for piece in weight.pieces):
                return None
            matrix = self.values(weight.pieces)
            return functional.linear(input, matrix, bias) if table is None else linear_in_groups(table, input, matrix, bias)

    def values(self, pieces: tuple[Piece, ...]) -> torch.Tensor:
        """(rows, columns) of all of them, valid until the next call."""
        rows, width = sum(piece.shape[0] for piece in pieces), pieces[0].shape[1]
        if self._matrix.numel() < rows * width:
            self._matrix = torch.empty(rows * width, dtype=torch.bfloat16)
        matrix, threads, first = self._matrix[: rows * width].view(rows, width), torch.get_num_threads(), 0
        for piece in pieces:
            out = matrix[first : first + piece.shape[0]]
            call = Call(
                0, piece.lies.data_ptr(), 0, out.data_ptr(), 0, width, piece.shape[0], width, forms.record_bytes(piece.scheme, width),
                piece.lies.nbytes, CHUNK, threads * CHUNK, 0, 0,
            )  # fmt: skip
            self._team(address(self._memory[piece.scheme]), ctypes.byref(call), threads, 0)
            first += piece.shape[0]
        return matrix

    def _suits(self, piece: Piece) -> bool:
        return (
            piece.scheme in self.codes and piece.dtype is torch.bfloat16 and len(piece.shape) == 2 and piece.shape[1] % LANES == 0
            and piece.lies.is_cpu and holds(piece)
        )  # fmt: skip
