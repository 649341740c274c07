"""When a layer's weights are there, and when their bytes go back: the worker's side of the bytes wire.

    Loaded(part) ─▶ lend(group) ─▶ layer computes ─▶ Freed(part)

A *group* is what is computed together: one layer's parts, or one band of the head. Groups come in the order of the sweep. On the cpu the
layer computes straight from the pool; an accelerator's slots (slots.py) stand between.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash

from potatod import schemes
from potatod.errors import ModelDataError
from potatod.manifest import Manifest, Part, Tensor
from potatod.messages import Freed, Loaded, Passed
from potatod.plan import Plan, sweep_parts
from potatod.pool import Pool
from potatod.wire import Wire


@dataclass(frozen=True, slots=True)
class Group:
    """Parts that are computed together: indices into the plan, and the manifest's parts beside them."""

    #: the layer's number; None for a band of the head
    layer: int | None
    indices: tuple[int, ...]
    parts: tuple[Part, ...]


def groups_of(manifest: Manifest) -> list[Group]:
    """The groups in the order of the sweep."""
    layers: list[list[tuple[int, Part]]] = [[] for _ in range(manifest.layers)]
    bands: list[tuple[int, Part]] = []
    for index, (stop, part) in enumerate(sweep_parts(manifest)):
        (layers[stop] if stop < manifest.layers else bands).append((index, part))
    grouped = [(number, parts) for number, parts in enumerate(layers)] + [(None, [band]) for band in bands]
    return [Group(layer, tuple(i for i, _ in parts), tuple(p for _, p in parts)) for layer, parts in grouped]


#: (name in the layer's module or in the model, values, first row of a band)
Bound = tuple[str, torch.Tensor, int | None]


class Lender(Protocol):
    """Gives out groups in the order of the sweep."""

    def upload(self, group: Group) -> None:
        """Begin whatever must happen before ``group`` can be lent."""

    def lend(self, group: Group) -> Any:
        """A context: its weights as list[Bound], valid until it is left."""


class Arrivals:
    """Which parts lie in the pool, and where. Waits for those that do not yet."""

    def __init__(self, wire: Wire, plan: Plan, wait: Callable[[], None]) -> None:
        self._wire = wire
        self._plan = plan
        #: returns when something may have come; raises where the stage is to stop
        self._wait = wait
        self._offset: dict[int, int] = {}
        #: of the reader's last pass: bytes per second of reading; None before the first is complete
        self.read_bytes_per_s: float | None = None

    def await_part(self, index: int) -> int:
        """The part's pool offset, as soon as it is there."""
        while index not in self._offset:
            if not self._receive():
                self._wait()
        return self._offset[index]

    def here(self, indices: Iterable[int]) -> bool:
        self._receive()
        return all(index in self._offset for index in indices)

    def free(self, index: int) -> None:
        """The part's bytes are not needed any more, in this sweep or for good; those of a resident of the pool stay."""
        part = self._plan.parts[index]
        if part.home != "ram":
            self._wire.send(Freed(self._offset.pop(index), part.length))

    def _receive(self) -> bool:
        came = False
        while (message := self._wire.receive()) is not None:
            came = True
            if isinstance(message, Loaded):
                assert message.part not in self._offset, "a part came twice: reader and worker disagree on the order"
                self._offset[message.part] = message.offset
            elif isinstance(message, Passed) and message.busy_s > 0:
                self.read_bytes_per_s = message.read_bytes / message.busy_s
        return came


def bind_views(group: Group, lying: Sequence[tuple[torch.Tensor, int]]) -> list[Bound]:
    """Views of the group's tensors, each part of which is ``lying`` in memory (uint8) from some offset on."""
    return [
        (tensor.name, _view(base, offset, tensor), tensor.first_row)
        for part, (base, offset) in zip(group.parts, lying, strict=True)
        for tensor in part.tensors
    ]


def _view(base: torch.Tensor, offset: int, tensor: Tensor) -> torch.Tensor:
    lies = base[offset + tensor.offset : offset + tensor.offset + tensor.length]
    return schemes.get(tensor.scheme).view(lies, tensor.dtype, tensor.shape)


class PoolLender:
    """cpu: nothing to upload, the layer computes from the pool's own bytes."""

    def __init__(self, pool: Pool, arrivals: Arrivals, plan: Plan) -> None:
        self._base = torch.frombuffer(pool.view, dtype=torch.uint8) if pool.size else torch.empty(0, dtype=torch.uint8)
        self._arrivals = arrivals
        self._plan = plan
        #: views of residents never change, so they are made once
        self._resident: dict[int, list[Bound]] = {}

    def upload(self, group: Group) -> None:
        pass

    @contextmanager
    def lend(self, group: Group) -> Iterator[list[Bound]]:
        first = group.indices[0]
        if first in self._resident:
            yield self._resident[first]
            return
        views = bind_views(group, [(self._base, self._arrivals.await_part(index)) for index in group.indices])
        if all(self._plan.parts[index].home == "ram" for index in group.indices):
            self._resident[first] = views
        yield views
        for index in group.indices:
            self._arrivals.free(index)


def read_part(folder: Path, part: Part) -> list[tuple[str, torch.Tensor]]:
    """A part's tensors by name, read and checked outside the pipeline; raises :class:`ModelDataError`."""
    data = torch.empty(part.length, dtype=torch.uint8)  # torch's own memory is aligned, and kernels' bits depend on that
    memory = memoryview(data.numpy())  # type: ignore[arg-type]  # numpy says less than it can
    done = 0
    with open(folder / part.file, "rb") as file:
        # One call reads less than 2 GiB, and one layer's experts may be more.
        while done < part.length and (count := os.preadv(file.fileno(), [memory[done:]], part.offset + done)):
            done += count
    if done != part.length or xxhash.xxh3_64_hexdigest(memory) != part.checksum:
        raise ModelDataError(f"{folder / part.file}: the part at offset {part.offset} is damaged; prepare the model again")
    return [(name, value) for name, value, _ in bind_views(Group(None, (0,), (part,)), [(data, 0)])]
