"""Where weights come from: a Hugging Face folder, a model folder or a GGUF file (a hub id is a folder once hub.py has fetched it)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from potatod import model_folder
from potatod.errors import ModelDataError, NoSuchModel, UnsupportedModel

from . import compressed_tensors, quantised
from .checkpoint import PLAIN, FileTensor, Lazy, open_folder, read_config
from .folder import FolderSource
from .gguf_file import GgufSource
from .skeleton import Skeleton, config_of

_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: The text part of a model that also sees or hears, and what a text model alone calls it.
_TEXT_PARTS: Final = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.text_model.", "model."),
)


class Source(Protocol):
    """A checkpoint, opened: its config is read, its weights are not."""

    #: the file or folder, for messages
    path: Path
    #: of the text model
    config: PreTrainedConfig

    def default_dtype(self) -> torch.dtype: ...

    def tensors(self, skeleton: Skeleton, dtype: torch.dtype) -> dict[str, Lazy]:
        """Whatever the checkpoint holds, by the names that transformers' loader expects."""


def open_source(path: Path) -> Source:
    """Raises NoSuchModel, ModelDataError, UnsupportedModel or UsageError."""
    if path.is_dir():
        if (path / model_folder.NAME).exists():
            return FolderSource(path)
        return HuggingFaceSource(path)
    if path.suffix in _PICKLES and path.is_file():
        raise UnsupportedModel(
            f"{path} is a pickle, and reading a pickle runs whatever code it holds: potatod never does. Take the "
            "model's safetensors or GGUF files"
        )
    if path.is_file():
        return GgufSource(path)
    raise NoSuchModel(f"{path} is neither a file, nor a folder, nor a hub id (organisation/model)")


class HuggingFaceSource:
    """A folder with config.json and safetensors files."""

    def __init__(self, folder: Path, tensors: dict[str, Lazy] | None = None) -> None:
        """``tensors``: all that there are, where not all of their files are in the folder."""
        self.path = folder
        page = read_config(folder)
        self.config, self._method = config_and_method(page, folder / "config.json")
        self._is_part = self.config.model_type != page.get("model_type")
        self._tensors = open_folder(folder) if tensors is None else tensors

    def default_dtype(self) -> torch.dtype:
        """The config's, else that of the first weights."""
        own = self.config.dtype
        if isinstance(own, torch.dtype) and own in PLAIN[1:]:
            return own
        plain = [lazy.dtype for lazy in self._tensors.values() if lazy.dtype in PLAIN[1:]]
        return plain[0] if plain else torch.bfloat16

    def tensors(self, skeleton: Skeleton, dtype: torch.dtype) -> dict[str, Lazy]:
        own = self._own()
        return quantised.dequantised(own, self._method, dtype)

    @property
    def is_packed(self) -> bool:
        """Whether small tensors say what the others are, and so are read before any is wanted."""
        return self._method is not None and self._method.get("quant_method") in compressed_tensors.METHODS

    def files(self) -> dict[str, frozenset[Path]]:
        """Where what is read for each of :meth:`tensors` lies, by their names: beside a matrix's weights its scales and blocks too."""
        found: dict[str, set[Path]] = {}
        for name, lazy in self._own().items():
            assert isinstance(lazy, FileTensor)
            for key in (name, f"{name.rpartition('.')[0]}.weight", name.removesuffix("_blocks").removesuffix("_scales")):
                found.setdefault(key, set()).add(lazy.path)
        return {key: frozenset(paths) for key, paths in found.items()}

    def _own(self) -> dict[str, Lazy]:
        return _text_part(self._tensors) if self._is_part else self._tensors


def config_and_method(page: dict[str, Any], where: Path) -> tuple[PreTrainedConfig, dict[str, Any] | None]:
    """The text model's config out of a checkpoint's config.json, and how its weights are quantised, which `prepare` undoes."""
    if page.get("model_type") in CONFIG_MAPPING:
        page.pop("auto_map", None)  # what its authors once needed is in transformers itself now
    text = page.get("text_config")
    inner = text.pop("quantization_config", None) if isinstance(text, dict) else None
    method = page.pop("quantization_config", None) or inner
    if method is not None and not isinstance(method, dict):
        raise ModelDataError(f'{where}: "quantization_config" must be an object')
    quantised.check(method, where.parent)
    return config_of(page, where), method


def _text_part(tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    """The language model's tensors of a multimodal checkpoint, under the names that they have in a text model."""
    out: dict[str, Lazy] = {}
    for name, lazy in tensors.items():
        for prefix, plain in _TEXT_PARTS:
            if name.startswith(prefix):
                out[plain + name.removeprefix(prefix)] = lazy
                break
        else:
            if name.startswith("lm_head."):
                out[name] = lazy
    return out
