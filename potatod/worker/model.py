"""The model: transformers' own forward pass, whose weights come and go.

The skeleton's parameters are on the meta device. transformers' ``forward`` stays in charge; just before it enters a decoder layer a hook
takes one step of :meth:`Model._sweep`, which lends that layer its weights, and takes back the last one's. The head is the same with bands of rows.
Where a sweep is several forward passes (passes.py) the step is taken when all of them have come there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from potatod.errors import InternalError, ModelDataError
from potatod.manifest import Manifest, shapes_of
from potatod.spans import Spans
from potatod.store import skeleton as skeletons
from potatod.store.skeleton import Skeleton

from .embedding import Embedding, Rows
from .kernels import Kernels
from .lockstep import Lockstep
from .passes import Pack
from .places import places_of
from .rows import unwatched
from .weights import Bound, Lender, groups_of, read_parts


class Model:
    """Runs sweeps over a skeleton with the weights that a lender lends."""

    def __init__(
        self, skeleton: Skeleton, manifest: Manifest, folder: Path, lender: Lender, twins: Rows, device: torch.device,
        kernels: Kernels, layer_done: Callable[[int], None], spans: Spans,
    ) -> None:  # fmt: skip
        self._skeleton = skeleton
        self._model = skeleton.model
        self._lender = lender
        self._kernels = kernels
        self._layer_done = layer_done
        self._spans = spans
        self._groups = groups_of(manifest)
        self._pieces_of_the_head = sum(group.layer is None for group in self._groups)
        self._under_way: Iterator[list[Bound]] = iter(())
        self._lent: list[Bound] = []
        self._lockstep = Lockstep(self._next)
        self._head = self._model.get_submodule(skeleton.head_name.rpartition(".")[0])
        of_embedding = set(self._model.get_submodule(skeleton.embed_name.rpartition(".")[0]).modules())  # it gathers on the cpu, and scales there
        for owner in self._model.modules():
            for name, buffer in owner._buffers.items():
                if owner not in of_embedding and buffer is not None and not buffer.is_meta:
                    owner._buffers[name] = buffer.to(device)
        self._places = [places_of(layer) for layer in skeleton.layers]
        kernels.prepare(self._model)
        conform(skeleton, manifest, folder)
        bind_outside(self._model, skeleton, manifest, folder, device, twins, spans)
        for layer in skeleton.layers:
            layer.register_forward_pre_hook(lambda *_: self._lockstep.arrive())
        self._head.forward = self._head_forward

    @torch.inference_mode()
    def forward(self, pack: Pack) -> torch.Tensor:
        """Logits ``(len(pack.wanted), vocabulary)`` in the model's dtype."""
        self._under_way = self._sweep()
        logits = self._lockstep.run(self._kernels.batching.passes(self._model, pack))
        if next(self._under_way, None) is not None:
            raise InternalError("transformers' forward pass left out a layer: its result is not this model's")
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def pass_by(self) -> None:
        """What is left of a sweep that could not be computed: its weights come and go, so that the reader's order holds."""
        for _ in self._under_way:
            pass

    def _sweep(self) -> Iterator[list[Bound]]:
        """One pass over all weights: each ``yield`` is where transformers computes with what has been lent."""
        for group, ahead in pairwise([*self._groups, self._groups[0]]):  # the last one's `ahead` is the next sweep's first
            self._lender.upload(ahead)
            with self._lender.lend(group) as weights:
                if group.layer is not None:
                    self._bind(group.layer, weights)
                began = time.monotonic()
                yield weights
                self._spans.add("compute", "head" if group.layer is None else f"layer {group.layer}", began, time.monotonic())
            if group.layer is not None:
                self._layer_done(group.layer + 1)

    def _next(self) -> None:
        """All passes are about to run what comes next."""
        with unwatched():
            lent = next(self._under_way, None)
        if lent is None:
            raise InternalError("transformers' forward pass ran a layer twice: its result is not this model's")
        self._lent = lent

    def _bind(self, layer: int, weights: list[Bound]) -> None:
        places = self._places[layer]
        for name, value, _ in weights:
            places[name].bind(value)

    def _head_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(1, rows, hidden) → (1, rows, vocabulary), piece by piece."""
        bias = self._head.bias
        bands = []
        for _ in range(self._pieces_of_the_head):
            self._lockstep.arrive()
            for _name, weight, first in self._lent:
                first = first or 0
                band_bias = None if bias is None else bias[first : first + weight.shape[0]]
                bands.append(self._kernels.linear(hidden, weight.requires_grad_(), band_bias))
        return bands[0] if len(bands) == 1 else torch.cat(bands, dim=-1)


def conform(skeleton: Skeleton, manifest: Manifest, folder: Path) -> None:
    """The folder has exactly the tensors that this model has, in its shapes; raises :class:`ModelDataError` naming the first that differs."""
    mend = f"`potatod prepare --upgrade {folder}` mends that where it can"
    if (manifest.embed_name, manifest.head_name) != (skeleton.embed_name, skeleton.head_name):
        raise ModelDataError(
            f"{folder} has embedding and head as {manifest.embed_name} and {manifest.head_name}, and {manifest.architecture} of the installed "
            f"transformers as {skeleton.embed_name} and {skeleton.head_name}; {mend}"
        )
    for shard in manifest.shards:
        if shard.kind == "layer":
            own = _shapes(skeleton.layers[shard.layer])
            found = shapes_of(shard)
            for name in sorted(own.keys() | found.keys()):
                if own.get(name) != found.get(name):
                    raise ModelDataError(
                        f"{folder}: {name} of layer {shard.layer} has shape {found.get(name)} and {manifest.architecture} of the installed "
                        f"transformers has {own.get(name)}; {mend}"
                    )
        elif shard.kind == "resident":
            known = _shapes(skeleton.model)
            for name, shape in shapes_of(shard).items():
                if known.get(name) != shape:
                    raise ModelDataError(f"{folder}: {name} has shape {shape}, and the model {known.get(name, 'has no such tensor')}; {mend}")
        else:
            name = manifest.embed_name if shard.kind == "embed" else manifest.head_name
            expected = tuple(skeleton.model.get_parameter(name).shape)
            (found_shape,) = shapes_of(shard).values()
            if found_shape != expected:
                raise ModelDataError(f"{folder}: {name} has shape {found_shape}, the model needs {expected}")
    if skeletons.fingerprint(skeleton) != manifest.fingerprint:
        raise ModelDataError(
            f"{folder} was prepared with transformers {manifest.transformers}, and the installed one builds {manifest.architecture} otherwise; {mend}"
        )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def bind_outside(
    model: nn.Module, skeleton: Skeleton, manifest: Manifest, folder: Path, device: torch.device, twins: Rows, spans: Spans
) -> None:
    """Gives the model what it owns outside its layers and head: small tensors for good, the embedding row by row."""
    places = places_of(model)
    embed_module = skeleton.embed_name.rpartition(".")[0]
    for shard in manifest.shards:
        if shard.kind == "resident":
            for name, value in read_parts(folder, shard.parts):
                places[name].bind(value if name.startswith(embed_module + ".") else value.to(device))
        elif shard.kind == "embed":
            embedding = Embedding(folder, shard.parts, twins)
            embedding.attach(model.get_submodule(embed_module), places[skeleton.embed_name], device, spans)
    layers = skeleton.layers_name + "."
    missing = [name for name, place in places.items() if place.empty and not name.startswith(layers) and name != skeleton.head_name]
    if missing:
        raise ModelDataError(f"{folder}: the model needs {missing[0]!r} and the folder does not have it; prepare it again")
