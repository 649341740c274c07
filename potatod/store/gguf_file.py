"""A GGUF file as a source: each tensor dequantised alone, renamed and un-permuted by transformers' own processors.

NOTE [ the vocabulary is slow ]
transformers builds a config with gguf's reader, which needs seconds per hundred thousand strings and a gigabyte for the
largest vocabularies. A config needs no strings, so it is given a copy of the file's head without them.
"""

from __future__ import annotations

import math
import struct
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import EllipsisType
from typing import Any, Final

import gguf
import numpy as np
import torch
from transformers import PreTrainedConfig
from transformers.integrations.gguf.reader import GgufHeader, TensorInfo, _read_metadata, _read_string, _read_tensor_table, _read_value
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)

from potatod.errors import ModelDataError, UnsupportedModel
from potatod.schemes import GGML

from . import gguf_rope
from .checkpoint import Lazy, read_bytes
from .skeleton import Skeleton, config_of

#: Rows of this many bytes are dequantised at a time.
_STEP_BYTES: Final = 4 << 20
#: Stored row by row as the model has them, so that no processor needs the whole.
_MATRICES: Final = ("token_embd.weight", "output.weight")
#: transformers ties these whatever the file says.
_ALWAYS_TIED: Final = ("falcon", "bloom")
#: What a damaged file makes of its reader.
_DAMAGE: Final = (struct.error, IndexError, UnicodeDecodeError, OverflowError, MemoryError)


@contextmanager
def names_once() -> Iterator[None]:
    """transformers asks gguf for all names of all layers once for every module of the model, and gguf makes them anew: half the time that a small file
    takes to prepare, most of a minute for 80 layers. In here they are made once."""
    made = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(made)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = made


