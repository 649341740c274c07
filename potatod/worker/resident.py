"""Weights that lie in memory for good, as a draft model's do: lent like those that stream, and rows of its embedding beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from potatod import drafts, schemes
from potatod.manifest import Manifest, Part

from .banded import Scratch
from .weights import Bound, Group, bind_views, groups_of, read_part


class Resident:
    """Lends weights that lie in memory for good: read and compared with their checksums once."""

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device) -> None:
        self._scratch = Scratch()
        self._head = drafts.decoded_from(manifest)
        #: of these files the bytes stay in RAM, wherever the weights are: rows of the embedding come from them
        embedding = {part.file for shard in manifest.shards if shard.kind == "embed" for part in shard.parts}
        self._kept = {part.file for part, _ in self._head} or embedding
        self._lies: dict[str, list[tuple[int, torch.Tensor]]] = {}
        self._views: dict[int, list[Bound]] = {}
        for group in groups_of(manifest):
            lying = [(self._read(folder, part).to(device), 0) for part in group.parts]
            self._views[group.indices[0]] = bind_views(group, lying, self._scratch)
        for shard in manifest.shards:
            for part in shard.parts if shard.kind == "embed" and not self._head else ():
                if self.lies(part.file, part.offset, part.length) is None:
                    self._read(folder, part)

    def upload(self, group: Group) -> None:
        """Nothing is to be brought."""

    @contextmanager
    def lend(self, group: Group) -> Iterator[list[Bound]]:
        self._scratch.begin()
        yield self._views[group.indices[0]]

    # the embedding's rows: see embedding.Twins

    def lies(self, file: str, offset: int, length: int) -> memoryview | None:
        for begins, data in self._lies.get(file, ()):
            if begins <= offset and offset + length <= begins + data.numel():
                return memoryview(data.numpy())[offset - begins : offset - begins + length]  # type: ignore[arg-type]  # numpy says less than it can
        return None

    def compared(self, file: str, offset: int, length: int) -> bool:
        return self.lies(file, offset, length) is not None

    def decoded(self, tokens: Sequence[int]) -> torch.Tensor | None:
        if not self._head:
            return None
        rows = []
        for token in tokens:
            part, band = next((part, band) for part, band in self._head if (band.first_row or 0) <= token < (band.first_row or 0) + band.shape[0])
            record = band.length // band.shape[0]
            lies = self.lies(part.file, part.offset + band.offset + (token - (band.first_row or 0)) * record, record)
            assert lies is not None
            rows.append(schemes.get(band.scheme).view(torch.frombuffer(lies, dtype=torch.uint8), band.dtype, (1, *band.shape[1:])))
        return torch.cat(rows)

    def _read(self, folder: Path, part: Part) -> torch.Tensor:
        data = torch.empty(part.length, dtype=torch.uint8)
        with open(folder / part.file, "rb") as file:
            read_part(file.fileno(), folder / part.file, part, memoryview(data.numpy()))  # type: ignore[arg-type]  # as above
        if part.file in self._kept:
            self._lies.setdefault(part.file, []).append((part.offset, data))
        return data
