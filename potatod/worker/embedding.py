"""The input embedding, which is never loaded: rows are brought one by one.

    token ids ─▶ the pool, where a part with the row's bytes stays in it ─┐
             └─▶ the file, beside the reader's requests ──────────────────┴─▶ (distinct ids, hidden)

A tied head is bands of the embedding's own bytes, so that most of a model that nearly fits has its rows in the pool; a row read from the
disk waits behind all that the reader has asked for.
"""

from __future__ import annotations

import os
import time
import weakref
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import nn

from potatod.errors import InternalError, ModelDataError
from potatod.manifest import Part
from potatod.plan import Plan
from potatod.pool import Pool
from potatod.reading import fill
from potatod.spans import Spans

from .places import Place
from .rows import unwatched
from .weights import Arrivals, read_part

#: So many bands are asked for at a time: they wait in the page cache, of which a small machine has little.
BANDS_AHEAD: Final = 8


def reader_compares(verify: str, mirrors: Sequence[str]) -> bool:
    """Whether all that the reader brings is compared with its checksum before the worker sees it, and lies in the model folder itself.

    With mirrors it may be a mirror's bytes that are compared, and the embedding is read from the folder.
    """
    return verify != "never" and not mirrors


def _state(fd: int) -> tuple[int, int]:
    stat = os.fstat(fd)
    return stat.st_size, stat.st_mtime_ns


class Rows(Protocol):
    """Bytes of the embedding's file that need not be read from it."""

    def lies(self, file: str, offset: int, length: int) -> memoryview | None:
        """Those bytes, where they stay in memory."""

    def compared(self, file: str, offset: int, length: int) -> bool:
        """Whether they have been compared with their checksum."""

    def decoded(self, tokens: Sequence[int]) -> torch.Tensor | None:
        """The rows themselves, (tokens, hidden), where the embedding is held in another form."""


class Twins:
    """Parts of the sweep that are bytes of the embedding's file."""

    def __init__(self, pool: Pool, plan: Plan, arrivals: Arrivals, compared: bool) -> None:
        """``compared``: see :func:`reader_compares`."""
        self._pool = pool
        self._plan = plan
        self._arrivals = arrivals
        self._compared = compared
        self._parts: dict[str, list[tuple[int, int]]] = {}
        for index, part in enumerate(plan.parts):
            self._parts.setdefault(part.file, []).append((part.offset, index))
        for parts in self._parts.values():
            parts.sort()

    def lies(self, file: str, offset: int, length: int) -> memoryview | None:
        """Those bytes of the file, where a part with them has come and stays in the pool."""
        index = self._come(file, offset, length)
        if index is None or self._plan.parts[index].home != "ram":
            return None
        part = self._plan.parts[index]
        return self._pool.extent(part.home_offset + offset - part.offset, length)

    def compared(self, file: str, offset: int, length: int) -> bool:
        """Whether the reader has compared those bytes with their checksum."""
        return self._compared and self._come(file, offset, length) is not None

    def decoded(self, tokens: Sequence[int]) -> None:
        """Nothing: rows are bytes."""

    def _come(self, file: str, offset: int, length: int) -> int | None:
        """Index of the part with these bytes, if it has come at least once."""
        parts = self._parts.get(file, [])
        below = bisect_right(parts, (offset, len(self._plan.parts))) - 1
        if below < 0:
            return None
        index = parts[below][1]
        part = self._plan.parts[index]
        return index if offset + length <= part.offset + part.length and self._arrivals.seen(index) else None


