"""When a layer's weights are there, and when their bytes go back: the worker's side of the bytes wire.

    Loaded(part) ─▶ lend(group) ─▶ layer computes ─▶ Freed(part)

A *group* is what is computed together: one layer's parts, or some bands of the head. Groups come in the order of the sweep. On the cpu the
layer computes straight from the pool; an accelerator's slots (slots.py) stand between.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
import xxhash

from potatod import forms
from potatod.errors import ModelDataError
from potatod.manifest import Manifest, Part, Tensor
from potatod.messages import Freed, Loaded, Passed
from potatod.plan import Plan, sweep_parts
from potatod.pool import Pool
from potatod.reading import fill
from potatod.wire import Wire

from .banded import Banded, Piece, Scratch


@dataclass(frozen=True, slots=True)
class Group:
    """Parts that are computed together: indices into the plan, and the manifest's parts beside them."""

    #: the layer's number; None for a piece of the head
    layer: int | None
    indices: tuple[int, ...]
    parts: tuple[Part, ...]
    #: each tensor's name, and its bands: which of ``parts`` and what of it
    tensors: tuple[tuple[str, tuple[tuple[int, Tensor], ...]], ...]

    @classmethod
    def of(cls, layer: int | None, indices: Sequence[int], parts: Sequence[Part]) -> Group:
        every = [(number, tensor) for number, part in enumerate(parts) for tensor in part.tensors]
        tensors = tuple((name, tuple(bands)) for name, bands in itertools.groupby(every, lambda one: one[1].name))
        return cls(layer, tuple(indices), tuple(parts), tensors)


def groups_of(manifest: Manifest) -> list[Group]:
    """The groups in the order of the sweep."""
    groups = []
    for stop, several in itertools.groupby(enumerate(sweep_parts(manifest)), lambda numbered: numbered[1][0]):
        parts = list(several)
        layer = stop if stop < manifest.layers else None
        groups.append(Group.of(layer, [index for index, _ in parts], [part for _, (_, part) in parts]))
    return groups


#: (name in the layer's module or in the model, values, first row of a piece of the head)
Bound = tuple[str, torch.Tensor, int | None]


class Lender(Protocol):
    """Gives out groups in the order of the sweep."""

    def upload(self, group: Group) -> None:
        """Begin whatever must happen before ``group`` can be lent."""

    def lend(self, group: Group) -> Any:
        """A context: its weights as list[Bound], valid until it is left."""


class Arrivals:
    """Which parts lie in the pool, and where. Waits for those that do not yet."""

    def __init__(self, wire: Wire, plan: Plan, wait: Callable[[], None], waited: Callable[[float, float], None] = lambda _began, _ended: None) -> None:
        """``wait`` returns when something may have come, and raises where the stage is to stop; ``waited`` is told from when to when something was
        missing (time.monotonic())."""
        self._wire = wire
        self._plan = plan
        self._wait = wait
        self._waited = waited
        self._offset: dict[int, int] = {}
        self._seen: set[int] = set()
        #: of parts that have come through the ring and are not free yet
        self.passing_bytes = 0
        #: of the reader's last pass: bytes per second of reading; None before the first is complete
        self.read_bytes_per_s: float | None = None

    def await_parts(self, indices: Sequence[int]) -> list[int]:
        """Their pool offsets, as soon as all are there."""
        if not self.here(indices):
            began = time.monotonic()
            while not self.here(indices):
                self._wait()
            self._waited(began, time.monotonic())
        return [self._offset[index] for index in indices]

    def here(self, indices: Iterable[int]) -> bool:
        if not all(index in self._offset for index in indices):
            self._receive()
        return all(index in self._offset for index in indices)

    def seen(self, index: int) -> bool:
        """Whether the part has come at least once."""
        return index in self._seen

    def free(self, indices: Iterable[int]) -> None:
        """The parts' bytes are not needed any more, in this sweep or for good; those of residents of the pool stay."""
        passed = [index for index in indices if self._plan.parts[index].home != "ram"]
        offsets = tuple(self._offset.pop(index) for index in passed)
        self.passing_bytes -= sum(self._plan.parts[index].length for index in passed)
        if offsets:
            self._wire.send(Freed(offsets))

    def _receive(self) -> None:
        while (message := self._wire.receive()) is not None:
            if isinstance(message, Loaded):
                assert message.part not in self._offset, "a part came twice: reader and worker disagree on the order"
                self._offset[message.part] = message.offset
                self._seen.add(message.part)
                part = self._plan.parts[message.part]
                self.passing_bytes += part.length if part.home != "ram" else 0
            elif isinstance(message, Passed) and message.busy_s > 0:
                self.read_bytes_per_s = message.read_bytes / message.busy_s


