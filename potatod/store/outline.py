"""The manifest that `prepare` would write, from a model's config alone: nothing of its weights is read, and from a hub one small file is fetched.

Checksums are zeros. Whether head and embedding are one is the config's word; `prepare` looks into the weights.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedConfig

from potatod import model_folder
from potatod.dtypes import AUTO, KEEP, RAW
from potatod.errors import UsageError
from potatod.json_file import read_json
from potatod.manifest import FORMAT, Manifest, Part, Shard

from . import blueprint, hub, skeleton
from .checkpoint import PLAIN
from .convert import Converter, stored
from .skeleton import Skeleton
from .source import Source, config_and_method, open_source
from .storing import Storing, settled, wish

_CONFIG: Final = "config.json"
_NO_CHECKSUM: Final = "0" * 16


def outline(source: str, dtype: str = "auto", ram: int | None = None, revision: str | None = None) -> tuple[Manifest, PreTrainedConfig]:
    """Of a model folder, a checkpoint's folder, a GGUF file, a config.json, or a hub id; ``dtype`` as `prepare` takes it where there are ``ram`` bytes
    of RAM, None for what is available here.

    Raises what :func:`prepare.prepare` raises for it.
    """
    path = hub.fetch_config(source, revision) if hub.looks_like_id(source) else Path(source)
    asked = wish(dtype)
    opened: Source | None = None
    if (path / model_folder.NAME).is_file() and asked.scheme in (AUTO, RAW) and not asked.patterns:
        if asked.dtype is not None:
            raise UsageError(f"{path} is a model folder already: its dtype is in its files")
        return model_folder.load(path), skeleton.load_config(path)
    if (path.is_file() and path.suffix == ".json") or (path.is_dir() and not _has_weights(path)):
        file = path / _CONFIG if path.is_dir() else path
        config, _ = config_and_method(read_json(file), file)
        own = config.dtype if config.dtype in PLAIN[1:] else torch.bfloat16
    else:
        opened = open_source(path)
        config, own = opened.config, opened.default_dtype()
    chosen = asked.dtype or own
    built = skeleton.build(config, chosen)
    asked = settled(asked, chosen, stored(built.model, chosen).values(), ram, lambda _: None)
    kept = Converter(built, opened.tensors(built, chosen), chosen).kept() if opened and asked.scheme == KEEP else {}
    return _manifest(built, Storing(asked, built, kept), chosen, path), config


def _has_weights(folder: Path) -> bool:
    return any(path.suffix in (".safetensors", ".gguf", ".bin", ".pt", ".pth") for path in folder.iterdir())


def _manifest(built: Skeleton, storing: Storing, dtype: torch.dtype, path: Path) -> Manifest:
    drawn = blueprint.draw(built, stored(built.model, dtype), storing)
    return Manifest(
        format=FORMAT,
        potatod=importlib.metadata.version("potato-lm"),
        transformers=importlib.metadata.version("transformers"),
        architecture=type(built.model).__name__,
        model_type=built.model.config.model_type,
        dtype=str(dtype).removeprefix("torch."),
        layers=len(built.layers),
        layers_name=built.layers_name,
        embed_name=built.embed_name,
        head_name=built.head_name,
        tied=built.tied,
        fingerprint=skeleton.fingerprint(built),
        files=drawn.files,
        shards=tuple(Shard(shard.kind, shard.layer, tuple(map(_unwritten, shard.parts))) for shard in drawn.shards),
        provenance={"source": path.name},
    )


def _unwritten(part: Part) -> Part:
    return Part(part.file, part.offset, part.length, _NO_CHECKSUM, part.tensors)
