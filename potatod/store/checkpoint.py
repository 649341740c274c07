"""A checkpoint as transformers' authors publish it: a folder with a config and safetensors files.

Law: nothing is mapped and nothing is trusted. A tensor is read by ``pread`` when it is asked for, so that memory holds
what is being converted and not whatever the page cache kept; every range is checked against its file before anything is
read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, Final, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open

from potatod.errors import ModelDataError, NoSuchModel, UnsupportedModel
from potatod.json_file import read_json

_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_INDEX_BYTES: Final = 256 << 20
DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
#: Dtypes whose values are the weights themselves; others need what belongs to them (scales) to mean anything.
PLAIN: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
STORED_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


class Lazy(Protocol):
    """A tensor that is read when it is asked for; what transformers' loader takes as a slice of a file."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: EllipsisType) -> torch.Tensor: ...

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows ``first`` to ``last`` of a matrix, the last one excluded."""

    def get_dtype(self) -> str:
        """safetensors' name of the dtype."""


@runtime_checkable
class Blocks(Protocol):
    """A tensor that is quantised in blocks, which may be stored as they are."""

    def scheme(self) -> str | None:
        """The scheme that holds them; None where there is none, or the tensor is more than those blocks in another order."""

    def planes(self) -> torch.Tensor:
        """Flat uint8, as the scheme stores them."""


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor that lies contiguously in a file."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    #: bytes from the start of the file
    offset: int

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        return self._read(self.offset, self.shape)

    def rows(self, first: int, last: int) -> torch.Tensor:
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        return self._read(self.offset + first * row_bytes, (last - first, *self.shape[1:]))

    def get_dtype(self) -> str:
        return STORED_NAMES[self.dtype]

    def _read(self, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
        return read_bytes(self.path, offset, math.prod(shape) * self.dtype.itemsize).view(self.dtype).reshape(shape)


def read_bytes(path: Path, offset: int, length: int) -> torch.Tensor:
    """(length,) uint8; raises ModelDataError where the file is shorter than it was."""
    out = torch.empty(length, dtype=torch.uint8)
    if length:
        view, got = memoryview(out.numpy().data), 0
        with open(path, "rb", buffering=0) as file:
            while got < length and (count := os.preadv(file.fileno(), [view[got:]], offset + got)):
                got += count
        if got < length:
            raise ModelDataError(f"{path} ends at byte {offset + got}, in the middle of a tensor: it was changed while it was read")
    return out


def open_folder(folder: Path) -> dict[str, Lazy]:
    """Every tensor of the folder's safetensors files, none read yet; raises ModelDataError naming what is missing or
    broken."""
    files, weight_map = weight_files(folder, [path.name for path in folder.iterdir()])
    for name in files:
        if not (folder / name).is_file():
            raise ModelDataError(f"{folder / name} is missing, and {_INDEX} says that weights lie in it: download the checkpoint again")
    return joined({name: tensors_of(folder / name) for name in files}, weight_map, folder)


def weight_files(folder: Path, there: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """The safetensors files that weights lie in, and the index's word on which lies where (empty where there is no index). ``there``: names of what the
    checkpoint consists of; the index itself is in the folder."""
    if _INDEX in there:
        weight_map = read_json(folder / _INDEX, _MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ModelDataError(f'{folder / _INDEX} has no "weight_map" of tensors to files')
        for name in (files := sorted(set(weight_map.values()))):
            if name != Path(name).name or not name.endswith(".safetensors"):
                raise ModelDataError(f"{folder / _INDEX} names {name[:80]!r}, which is not a safetensors file of the folder")
        return files, weight_map
    if _SINGLE in there:
        return [_SINGLE], {}
    raise _nothing_to_read(folder, sorted(there))


def joined(files: Mapping[str, Mapping[str, Lazy]], weight_map: Mapping[str, str], folder: Path) -> dict[str, Lazy]:
    """The tensors of all files; raises ModelDataError where one is missing that the index knows of."""
    tensors: dict[str, Lazy] = {name: lazy for own in files.values() for name, lazy in own.items()}
    for name, file in weight_map.items():
        if name not in tensors:
            raise ModelDataError(f"{folder / _INDEX} says that {name} lies in {file}, and it does not")
    return tensors


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, parsed."""
    try:
        return read_json(folder / "config.json")
    except NoSuchModel:
        raise NoSuchModel(f"{folder} is no checkpoint: it has no config.json") from None


def tensors_of(path: Path) -> dict[str, FileTensor]:
    """Of one safetensors file; raises ModelDataError where it is not whole."""
    return tensors_in(*head_of(path), path)


def head_of(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header, and where its tensors' bytes begin."""
    try:
        with safe_open(path, "pt"):  # checks the header and the file's size against it
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelDataError(f"{path} is not a whole safetensors file ({error}); download it again") from None
    return header, 8 + length


def tensors_in(header: Mapping[str, Any], begin: int, path: Path) -> dict[str, FileTensor]:
    """What a safetensors file's header says, whose tensors' bytes begin at ``begin``."""
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise UnsupportedModel(f"{path}: {name} has the dtype {entry['dtype']}, which potatod does not read")
        dtype = DTYPES[entry["dtype"]]
        tensors[name] = FileTensor(path, name, dtype, tuple(entry["shape"]), begin + entry["data_offsets"][0])
    return tensors


def _nothing_to_read(folder: Path, names: Sequence[str]) -> ModelDataError | NoSuchModel:
    """The sentence that helps whoever has the wrong kind of folder."""
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return UnsupportedModel(
            f"{folder / pickles[0]} is a pickle, and reading a pickle runs whatever code it holds: potatod never does. "
            "Many models have safetensors files in a newer revision; else load it once with transformers where you trust it and call save_pretrained()"
        )
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        return NoSuchModel(f"{folder} holds no safetensors files; to prepare a GGUF file name it: {folder / ggufs[0]}")
    if others := [name for name in names if name.endswith(".safetensors")]:
        return NoSuchModel(f"{folder} has neither {_INDEX} nor {_SINGLE} (it has {others[0]}): that is not a checkpoint for transformers")
    return NoSuchModel(f"{folder} holds no weights: it has neither {_INDEX} nor {_SINGLE}")
