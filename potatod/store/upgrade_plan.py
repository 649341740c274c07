"""What an upgrade keeps, renames and rewrites: names and shapes of the folder against those of the installed transformers.

Law: decides and reads no weights. What is not certain is refused here, before anything is written.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn

import torch
from transformers.core_model_loading import Concatenate, MergeModulelist

from potatod import manifest as manifests
from potatod.errors import ModelDataError, UnsupportedModel
from potatod.manifest import Kind, Manifest, Part, Shard, Tensor

from .checkpoint import FileTensor
from .convert import Converter
from .shards import cut
from .skeleton import Skeleton

#: What may be done to values: they are put beside each other. Whatever permutes or splits them could have been done when they were stored.
_CERTAIN: Final = (Concatenate, MergeModulelist)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the folder and the parts that hold it."""

    tensor: FileTensor
    shard: Shard
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A shard to be written anew."""

    kind: Kind
    layer: int
    #: its tensors by the whole model's names
    names: list[str]
    #: what its own names lack of those
    prefix: str


class Plan:
    """What stays, what is made of what, and which shards that changes; refuses what is not certain."""

    def __init__(self, out: Path, manifest: Manifest, built: Skeleton) -> None:
        self.manifest = manifest
        self._out = out
        self._built = built
        #: by the new model's names: tensors that are there as they should be
        self.kept: dict[str, Stored] = {}
        #: by the old model's names: tensors that the new one has no place for
        self._loose: dict[str, Stored] = {}
        wanted: dict[str, torch.Tensor] = built.model.state_dict()
        if manifest.layers != len(built.layers):
            self._refuse(f"it has {manifest.layers} layers and the model {len(built.layers)}")
        if manifest.tied != built.tied:
            self._refuse(f"head and embedding are {'one' if manifest.tied else 'two'} in it and {'one' if built.tied else 'two'} in the model")
        for shard in manifest.shards:
            self._sort(shard, wanted)
        self.converter = Converter(
            built, {name: stored.tensor for name, stored in self._loose.items()}, getattr(torch, manifest.dtype)
        )
        self.wanted = self.converter.wanted
        self._check()
        self.rewrites = list(self._rewrites())

    def sources(self, name: str) -> list[Stored]:
        """What a tensor of the new model is made of."""
        return [self.kept[name]] if name in self.kept else [self._loose[key] for key in self.converter.sources(name)]

    def _sort(self, shard: Shard, wanted: dict[str, torch.Tensor]) -> None:
        """Every tensor of the shard to those that stay or to those without a place."""
        if shard.kind in ("embed", "head"):
            name = self._built.embed_name if shard.kind == "embed" else self._built.head_name
            if shard.kind == "embed" or not self._built.tied:
                self._keep(name, _stored(self._out, shard, shard.parts[0].tensors[0].name), wanted)
            return
        for name in manifests.shapes_of(shard):
            before, now = name, name
            if shard.kind == "layer":
                before, now = (f"{root}.{shard.layer}.{name}" for root in (self.manifest.layers_name, self._built.layers_name))
            stored = _stored(self._out, shard, name)
            if now in wanted:
                self._keep(now, stored, wanted)
            else:
                self._loose[before] = stored

    def _keep(self, name: str, stored: Stored, wanted: dict[str, torch.Tensor]) -> None:
        if tuple(wanted[name].shape) != stored.tensor.shape:
            self._refuse(f"{name} has the shape {list(stored.tensor.shape)} and needs {list(wanted[name].shape)}")
        self.kept[name] = stored

    def _check(self) -> None:
        """Every other tensor comes from what is loose, by transformers' own renaming, and nothing is lost."""
        tied = {self._built.head_name} if self._built.tied else set()
        for name in self.wanted:
            if name in self.kept or name in tied:
                continue
            sources = self.converter.sources(name)
            if not sources:
                self._refuse(f"nothing in it becomes {name}")
            operations = self.converter.operations(name)
            if not all(isinstance(operation, _CERTAIN) for operation in operations):
                self._refuse(f"{name} would have to be rearranged out of {sources[0]}")
            if not operations and (len(sources) > 1 or self._loose[sources[0]].tensor.shape != tuple(self.wanted[name].shape)):
                self._refuse(f"{sources[0]} does not fit {name}")
        ignored = [re.compile(pattern) for pattern in self._built.model._keys_to_ignore_on_load_unexpected or ()]
        for name in self.converter.unused():
            if not any(pattern.search(name) for pattern in ignored):
                self._refuse(f"its {name} has no place in the model")

    def _rewrites(self) -> Iterable[Rewrite]:
        built, manifest = self._built, self.manifest
        layers, resident = cut(built, self.wanted)
        named = {(shard.kind, shard.layer): len(manifests.shapes_of(shard)) for shard in manifest.shards}
        if manifest.embed_name != built.embed_name:
            yield Rewrite("embed", 0, [built.embed_name], "")
        for number, names in enumerate(layers):
            if not self.kept.keys() >= set(names) or named["layer", number] != len(names):
                yield Rewrite("layer", number, names, f"{built.layers_name}.{number}.")
        if manifest.head_name != built.head_name and not built.tied:
            yield Rewrite("head", 0, [built.head_name], "")
        if not self.kept.keys() >= set(resident) or named["resident", 0] != len(resident):
            yield Rewrite("resident", 0, resident, "")

    def _refuse(self, what: str) -> NoReturn:
        raise refusal(self._out, self.manifest, what)


def refusal(out: Path, manifest: Manifest, what: str) -> UnsupportedModel:
    """The source is needed, and why."""
    now = importlib.metadata.version("transformers")
    return UnsupportedModel(
        f"{out} was prepared with transformers {manifest.transformers} and cannot be upgraded to {now} from itself ({what}); "
        "prepare the model again from its source"
    )


def _tensor(out: Path, part: Part, tensor: Tensor) -> FileTensor:
    if tensor.scheme != "raw":
        raise UnsupportedModel(f"{out}: {tensor.name} is stored as {tensor.scheme}, which is not upgraded; prepare the model again from its source")
    return FileTensor(out / part.file, tensor.name, getattr(torch, tensor.dtype), tensor.shape, part.offset + tensor.offset)


def _stored(out: Path, shard: Shard, name: str) -> Stored:
    """A tensor of the shard; its bands, where it has some, lie behind each other in the file."""
    lies = [(part, tensor) for part in shard.parts for tensor in part.tensors if tensor.name == name]
    bands, parts = [_tensor(out, part, tensor) for part, tensor in lies], tuple(part for part, _ in lies)
    at = bands[0].offset
    for band, (_, tensor) in zip(bands, lies, strict=True):
        if band.offset != at or band.path != bands[0].path:
            raise ModelDataError(f"{out}: the bands of {band.name} have gaps between them; prepare the model again from its source")
        at += tensor.length
    return Stored(replace(bands[0], shape=manifests.shapes_of(shard)[name]), shard, parts)
