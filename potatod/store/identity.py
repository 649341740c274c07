"""What decides a model folder's bytes, as one key: computed from names, sizes and times, without loading torch.

So `potatod prepare` knows in no time that there is nothing to do.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any, Final

from potatod.manifest import FORMAT

#: Of a checkpoint's folder: weights, index, configs, tokenizers, templates.
_PATTERNS: Final = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")


def key_of(source: Path, dtype: str, band_bytes: int | None) -> str:
    """Equal where source, options and the versions of what converts are. ``source`` is a file or a folder that is there."""
    files = sorted({path for pattern in _PATTERNS for path in source.glob(pattern)}) if source.is_dir() else [source]
    found = [(path.name, path.stat()) for path in files if path.is_file()]
    return _key([[name, stat.st_size, stat.st_mtime_ns] for name, stat in found], dtype, band_bytes)


def key_at_hub(model_id: str, commit: str, dtype: str, band_bytes: int | None = None) -> str:
    """The same, of a model at the hub."""
    return _key([model_id, commit], dtype, band_bytes)


def _key(identity: list[Any], dtype: str, band_bytes: int | None) -> str:
    versions = [importlib.metadata.version(name) for name in ("potato-lm", "transformers")]
    text = json.dumps([identity, dtype, band_bytes, FORMAT, versions])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