def bind_views(
    group: Group, lying: Sequence[tuple[torch.Tensor, int]], scratch: Scratch, known: Mapping[str, Bound] = MappingProxyType({})
) -> list[Bound]:
    """Views of the group's tensors, each part of which is ``lying`` in memory (uint8) from some offset on; those that are ``known`` as they are.

    A matrix whose bands lie behind each other as its dtype's own bytes is one view; any other is :class:`Banded`.
    """
    bound: list[Bound] = []
    for name, bands in group.tensors:
        if name in known:
            bound.append(known[name])
            continue
        runs = _runs((lying[number][0], lying[number][1] + band.offset, band) for number, band in bands)
        pieces = [_piece(*run) for run in runs]
        plain = len(pieces) == 1 and pieces[0].scheme == "raw"
        value = pieces[0].values() if plain else Banded.of(pieces, scratch)
        bound.append((name, value, runs[0][2].first_row if group.layer is None else None))
    return bound


#: Memory, an offset in it, and what lies there.
_Lies = tuple[torch.Tensor, int, Tensor]


def _runs(bands: Iterable[_Lies]) -> list[_Lies]:
    """Bands that lie behind each other as one."""
    runs: list[_Lies] = []
    for base, offset, band in bands:
        if runs and not forms.has_more(band.scheme):
            before_base, before, above = runs[-1]
            if base is before_base and offset == before + above.length and band.scheme == above.scheme:
                shape = (above.shape[0] + band.shape[0], *band.shape[1:])
                runs[-1] = base, before, dataclasses.replace(above, shape=shape, length=above.length + band.length)
                continue
        runs.append((base, offset, band))
    return runs


def _piece(base: torch.Tensor, offset: int, tensor: Tensor) -> Piece:
    return Piece(tensor.scheme, base[offset : offset + tensor.length], getattr(torch, tensor.dtype), tensor.shape)


class PoolLender:
    """cpu: nothing to upload, the layer computes from the pool's own bytes."""

    def __init__(self, pool: Pool, arrivals: Arrivals, plan: Plan) -> None:
        self._base = torch.frombuffer(pool.view, dtype=torch.uint8) if pool.size else torch.empty(0, dtype=torch.uint8)
        self._arrivals = arrivals
        self._plan = plan
        #: by group and name: views of residents never change, so they are made once
        self._resident: dict[int, dict[str, Bound]] = {}
        self._scratch = Scratch()

    def upload(self, group: Group) -> None:
        pass

    @contextmanager
    def lend(self, group: Group) -> Iterator[list[Bound]]:
        first = group.indices[0]
        known = self._resident.get(first, {})
        lying = [(self._base, offset) for offset in self._arrivals.await_parts(group.indices)]
        self._scratch.begin()
        views = bind_views(group, lying, self._scratch, known)
        if first not in self._resident:
            pairs = zip(views, group.tensors, strict=True)
            self._resident[first] = {view[0]: view for view, (_, bands) in pairs if self._stay(group, bands)}
        yield views
        self._arrivals.free(group.indices)

    def _stay(self, group: Group, bands: Sequence[tuple[int, Tensor]]) -> bool:
        return all(self._plan.parts[group.indices[number]].home == "ram" for number, _ in bands)


def read_parts(folder: Path, parts: Sequence[Part]) -> list[tuple[str, torch.Tensor]]:
    """Their tensors by name, read and checked outside the pipeline; raises :class:`ModelDataError`."""
    data = torch.empty(sum(part.length for part in parts), dtype=torch.uint8)  # torch's own memory is aligned, and kernels' bits depend on that
    memory = memoryview(data.numpy())  # type: ignore[arg-type]  # numpy says less than it can
    at, lying = 0, []
    for part in parts:
        with open(folder / part.file, "rb") as file:
            read_part(file.fileno(), folder / part.file, part, memory[at : at + part.length])
        lying.append((data, at))
        at += part.length
    return [(name, value) for name, value, _ in bind_views(Group.of(0, range(len(parts)), parts), lying, Scratch())]


def read_part(fd: int, path: Path, part: Part, memory: memoryview) -> None:
    """From the file at ``path``, which is open as ``fd``, into ``memory``, of the part's length; raises :class:`ModelDataError` where the bytes are not
    what the manifest says."""
    fill(fd, path, part.offset, memory)
    if xxhash.xxh3_64_hexdigest(memory) != part.checksum:
        raise ModelDataError(f"{path}: the part at offset {part.offset} is damaged; prepare the model again")
