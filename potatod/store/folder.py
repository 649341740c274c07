"""A model folder as a source: the same model, stored otherwise.

Its tensors have the model's own names already, and their values are those that the folder holds exactly: raw or packed. What is stored in fewer
bits has lost what another scheme would need.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Final

import torch
import xxhash
from transformers import PreTrainedConfig

from potatod import manifest as manifests
from potatod import model_folder, schemes
from potatod.dtypes import PACKED, RAW
from potatod.errors import ModelDataError, UsageError
from potatod.manifest import Part, Shard, Tensor

from .checkpoint import STORED_NAMES, Lazy, read_bytes
from .skeleton import Skeleton, load_config
from .verify import name_of

_EXACT: Final = (RAW, PACKED)


class FolderSource:
    """See source.Source."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._manifest = manifest = model_folder.load(folder)
        model_folder.check_files(folder, manifest)
        model_folder.check_companions(folder, manifest)
        self.config: PreTrainedConfig = load_config(folder)
        lossy = sorted({t.scheme for shard in manifest.shards for part in shard.parts for t in part.tensors if t.scheme not in _EXACT})
        if lossy:
            raise UsageError(f"{folder} is stored as {', '.join(lossy)} already, which has not all that another form needs; prepare its source instead")

    def default_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self._manifest.dtype)
        return dtype

    def tensors(self, skeleton: Skeleton, dtype: torch.dtype) -> dict[str, Lazy]:
        manifest = self._manifest
        out: dict[str, Lazy] = {}
        for shard in manifest.shards:
            if shard.kind == "head" and manifest.tied:
                continue
            for name, shape in manifests.shapes_of(shard).items():
                full = f"{manifest.layers_name}.{shard.layer}.{name}" if shard.kind == "layer" else name
                bands = [(part, tensor) for part in shard.parts for tensor in part.tensors if tensor.name == name]
                out[full] = FolderTensor(self.path, shard, tuple(bands), shape)
        return out


@dataclass(frozen=True, slots=True)
class FolderTensor:
    """A tensor of a model folder. Each part is compared with its checksum before it is taken: a flipped bit must not get a new one."""

    folder: Path
    shard: Shard
    bands: tuple[tuple[Part, Tensor], ...]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.bands[0][1].dtype)
        return dtype

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        values = [self._values(part, tensor) for part, tensor in self.bands]
        return values[0] if len(values) == 1 else torch.cat(values)

    def rows(self, first: int, last: int) -> torch.Tensor:
        return torch.cat(list(self._rows(first, last)))

    def _rows(self, first: int, last: int) -> Iterable[torch.Tensor]:
        for part, tensor in self.bands:
            begins = tensor.first_row or 0
            if begins < last and begins + tensor.shape[0] > first:
                yield self._values(part, tensor)[max(0, first - begins) : last - begins]

    def get_dtype(self) -> str:
        return STORED_NAMES[self.dtype]

    def _values(self, part: Part, tensor: Tensor) -> torch.Tensor:
        data = read_bytes(self.folder / part.file, part.offset, part.length)
        if xxhash.xxh3_64_hexdigest(data.numpy().data) != part.checksum:
            raise ModelDataError(f"{self.folder} is damaged: {name_of(self.shard, part)}; prepare the model again from its source")
        return schemes.get(tensor.scheme).view(data[tensor.offset : tensor.offset + tensor.length], tensor.dtype, tensor.shape)

