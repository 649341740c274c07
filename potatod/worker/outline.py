"""``python -m potatod.worker.outline SOURCE DTYPE [RAM [KV [KERNELS [REVISION]]]]``: a model that need not be here, as one line of JSON. Then it ends.

Its manifest as `prepare` would write it, and what a sequence of it keeps: from its config and the heads of its files. A short process, since
building a model loads torch, and whoever asks does not want to carry that.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import torch
from transformers import PreTrainedConfig

from potatod import errand
from potatod import manifest as manifests
from potatod.dtypes import KV_DTYPES
from potatod.kv_layout import KvLayout
from potatod.store.outline import outline

from .arithmetic import would_put_together
from .attention import PackedAttention
from .probe import check_kv, kept, max_positions, weight_shapes


def main(argv: list[str]) -> int:
    return errand.answer(lambda: find(*argv))


def find(
    source: str, dtype: str, ram: str = "", kv: str = "auto", kernels: str = "invariant", revision: str | None = None
) -> dict[str, Any]:  # fmt: skip
    """The fields of outline.Outline. ``kv`` and ``kernels`` as the settings have them."""
    manifest, config = outline(source, dtype, int(ram) if ram else None, revision)
    return {
        "manifest": json.dumps(dataclasses.asdict(manifest)),
        "kv": _kept(config, getattr(torch, manifest.dtype), kv, kernels).to_json(),
        "max_positions": max_positions(config),
        "together": would_put_together(kernels, manifests.schemes_of(manifest), getattr(torch, manifest.dtype), weight_shapes(manifest)),
    }


def _kept(config: PreTrainedConfig, dtype: torch.dtype, kv: str, kernels: str) -> KvLayout:
    """Packed, as most families are served; those that attend in modules of their own leave nothing there."""
    packed = kept(config, dtype, "fast", "packed", PackedAttention(), KV_DTYPES[kv])
    check_kv(kv, kernels, "packed" if packed.groups else "sequences", config)
    return packed if packed.groups else kept(config, dtype, "fast", "sequences", PackedAttention())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
