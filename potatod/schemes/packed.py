"""packed: exact bf16 in about eleven bits.

Of trained weights the exponents of nearly all lie in a window of eight. Sign, mantissa and the place in the window are 11 bits. 16 weights are
11 words of 16 bits: each of 11 weights keeps its bits in their natural places (sign, the lowest three of the exponent, mantissa), so that to decode
it is one AND and one ADD; the five bits that the words have to spare hold the other 5 weights, 11 bits each.

    band    [record of each row][gaps and others of row 0][of row 1] … [16 bytes that nothing needs]
    record  [start uint32][gaps uint16][others uint8][base uint8][words of the first block][of the next] …
    block   256 columns, the last one fewer: segment s is columns s·n to (s + 1)·n of its n · 16;
            words (11, n): word w of lane i holds the weight of segment w, and five bits more:
            of word 2k the lowest five bits of segment 11 + k, of word 2k + 1 the next five, of word 10 the signs

The lanes of a block of 256 stand in the order in which vector instructions put them into fp32 (LANES).
``base`` is the window's lowest exponent, with its three lowest bits clear of what is added: exponent = base + place. ``start`` is the byte of the
band where the row's gaps begin. A weight whose exponent is one window (eight) lower stands among the *gaps*: columns between it and the one
before, a byte each, 255 for "255 further, nothing there". Whatever lies elsewhere (zeros, subnormals, infinities) is an *other*:
[column uint16][bf16], behind the row's gaps. Rows of 65,536 columns and more cannot be packed, nor those with more than 255 others.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from potatod import forms
from potatod.errors import ModelDataError

Array = npt.NDArray[Any]

BLOCK: Final = 256
#: Which column of a segment the lanes of a whole block hold.
LANES: Final = (0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15)
_WORDS: Final = 11
_HEAD: Final = 8
_WINDOW: Final = 8
_KEPT: Final = 0x83FF
_MOST_OTHERS: Final = 255
_SAMPLE: Final = 512
#: Of the bytes of bf16: what takes more is better left as it is.
_WORTH: Final = 0.9


class Unpackable(ValueError):
    """These weights are no such weights."""


class Packed:
    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Raises :class:`Unpackable` where it is not bf16 of which enough lies in a window."""
        rows, columns = tensor.shape
        if tensor.dtype != torch.bfloat16 or columns > 0xFFFF:
            raise Unpackable
        bits = tensor.detach().contiguous().view(torch.int16).numpy().view(np.uint16)
        exponent = (bits >> 7).astype(np.uint8)  # the sign falls off
        base = _bases(exponent)
        place = exponent.astype(np.int16) - base[:, None].astype(np.int16)
        inside = (place >= 0) & (place < _WINDOW)
        lower = (place < 0) & (place >= -_WINDOW)
        code = (bits & 0x807F) | ((place & 7).astype(np.uint16) << 7)
        record = forms.record_bytes("packed", columns)
        lies = np.zeros((rows, record), dtype=np.uint8)
        lies[:, 7] = base
        whole = columns // BLOCK * BLOCK
        for part in (code[:, :whole].reshape(-1, BLOCK // 16)[:, LANES].reshape(rows, whole // BLOCK, BLOCK), code[:, None, whole:]):
            words = _words(part).reshape(rows, -1).view(np.uint8)
            at = _HEAD if part.shape[2] == BLOCK else _HEAD + whole // 16 * 22
            lies[:, at : at + words.shape[1]] = words
        more, gaps, others = _exceptions(bits, lower, ~(inside | lower))
        if others.max(initial=0) > _MOST_OTHERS or gaps.max(initial=0) > 0xFFFF:
            raise Unpackable
        if lies.size + len(more) > _WORTH * tensor.nbytes:
            raise Unpackable
        sizes = gaps + 4 * others
        starts = rows * record + np.concatenate([[0], np.cumsum(sizes)[:-1]])
        lies[:, 0:4] = starts.astype("<u4")[:, None].view(np.uint8)
        lies[:, 4:6] = gaps.astype("<u2")[:, None].view(np.uint8)
        lies[:, 6] = others
        return torch.from_numpy(np.concatenate([lies.reshape(-1), more, np.zeros(forms.SPARE_BYTES, dtype=np.uint8)]))

    def view(self, lies: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        rows, columns = shape
        record = forms.record_bytes("packed", columns)
        records = lies[: rows * record].view(rows, record)
        base = records[:, 7:8].to(torch.int16) << 7
        out = torch.empty(rows, columns, dtype=torch.int16, device=lies.device)
        whole = columns // BLOCK * BLOCK
        borders = [_HEAD + column // 16 * 22 for column in (0, whole, columns)]
        of_blocks, of_rest = (records[:, a:b].contiguous().view(torch.int16) for a, b in pairwise(borders))
        if whole:
            order = torch.tensor(LANES, device=lies.device).argsort()
            codes = _codes(of_blocks.view(rows, whole // BLOCK, _WORDS, BLOCK // 16))[..., order]
            out[:, :whole] = codes.view(rows, whole) + base
        if whole < columns:
            out[:, whole:] = _codes(of_rest.view(rows, 1, _WORDS, -1)).view(rows, -1) + base
        _corrected(out, lies, records, rows, columns)
        return out.view(torch.bfloat16).to(getattr(torch, dtype))


def _bases(exponent: Array) -> Array:
    """(rows,) uint8: the window's lowest exponent for which a row's exceptions take the fewest bytes, by a sample of its columns."""
    exponent = exponent[:, :: max(1, exponent.shape[1] // _SAMPLE)]
    rows, columns = exponent.shape
    span = 256 + _WINDOW
    index = exponent + (np.arange(rows) * span + _WINDOW)[:, None]
    counts = np.bincount(index.reshape(-1), minlength=rows * span).reshape(rows, span)
    sums = np.concatenate([np.zeros((rows, 1), dtype=np.int64), np.cumsum(counts, axis=1)], axis=1)
    of_window = sums[:, _WINDOW:] - sums[:, :-_WINDOW]  # of the exponents from −8, −7, … on
    lower, inside = of_window[:, : 257 - _WINDOW], of_window[:, _WINDOW:]
    cost = lower[:, : inside.shape[1]] + 4 * (columns - inside - lower[:, : inside.shape[1]])
    best: Array = np.argmin(cost, axis=1).astype(np.uint8)
    return best


def _words(code: Array) -> Array:
    """(rows, blocks, columns) of codes → (rows, blocks, 11, columns / 16) words."""
    rows, blocks, columns = code.shape
    segments = code.reshape(rows, blocks, 16, columns // 16)
    words = segments[:, :, :_WORDS].copy()
    for k in range(5):
        other = segments[:, :, _WORDS + k]
        words[:, :, 2 * k] |= (other & 31) << 10
        words[:, :, 2 * k + 1] |= (other >> 5 & 31) << 10
        words[:, :, 10] |= (other >> 15) << (10 + k)
    return words


def _codes(words: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`_words`: (rows, blocks, 11, lanes) int16 → (rows, blocks, 16, lanes)."""
    kept = words & (_KEPT - 0x10000)
    spare = (words >> 10) & 31
    others = spare[:, :, 0:10:2] | spare[:, :, 1:10:2] << 5
    signs = torch.stack([(spare[:, :, 10] >> k & 1) << 15 for k in range(5)], dim=2)
    return torch.cat([kept, others | signs], dim=2)


def _exceptions(bits: Array, lower: Array, elsewhere: Array) -> tuple[Array, Array, Array]:
    """The bytes behind the records, and of each row how many gaps and others there are."""
    rows = len(bits)
    row, column = np.nonzero(lower)
    before = np.where(np.diff(row, prepend=-1) != 0, -1, np.roll(column, 1))
    between = column - before - 1
    entries = between // 255 + 1
    gaps = np.bincount(row, weights=entries, minlength=rows).astype(np.int64)
    other_row, other_column = np.nonzero(elsewhere)
    others = np.bincount(other_row, minlength=rows)
    ends = np.cumsum(gaps + 4 * others)
    starts = ends - gaps - 4 * others
    out = np.full(ends[-1] if rows else 0, 255, dtype=np.uint8)
    # the last entry of each weight says how far it is from the one before; those in front of it stay 255
    number = np.cumsum(entries) - (np.cumsum(gaps) - gaps)[row] - 1
    out[starts[row] + number] = between % 255
    place = (starts + gaps)[other_row] + 4 * (np.arange(len(other_row)) - (np.cumsum(others) - others)[other_row])
    for byte, values in enumerate((other_column & 255, other_column >> 8, bits[elsewhere] & 255, bits[elsewhere] >> 8)):
        out[place + byte] = values
    return out, gaps, others


def _corrected(out: torch.Tensor, lies: torch.Tensor, records: torch.Tensor, rows: int, columns: int) -> None:
    """Puts what no window holds right, with operations that any device has."""
    starts = records[:, 0:4].reshape(-1).clone().view(torch.int32).long() & 0xFFFFFFFF  # a single row counts as contiguous whatever its stride
    gaps = records[:, 4:6].reshape(-1).clone().view(torch.int16).long() & 0xFFFF
    others = records[:, 6].long()
    if int((gaps + 4 * others).sum()) > len(lies) - rows * records.shape[1]:
        raise ModelDataError("packed weights say that they have more exceptions than there are bytes: the folder is damaged; run `potatod verify`")
    row, number = _counted(gaps)
    bytes_ = lies[(starts[row] + number).clamp(max=len(lies) - 1)].long()
    steps = bytes_ + (bytes_ != 255).long()
    reached = torch.cumsum(steps, 0)
    before = torch.cumsum(gaps, 0) - gaps  # of each row: how many entries come before it
    padded = torch.cat([reached.new_zeros(1), reached])
    column = reached - padded[before[row]] - 1
    real = (bytes_ != 255) & (column < columns)
    flat = out.view(-1)
    where = (row * columns + column)[real]
    flat[where] -= _WINDOW << 7
    row, number = _counted(others)
    at = starts[row] + gaps[row] + 4 * number
    pairs = lies[(at[:, None] + torch.arange(4, device=lies.device)).clamp(max=len(lies) - 1)].contiguous().view(torch.int16)
    column = pairs[:, 0].long() & 0xFFFF
    real = column < columns
    flat[(row * columns + column)[real]] = pairs[real, 1]


def _counted(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For ``counts`` of each row: the row and the number in its row of every entry."""
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    first = torch.cumsum(counts, 0) - counts
    return row, torch.arange(len(row), device=counts.device) - first[row]