class GgufSource:
    """See source.Source."""

    def __init__(self, file: Path) -> None:
        self.path = file
        try:
            self._header = _header(file)
            self._metadata, stub = _without_strings(file)
            self._page = _config_page(self._header, self._metadata, stub)
        except ValueError as error:
            raise _explained(file, error) from None
        except _DAMAGE:
            raise ModelDataError(f"{file} is cut short or damaged in its head; download it again") from None
        self._check_whole()
        self._page |= self._rope_scaling()
        self.config: PreTrainedConfig = config_of(self._page, file)

    def default_dtype(self) -> torch.dtype:
        """The file's own, where it holds values and not blocks; else bfloat16."""
        return self._header.dtype or torch.bfloat16

    def tensors(self, skeleton: Skeleton, dtype: torch.dtype) -> dict[str, Lazy]:
        """By the model's name for each; several tensors of the file may make one."""
        processor = TENSOR_PROCESSORS.get(self._header.architecture, TensorProcessor)(config=self._page)
        try:
            with names_once():
                names = get_gguf_hf_weights_map(skeleton.model, processor)
        except NotImplementedError:
            raise UnsupportedModel(f"{self.path}: tensors of the architecture {self._header.architecture!r} have no known names") from None
        made_of: dict[str, list[TensorInfo]] = defaultdict(list)
        for info in self._header.tensors:
            name = names.get(info.name) or names.get(info.name.removesuffix(".weight"))
            if name is not None:
                made_of[name].append(info)
        start = self._header.data_start
        return {
            name: GgufTensor(self.path, start, tuple(infos), processor, names, dtype, _shape(skeleton, name, infos))
            for name, infos in made_of.items()
        }

    def _check_whole(self) -> None:
        size = self.path.stat().st_size
        for info in self._header.tensors:
            if self._header.data_start + info.offset + info.nbytes > size:
                raise ModelDataError(f"{self.path} is cut short: {info.name} lies beyond its {size} bytes; download it again")
        if (parts := self._metadata.get("split.count", 0)) > 1:
            raise UnsupportedModel(
                f"{self.path} is one of {parts} parts of a model; merge them first (llama.cpp: llama-gguf-split --merge)"
            )

    def _rope_scaling(self) -> dict[str, Any]:
        """For the config's page, where transformers has not read it itself."""
        if "rope_scaling" in self._page:
            return {}
        divisors = {info.name: self._values(info) for info in self._header.tensors if gguf_rope.is_rope(info.name)}
        try:
            found = gguf_rope.scaling_of(self._header.architecture, self._metadata, divisors, self._config_with)
        except gguf_rope.Unstated as error:
            raise UnsupportedModel(
                f"{self.path} has {error}, which cannot be stated in transformers' words with certainty, so answers would be wrong; take the "
                "model's original safetensors checkpoint"
            ) from None
        return {} if found is None else {"rope_scaling": found}

    def _config_with(self, scaling: dict[str, Any]) -> PreTrainedConfig:
        return config_of(self._page | {"rope_scaling": dict(scaling)}, self.path)

    def _values(self, info: TensorInfo) -> torch.Tensor:
        """A small tensor, fp32."""
        raw = read_bytes(self.path, self._header.data_start + info.offset, info.nbytes).numpy()
        kind = gguf.GGMLQuantizationType(info.ggml_type)
        return torch.from_numpy(gguf.dequantize(_typed(raw, kind, info.shape[1:]), kind).reshape(info.shape))


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the model, out of one or (fused experts) several of the file."""

    path: Path
    #: bytes from the start of the file to the first tensor
    data_start: int
    infos: tuple[TensorInfo, ...]
    processor: TensorProcessor
    names: dict[str, str]
    #: what it comes in: transformers casts right after dequantising
    dtype: torch.dtype
    shape: tuple[int, ...]

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        first = self.infos[0]
        if first.name in _MATRICES:
            return self.rows(0, first.shape[0])
        if len(first.shape) < 3:
            return self._processed(0, first.shape[0])
        experts = first.shape[0]  # one at a time: dequantised they are four bytes a weight
        values = self._processed(0, 1)
        out = torch.empty((experts, *values.shape[1:]), dtype=self.dtype)
        out[:1] = values
        for expert in range(1, experts):
            out[expert : expert + 1] = self._processed(expert, expert + 1)
        return out

    def rows(self, first: int, last: int) -> torch.Tensor:
        info = self.infos[0]
        if info.name not in _MATRICES:
            return self[...][first:last]
        return torch.from_numpy(self._dequantised(info, first, last)).to(self.dtype)

    def get_dtype(self) -> str:
        return {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[self.dtype]

    def scheme(self) -> str | None:
        info = self.infos[0]
        name: str = gguf.GGMLQuantizationType(info.ggml_type).name.lower()
        if len(self.infos) > 1 or name not in GGML or len(info.shape) != 2 or self._order() is None:
            return None
        return name

    def planes(self) -> torch.Tensor:
        """See checkpoint.Blocks."""
        info, scheme, order = self.infos[0], GGML[str(self.scheme())], self._order()
        assert order is not None
        rows, unit = info.shape[0], info.nbytes // info.shape[0]
        blocks = read_bytes(self.path, self.data_start + info.offset, info.nbytes).view(rows, unit)
        step = max(1, _STEP_BYTES // unit)
        return torch.cat([scheme.planes(blocks[order[at : at + step]]) for at in range(0, rows, step)])

    def _order(self) -> torch.Tensor | None:
        """Which of the file's rows each row of the model is, where that is all that the processors do: they are shown rows that say which they are."""
        info = self.infos[0]
        rows = info.shape[0]
        number = np.arange(rows, dtype=np.float32)
        if info.name in _MATRICES:
            return torch.arange(rows)
        shown = np.stack([number, -1 - number], axis=1)
        gathered: dict[str, Any] = {"tensors": {}}
        try:
            result = self.processor.process(weights=shown, name=info.name, tensor_key_mapping=self.names, parsed_parameters=gathered)
        except ValueError:  # one that counts on whole rows
            return None
        found = None if result.name is None or gathered["tensors"] else np.asarray(result.weights)
        if found is None or found.shape != (rows, 2) or rows >= 1 << 24 or tuple(info.shape) != tuple(self.shape):
            return None
        order = found[:, 0]
        if not (np.array_equal(found[:, 1], -1 - order) and np.array_equal(np.sort(order), number)):
            return None
        return torch.from_numpy(order.astype(np.int64))

    def _processed(self, first: int, last: int) -> torch.Tensor:
        """Of ``[first, last)`` along the first dimension, as the model has it."""
        gathered: dict[str, Any] = {"tensors": {}}
        values: torch.Tensor | None = None
        for info in self.infos:
            result = self.processor.process(
                weights=self._dequantised(info, first, last), name=info.name, tensor_key_mapping=self.names, parsed_parameters=gathered
            )
            if result.name is not None:
                values = torch.from_numpy(np.ascontiguousarray(result.weights))
        for value in gathered["tensors"].values():  # where a processor fuses it puts what it has here
            values = value
        assert values is not None
        return values.to(self.dtype)

    def _dequantised(self, info: TensorInfo, first: int, last: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """fp32, (last - first, …); the file is read in steps."""
        inner = info.shape[1:]
        unit = info.nbytes // max(1, info.shape[0])  # bytes of one row, or of one expert
        kind = gguf.GGMLQuantizationType(info.ggml_type)
        out = np.empty((last - first, *inner), dtype=np.float32)
        step = max(1, _STEP_BYTES // max(1, unit)) if inner else last - first
        for row in range(first, last, step):
            count = min(step, last - row)
            raw = read_bytes(self.path, self.data_start + info.offset + row * unit, count * unit).numpy()
            try:
                values = gguf.dequantize(_typed(raw, kind, inner), kind)
            except NotImplementedError:
                raise UnsupportedModel(f"{self.path}: {info.name} is stored as {kind.name}, which cannot be dequantised") from None
            out[row - first : row - first + count] = values.reshape(count, *inner)
        return out


def _header(file: Path) -> GgufHeader:
    """As ``GgufHeader.from_file``, which refuses types that gguf itself dequantises (Q5_0 and Q5_1, common where a width suits no K kind)."""
    blob: Any = np.memmap(file, mode="r", dtype=np.uint8)
    metadata, count, at = _read_metadata(blob, str(file))
    entries, at = _read_tensor_table(blob, count, at)
    architecture, alignment = metadata.get("general.architecture"), metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(architecture, str) or not isinstance(alignment, int) or alignment <= 0:
        raise ModelDataError(f"{file} says neither what architecture it is of nor how it is aligned; download it again")
    infos = []
    for name, shape, kind, offset in entries:
        try:
            block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise UnsupportedModel(f"{file}: {name} is of ggml's type {kind}, which potatod does not know") from None
        if shape and shape[-1] % block:
            raise ModelDataError(f"{file}: {name} has rows of {shape[-1]} values in blocks of {block}; download it again")
        infos.append(TensorInfo(name, shape, kind, offset, math.prod(shape) // block * nbytes))
    return GgufHeader(str(file), architecture, tuple(infos), -(-at // alignment) * alignment)


def _typed(raw: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType, inner: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Bytes as gguf's dequantiser takes them: values, or rows of blocks."""
    if kind == gguf.GGMLQuantizationType.F32:
        return raw.view(np.float32)
    if kind == gguf.GGMLQuantizationType.F16:
        return raw.view(np.float16)
    return raw.reshape(-1, gguf.quant_shape_to_byte_shape(inner[-1:], kind)[0]) if inner else raw.reshape(1, -1)


def _shape(skeleton: Skeleton, name: str, infos: list[TensorInfo]) -> tuple[int, ...]:
    """What the processors make of these: the file's own shape, but for fused experts."""
    if len(infos) == 1 and infos[0].name in _MATRICES:
        return tuple(infos[0].shape)
    return tuple(skeleton.model.state_dict()[name].shape)


def _without_strings(file: Path) -> tuple[dict[str, Any], bytes]:
    """The metadata with arrays of strings as their lengths, and a GGUF file of the same metadata without those and
    without tensors."""
    blob: Any = np.memmap(file, mode="r", dtype=np.uint8)
    version, _, count = struct.unpack_from("<IQQ", blob, 4)
    metadata: dict[str, Any] = {}
    kept: list[bytes] = []
    at = 24
    for _ in range(count):
        start = at
        key, at = _read_string(blob, at)
        (kind,) = struct.unpack_from("<I", blob, at)
        is_array = kind == 9
        metadata[key], at = _read_value(blob, at + 4, kind)
        if not (is_array and key.startswith("tokenizer.")):
            kept.append(bytes(blob[start:at]))
    body = b"GGUF" + struct.pack("<IQQ", version, 0, len(kept)) + b"".join(kept)
    return metadata, body + bytes(-len(body) % 4096 or 4096)


def _config_page(header: GgufHeader, metadata: dict[str, Any], stub: bytes) -> dict[str, Any]:
    """The config as transformers makes it of this file."""
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(stub)
        file.flush()
        page = {key: _plain(value) for key, value in load_gguf_checkpoint(file.name)["config"].items()}
    names = [info.name for info in header.tensors]
    page["tie_word_embeddings"] = "output.weight" not in names or header.architecture in _ALWAYS_TIED
    if "stablelm" in header.architecture:
        page["use_qkv_bias"] = any(name.endswith(("attn_q.bias", "attn_k.bias", "attn_v.bias")) for name in names)
        page["use_parallel_residual"] = not any("ffn_norm" in name for name in names)
    if not isinstance(page.get("vocab_size"), int) and isinstance(metadata.get("tokenizer.ggml.tokens"), int):
        page["vocab_size"] = metadata["tokenizer.ggml.tokens"]
    return page


def _explained(file: Path, error: ValueError) -> ModelDataError:
    text = str(error)
    if "supported" in text:
        return UnsupportedModel(text if str(file) in text else f"{file}: {text}")
    if "magic" in text:
        return ModelDataError(f"{file} is not a GGUF file")
    return ModelDataError(f"{file} is cut short or damaged ({text}); download it again")


def _plain(value: Any) -> Any:
    """numpy scalars and arrays of the reader, as JSON has them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
