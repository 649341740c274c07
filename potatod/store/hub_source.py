"""A model at the hub as a source before its weights are here: configs and tokenizer come, and the heads of its safetensors files.

Its tensors lie in files that come when they are needed (fetched.py). What is read of one before that, some rows or a shape, comes by a range.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch

from potatod.errors import ModelDataError

from . import hub_files, staging
from .checkpoint import DTYPES, FileTensor, joined, tensors_in, weight_files
from .hub import SMALL
from .hub_files import HubFile, Repository
from .journal import check_consumed
from .source import HuggingFaceSource

#: Larger than any config, index or tokenizer: what is called so and is larger is none.
_SMALL_BYTES: Final = 256 << 20
#: Most heads are smaller: so one request is enough. A larger one than safetensors allows is none.
_FIRST_BYTES: Final = 128 << 10
_MAX_HEAD_BYTES: Final = 100_000_000
_AT_ONCE: Final = 8

Head = tuple[dict[str, Any], int]


@dataclass(frozen=True, slots=True)
class HubTensor(FileTensor):
    """One whose file need not be here."""

    #: ``read_range(offset, length)``
    read_range: Callable[[int, int], bytes]

    def _read(self, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
        length = math.prod(shape) * self.dtype.itemsize
        if length == 0 or self.path.exists():
            return FileTensor._read(self, offset, shape)
        data = bytearray(self.read_range(offset, length))
        return torch.frombuffer(data, dtype=torch.uint8).view(self.dtype).reshape(shape)


def locate(folder: Path, model_id: str, revision: str | None) -> Repository:
    """The model at one commit: at the one that ``folder`` was begun with, where it was begun with the same id and revision."""
    page = staging.remembered(folder)
    if page.get("id") == model_id and page.get("revision") == revision:
        files = {name: HubFile(name, size, sha256) for name, (size, sha256) in page["files"].items()}
        return Repository(model_id, page["commit"], page["licence"], MappingProxyType(files))
    check_consumed(folder.parent)
    found = hub_files.look(model_id, revision)
    if page:
        staging.empty(folder)
    files_page = {name: [file.size_bytes, file.sha256] for name, file in found.files.items()}
    staging.remember(folder, {"id": model_id, "revision": revision, "commit": found.commit, "licence": found.licence, "files": files_page})
    return found


def open_at_hub(repository: Repository, folder: Path) -> HuggingFaceSource:
    """``folder``: where its files come. Raises NoSuchModel, Unavailable, ModelDataError, UnsupportedModel."""
    for file in repository.files.values():
        if any(fnmatch(file.name, pattern) for pattern in SMALL) and file.size_bytes <= _SMALL_BYTES and not is_there(folder, file):
            hub_files.download(repository, file, folder)
    names, weight_map = weight_files(folder, repository.files.keys())
    if missing := [name for name in names if name not in repository.files]:
        raise ModelDataError(f"{repository.id} has no {missing[0]}, and its index says that weights lie in it")
    tensors = {
        name: {
            key: HubTensor(each.path, each.name, each.dtype, each.shape, each.offset, partial(hub_files.read_range, repository, name))
            for key, each in tensors_in(*head, folder / name).items()
        }
        for name, head in _heads(repository, names, folder).items()
    }  # fmt: skip
    return HuggingFaceSource(folder, joined(tensors, weight_map, folder))


def is_there(folder: Path, file: HubFile) -> bool:
    """Whole, since under its own name it is nothing else."""
    try:
        return (folder / file.name).stat().st_size == file.size_bytes
    except OSError:
        return False


def _heads(repository: Repository, names: Sequence[str], folder: Path) -> dict[str, Head]:
    """Of these files, asked for once."""
    page = staging.remembered(folder)
    if "heads" not in page:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            page["heads"] = dict(zip(names, threads.map(partial(_head, repository), names), strict=True))
        staging.remember(folder, page)
    return {name: (header, begin) for name, (header, begin) in page["heads"].items()}


def _head(repository: Repository, name: str) -> Head:
    where, size = f"{name} of {repository.id}", repository.files[name].size_bytes
    data = hub_files.read_range(repository, name, 0, min(size, _FIRST_BYTES))
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(size - 8, _MAX_HEAD_BYTES):
        raise ModelDataError(f"{where} does not begin as a safetensors file does")
    if len(data) < 8 + length:
        data += hub_files.read_range(repository, name, len(data), 8 + length - len(data))
    try:
        header = json.loads(data[8 : 8 + length])
        for key, entry in header.items():
            if key != "__metadata__":
                _check(entry, size - 8 - length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelDataError(f"{where} is no safetensors file: its header is damaged ({error!r})") from None
    return header, 8 + length


def _check(entry: dict[str, Any], nbytes: int) -> None:
    """Raises ValueError where a tensor does not lie in its file; the file itself is checked when it is here."""
    begin, end = entry["data_offsets"]
    whole = (type(begin), type(end), *map(type, entry["shape"]))
    if set(whole) != {int} or not 0 <= begin <= end <= nbytes or any(size < 0 for size in entry["shape"]):
        raise ValueError(entry)
    if (dtype := DTYPES.get(entry["dtype"])) is not None and math.prod(entry["shape"]) * dtype.itemsize != end - begin:
        raise ValueError(entry)