class Embedding:
    """Brings rows. Of the file each band is compared with its checksum before the first row of it is used, unless the reader has compared those bytes;
    and a file that has changed since is refused."""

    def __init__(self, folder: Path, parts: Sequence[Part], twins: Rows) -> None:
        first, last = parts[0], parts[-1].tensors[0]  # bands in one file, one behind the other
        tensor = first.tensors[0]
        self._parts = parts
        self._twins = twins
        self._unchecked = set(range(len(parts)))
        self._file = first.file
        self._path = folder / first.file
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        self._opened = _state(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        self._dtype: torch.dtype = getattr(torch, tensor.dtype)
        self._width = tensor.shape[1]
        self._row_bytes: int = self._width * self._dtype.itemsize
        self._rows_per_band = tensor.shape[0]
        self._offset = first.offset + tensor.offset
        self._rows = (last.first_row or 0) + last.shape[0]

    def attach(self, module: nn.Module, place: Place, device: torch.device, spans: Spans) -> None:
        """Lets the embedding's own module gather from rows that are brought for it, on the cpu; what it makes of them goes to the device.

        ``place`` is where its weight is bound.
        """
        module.padding_idx = None  # type: ignore[assignment]  # counts for gradients only, and must be a row of what is bound
        place.bind(torch.zeros(1, self._width, dtype=self._dtype))

        def before(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            began = time.monotonic()
            with unwatched():
                ids, rows = self.bring(args[0])
            place.bind(rows)
            spans.add("embedding", f"{len(rows)} rows", began, time.monotonic())
            return ids, *args[1:]

        module.register_forward_pre_hook(before)
        if device.type != "cpu":
            module.register_forward_hook(lambda _module, _args, rows: rows.to(device))

    def bring(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of any shape → ids of the same shape that say which of the rows, and the rows: (distinct ids, hidden) on the cpu."""
        tokens = ids.flatten().tolist()
        distinct = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
        if (decoded := self._twins.decoded(list(distinct))) is not None:
            return torch.tensor([distinct[token] for token in tokens]).view(ids.shape), decoded
        rows = torch.empty(len(distinct), self._width, dtype=self._dtype)
        memory = memoryview(rows.view(torch.uint8).flatten().numpy())  # type: ignore[arg-type]  # numpy says less than it can
        left: dict[int, memoryview] = {}
        for token, number in distinct.items():
            if not 0 <= token < self._rows:
                raise InternalError(f"token {token} was to be embedded, and the embedding has {self._rows} rows")
            target = memory[number * self._row_bytes :][: self._row_bytes]
            lies = self._twins.lies(self._file, self._at(token), self._row_bytes)
            if lies is None:
                left[token] = target
            else:
                target[:] = lies
        if left:
            self._read(left)
        return torch.tensor([distinct[token] for token in tokens]).view(ids.shape), rows

    def _read(self, targets: Mapping[int, memoryview]) -> None:
        """Rows from the file: what can be asked for before it is waited for is."""
        if _state(self._fd) != self._opened:
            raise ModelDataError(f"{self._path} was changed while it is being served; run `potatod verify`, then start again")
        by_band: dict[int, list[int]] = {}
        alone = []
        for row in targets:
            band = row // self._rows_per_band
            if band in self._unchecked and not self._twins.compared(self._file, self._at(row), self._row_bytes):
                by_band.setdefault(band, []).append(row)
            else:
                alone.append(row)
                self._ask(self._at(row), self._row_bytes)
        bands = sorted(by_band)
        for at in range(0, len(bands), BANDS_AHEAD):
            several = bands[at : at + BANDS_AHEAD]
            for band in several:
                self._ask(self._parts[band].offset, self._parts[band].length)
            for band in several:
                self._check(band, {row: targets[row] for row in by_band[band]})
        for row in alone:
            fill(self._fd, self._path, self._at(row), targets[row])

    def _check(self, band: int, targets: Mapping[int, memoryview]) -> None:
        """Reads the band as a whole, and takes its rows out of what was compared."""
        part = self._parts[band]
        data = memoryview(bytearray(part.length))
        read_part(self._fd, self._path, part, data)
        for row, target in targets.items():
            target[:] = data[self._at(row) - part.offset :][: self._row_bytes]
        self._unchecked.discard(band)

    def _ask(self, offset: int, length: int) -> None:
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def _at(self, row: int) -> int:
        """In the file."""
        return self._offset + row * self._row_bytes
