"""Runs attention_code.py's and append_code.py's machine code: attention of all sequences of a sweep in one call for each layer, and their new keys and
values in one before it.

For families that attend as Llama does, in layers where a token sees everything before it or a window of that, on processors with AVX2. Where it is
used, blocks of KV hold their keys dimension by dimension.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from potatod.kv_layout import BLOCK

from . import native
from .kv import Batch, Branch, Paged, Piece, rounded
from .native import LANES

#: Queries that are computed together: rows of one sequence times the query heads of a group. At least the largest group there is.
QUERIES: Final = 16
#: Keys are scored in whole multiples of so many.
KEYS: Final = 64
#: What is said of each item: see attention_code.py.
ITEM: Final = ("row", "rows", "position", "first", "blocks")
#: Of rows that come into the same block: the first one, how many, where the block's keys and values lie, and which of its tokens is the first: see
#: append_code.py.
RUN: Final = ("row", "rows", "keys", "values", "place")


class Attend(ctypes.Structure):
    """What the code is told."""

    _fields_ = [  # ctypes reads it
        #: fp32 (rows, heads, depth)
        ("queries", ctypes.c_void_p),
        #: (rows, heads, width)
        ("out", ctypes.c_void_p),
        #: of ITEM, int64 each
        ("items", ctypes.c_void_p),
        #: addresses of a block's keys (kv_heads, depth, BLOCK) and values (kv_heads, BLOCK, width), block after block
        ("blocks", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        #: of each thread
        ("scratch_floats", ctypes.c_int64),
        #: items times heads of keys
        ("count", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("width", ctypes.c_int64),
        #: scores of a query that there is room for
        ("room", ctypes.c_int64),
        #: tokens that one sees, itself included; 0: all
        ("window", ctypes.c_int64),
        #: items that threads have taken on, and threads that have begun, so far
        ("claimed", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("scaling", ctypes.c_float),
    ]


class Append(ctypes.Structure):
    """What the code is told that takes new keys and values."""

    _fields_ = [  # ctypes reads it
        #: (kv_heads, rows, depth) and (kv_heads, rows, width), of what is kept
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        #: of RUN, int64 each
        ("runs", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("width", ctypes.c_int64),
        #: numbers from one head, and from one row, to the next
        ("key_head", ctypes.c_int64),
        ("key_row", ctypes.c_int64),
        ("value_head", ctypes.c_int64),
        ("value_row", ctypes.c_int64),
    ]


class NativeAttention:
    def __init__(self, codes: Sequence[bytes], dtype: torch.dtype, kv: torch.dtype | None = None) -> None:
        """``codes``: machine code that attends, and that appends; ``dtype``: of queries and results; ``kv``: what keys and values are kept as, None for
        the same."""
        self.codes = codes
        self.dtype = dtype
        self._kept = kv or dtype
        self._memory = [native.executable(code) for code in codes]
        self._address = native.address(self._memory[0])
        self._append = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(native.address(self._memory[1]))
        self._team = native.team()
        self._scratch = torch.empty(0)

    def takes(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Whether it can attend with tensors of these shapes, (1, heads, tokens, depth or width)."""
        return (
            query.dtype is key.dtype is value.dtype is self.dtype and query.is_cpu and query.shape[3] % LANES == 0 == value.shape[3] % LANES
            and query.shape[1] // key.shape[1] <= QUERIES
        )  # fmt: skip

    def append(self, batch: Batch, layer: int, key: torch.Tensor, value: torch.Tensor, window: int | None) -> None:
        """(1, kv_heads, tokens, depth or width) of all pieces: each takes its own."""
        key, value = (_inner(rounded(each, self._kept)) for each in (key, value))
        if "runs" not in batch.masks:  # the same in every layer
            batch.masks["runs"] = [*_runs(batch.pieces)]
        runs: list[int] = []
        for kv, tokens, row, rows, block, place in batch.masks["runs"]:
            addresses = kv.room(layer, tokens, key, value, window)
            runs += (row, rows, addresses[2 * block], addresses[2 * block + 1], place)
        table = np.array(runs, dtype=np.int64)
        call = Append(
            key.data_ptr(), value.data_ptr(), table.ctypes.data, len(runs) // len(RUN), key.shape[1], key.shape[3], value.shape[3],
            key.stride(1), key.stride(2), value.stride(1), value.stride(2),
        )  # fmt: skip
        self._append(ctypes.byref(call))
        for piece in batch.pieces:
            if isinstance(piece.kv, Branch):  # it begins with what others have taken
                own = slice(piece.first, piece.end)
                piece.kv.append(layer, key[:, :, own], value[:, :, own], window)

    def __call__(
        self, query: torch.Tensor, batch: Batch, layer: int, window: int | None, scaling: float, kv_heads: int, width: int
    ) -> torch.Tensor:  # fmt: skip
        """(1, heads, tokens, depth), the KV of these tokens appended already → (1, tokens, heads, width)."""
        heads, tokens, depth = query.shape[1:]
        group = heads // kv_heads
        queries = query[0].transpose(0, 1).float().contiguous()  # (tokens, heads, depth)
        out = torch.empty(1, tokens, heads, width, dtype=self.dtype)
        shared = ("items", group, window)
        if shared not in batch.masks:
            batch.masks[shared] = _items(batch.pieces, layer, group, window)
        table, room = batch.masks[shared]
        addresses = np.array([address for piece in batch.pieces for address in _paged(piece).addresses(layer)], dtype=np.int64)
        floats = QUERIES * (depth + width + room)
        threads = torch.get_num_threads()
        if self._scratch.numel() < threads * floats:
            self._scratch = torch.empty(threads * floats * 5 // 4)
        call = Attend(
            queries.data_ptr(), out.data_ptr(), table.ctypes.data, addresses.ctypes.data, self._scratch.data_ptr(), floats,
            len(table) * kv_heads, heads, kv_heads, group, depth, width, room, window or 0, 0, 0, scaling,
        )  # fmt: skip
        self._team(self._address, ctypes.byref(call), threads, 0)
        return out


def _inner(some: torch.Tensor) -> torch.Tensor:
    """With each head's numbers beside each other."""
    return some if some.stride(3) == 1 else some.contiguous()


def _paged(piece: Piece) -> Paged:
    assert isinstance(piece.kv, Paged)
    return piece.kv


def _runs(pieces: Sequence[Piece]) -> Iterator[tuple[Paged, int, int, int, int, int]]:
    """Of those that are no branches: whose it is and the tokens that it takes in all, then the rows that come into the same block: the first one, how
    many, which block of the sequence, and which of its tokens is the first."""
    for piece in pieces:
        kv = _paged(piece)
        at, row = kv.length, piece.first
        while row < piece.end and not isinstance(kv, Branch):
            block, place = divmod(at, BLOCK)
            rows = min(piece.end - row, BLOCK - place)
            yield kv, piece.end - piece.first, row, rows, block, place
            at, row = at + rows, row + rows


def _items(pieces: Sequence[Piece], layer: int, group: int, window: int | None) -> tuple[NDArray[np.int64], int]:
    """(items, len(ITEM)), and scores of a query that there must be room for. Every layer with this window has the same."""
    items: list[tuple[int, ...]] = []
    blocks = most = 0
    together = max(1, QUERIES // 2 // group)  # rows of an item
    for piece in pieces:
        for row in range(piece.first, piece.end, together):
            rows = min(together, piece.end - row)
            position = piece.start + row - piece.first
            first = 0 if window is None else max(0, position - window + 1) // KEYS * KEYS
            items.append((row, rows, position, first, blocks + first // BLOCK))
            most = max(most, position + rows - first)
        blocks += len(_paged(piece).addresses(layer)) // 2
    return np.array(items, dtype=np.int64), -(-most // KEYS) * KEYS
