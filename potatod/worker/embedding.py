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

import torch
from torch import nn

from potatod.manifest import Part
from potatod.plan import Plan
from potatod.pool import Pool
from potatod.spans import Spans

from .places import Place
from .rows import unwatched
from .weights import Arrivals, read_bytes, read_part


class Twins:
    """Parts of the sweep that are bytes of the embedding's file."""

    def __init__(self, pool: Pool, plan: Plan, arrivals: Arrivals, compared: bool) -> None:
        """``compared``: whether the reader compares all that it brings first with its checksum, from the folder that the embedding is read from."""
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
    """Brings rows. Each band of the file is checked against its checksum before the first row of it is used, unless the reader has done so."""

    def __init__(self, folder: Path, parts: Sequence[Part], twins: Twins) -> None:
        first = parts[0]  # of bands in one file, one behind the other
        tensor = first.tensors[0]
        self._parts = parts
        self._twins = twins
        self._unchecked = set(range(len(parts)))
        self._file = first.file
        self._path = folder / first.file
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)  # what is checked is the file that is read, whatever has its name by then
        weakref.finalize(self, os.close, self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        self._dtype: torch.dtype = getattr(torch, tensor.dtype)
        self._width = tensor.shape[1]
        self._row_bytes: int = self._width * self._dtype.itemsize
        self._rows_per_band = tensor.shape[0]
        self._offset = first.offset + tensor.offset

    def attach(self, module: nn.Module, place: Place, device: torch.device, spans: Spans) -> None:
        """Lets the embedding's own module gather from rows that are brought for it, on the cpu; what it makes of them goes to the device.

        ``place`` is where its weight is bound.
        """
        module.padding_idx = None  # type: ignore[assignment]  # counts for gradients only, and must be a row of what is bound
        place.bind(torch.zeros(1, self._width, dtype=self._dtype))

        def bring(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            began = time.monotonic()
            with unwatched():
                ids, rows = self.bring(args[0])
            place.bind(rows)
            spans.add("embedding", f"{len(rows)} rows", began, time.monotonic())
            return ids, *args[1:]

        module.register_forward_pre_hook(bring)
        if device.type != "cpu":
            module.register_forward_hook(lambda _module, _args, rows: rows.to(device))

    def bring(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of any shape → ids of the same shape that say which of the rows, and the rows: (distinct ids, hidden) on the cpu."""
        tokens = ids.flatten().tolist()
        distinct = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
        rows = torch.empty(len(distinct), self._width, dtype=self._dtype)
        memory = memoryview(rows.view(torch.uint8).flatten().numpy())  # type: ignore[arg-type]  # numpy says less than it can
        targets = {token: memory[number * self._row_bytes :][: self._row_bytes] for token, number in distinct.items()}
        left = []
        for token, target in targets.items():
            lies = self._twins.lies(self._file, self._at(token), self._row_bytes)
            if lies is None:
                left.append(token)
            else:
                target[:] = lies
        self._read(left, targets)
        return torch.tensor([distinct[token] for token in tokens]).view(ids.shape), rows

    def _read(self, rows: Sequence[int], targets: Mapping[int, memoryview]) -> None:
        """From the file: all is asked for before anything is waited for."""
        bands = {row // self._rows_per_band for row in rows if not self._twins.compared(self._file, self._at(row), self._row_bytes)} & self._unchecked
        for band in bands:
            self._ask(self._parts[band].offset, self._parts[band].length)
        for row in rows:
            self._ask(self._at(row), self._row_bytes)
        for band in bands:
            read_part(self._fd, self._path, self._parts[band], memoryview(bytearray(self._parts[band].length)))
        self._unchecked -= bands
        for row in rows:
            read_bytes(self._fd, self._path, self._at(row), targets[row])

    def _ask(self, offset: int, length: int) -> None:
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def _at(self, row: int) -> int:
        """In the file."""
        return self._offset + row * self._row_bytes
