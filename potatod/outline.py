"""What can be known of a model before it is served, or even here: its parts, and what a sequence of it keeps.

Of a model folder that has been served the probe knows more than that; of anything else a short process builds it without weights
(worker/outline.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import errand, manifest, model_folder, process, verdict
from .config import Settings
from .kv_layout import KvLayout
from .manifest import Manifest
from .room import Together

#: A model's shapes take seconds.
_LIMIT_S: Final = 300.0
#: Resident set of a worker before it has any weights, where no probe has measured it.
_WORKER_BYTES: Final = 330 << 20


@dataclass(frozen=True, slots=True)
class Outline:
    #: checksums are zeros where no folder has been prepared
    manifest: Manifest
    #: what is kept of a sequence
    kv: KvLayout
    #: tokens that the model was made for
    max_positions: int
    #: as in verdict.Findings
    together: Together
    #: resident set of a worker with this model and no KV
    worker_bytes: int
    #: of a draft model beside it
    draft_bytes: int = 0
    draft_on_card: tuple[int, int] = (0, 0)


def of(source: str, dtype: str, revision: str | None, settings: Settings, ram: int | None = None) -> Outline:
    """Of a model folder, a checkpoint's folder, a GGUF file, a config.json or a hub id, prepared with so many bytes of RAM, None for what is available
    here. Raises what `potatod prepare` raises for it."""
    folder = Path(source)
    if dtype == "auto" and (folder / model_folder.NAME).is_file():
        index = model_folder.load(folder)
        found = verdict.known(settings, folder, index)
        if found is not None:
            return Outline(index, found.kv, found.max_positions, found.together, found.worker_bytes)
    environment = process.environment()
    if "HF_HUB_OFFLINE" not in os.environ:
        del environment["HF_HUB_OFFLINE"]  # a hub id's config is fetched
    arguments = (source, dtype, "" if ram is None else str(ram), settings.kv.dtype, settings.worker.kernels, *([revision] if revision else []))
    said = errand.run("worker.outline", *arguments, limit_s=_LIMIT_S, environment=environment)
    return Outline(manifest=manifest.parse(said.pop("manifest")), kv=KvLayout.from_json(said.pop("kv")), worker_bytes=_WORKER_BYTES, **said)
