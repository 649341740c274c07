"""``python -m potatod.worker.probe FOLDER SETTINGS``: what this machine does with this model, as one line of JSON. Then it ends.

A short process, so that nothing which serves carries what only the probe needs. Exit codes as everywhere; the sentence is in "error".
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedConfig

from potatod import manifest as manifests
from potatod.config import Settings
from potatod.errors import EXIT_INTERNAL, EXIT_OK, PotatoError
from potatod.manifest import Manifest
from potatod.stage import die_with_parent
from potatod.store import skeleton as skeletons

from . import device, selfcheck
from .attention import PackedAttention
from .rows import find_groupings


def main(argv: list[str]) -> int:
    die_with_parent()
    try:
        said, code = find(Path(argv[0]), Settings.from_json(Path(argv[1]).read_text())), EXIT_OK
    except PotatoError as error:
        said, code = {"error": str(error)}, error.exit_code
    except Exception as error:  # the process's top: whatever it is, say it and end
        said, code = {"error": f"{type(error).__name__}: {error}"}, EXIT_INTERNAL
        traceback.print_exc()
    sys.stdout.write(json.dumps(said) + "\n")
    return code


def find(folder: Path, settings: Settings) -> dict[str, Any]:
    """The fields of verdict.Findings."""
    torch.set_num_threads(settings.worker.threads or os.cpu_count() or 1)
    name = device.find(settings.worker.device)
    if name != "cpu":
        device.Accelerator(name)  # says what is missing where it is not there
    manifest = manifests.load(folder)
    dtype = getattr(torch, manifest.dtype)
    config = skeletons.load_config(folder)
    skeleton = skeletons.build(config, dtype)
    worker_bytes = psutil.Process().memory_info().rss
    groupings = {}
    if settings.worker.kernels == "invariant":
        groupings = find_groupings(weight_shapes(manifest), dtype, torch.device(name))
    return {
        "device": device.describe(name),
        "groupings": [[*shape, grouping.rows, grouping.fixed] for shape, grouping in groupings.items()],
        "kv_bytes_per_token": kv_bytes_per_token(skeleton.model.config, dtype),
        "max_positions": max_positions(skeleton.model.config),
        "worker_bytes": worker_bytes,
        "checked": selfcheck.check(config, settings.worker.kernels, PackedAttention()),
    }


def weight_shapes(manifest: Manifest) -> list[tuple[int, int]]:
    """The distinct (out, in) shapes of the weight matrices that a sweep multiplies with."""
    tensors = [t for s in manifest.shards if s.kind in ("layer", "head") for p in s.parts for t in p.tensors]
    return sorted({(t.shape[-2], t.shape[-1]) for t in tensors if len(t.shape) >= 2})


def kv_bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token, all layers. For models that cache latents this is what transformers stores for them."""
    heads = getattr(config, "num_attention_heads", 1)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(config.num_hidden_layers * 2 * kv_heads * width * dtype.itemsize)


def max_positions(config: PreTrainedConfig) -> int:
    """Tokens that the model can be served with exactly; 2^20 where nothing in its architecture limits them.

    With longrope that is its original length: beyond it every position turns otherwise, also those whose keys are cached already, so a text would
    depend on how its prompt was cut.
    """
    for rope in _rope_sets(config):
        if rope.get("rope_type") == "longrope" and isinstance(rope.get("original_max_position_embeddings"), int):
            return int(rope["original_max_position_embeddings"])
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1 << 20


def _rope_sets(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The rope parameters: one set, or one for each kind of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    return [found, *(value for value in found.values() if isinstance(value, dict))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
