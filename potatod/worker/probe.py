"""``python -m potatod.worker.probe FOLDER SETTINGS``: what this machine does with this model, as one line of JSON. Then it ends.

A short process, so that nothing which serves carries what only the probe needs. Exit codes as everywhere; the sentence is in "error".
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from potatod import errand, model_folder
from potatod import manifest as manifests
from potatod.config import Settings
from potatod.dtypes import AUTO, KV_DTYPES
from potatod.errors import ConfigError
from potatod.kv_layout import BLOCK, KvGroup, KvLayout
from potatod.machine import cores
from potatod.manifest import Manifest
from potatod.plan import sweep_parts
from potatod.store import lean
from potatod.store import skeleton as skeletons

from . import arithmetic, device, selfcheck
from .arithmetic import PLAIN
from .attention import PackedAttention, find_tile
from .kernels import choose
from .kv import Paged, Piece, SequenceKV
from .lenders import torch_device
from .passes import Batching, Pack


def main(argv: list[str]) -> int:
    return errand.answer(lambda: find(Path(argv[0]), Settings.from_json(Path(argv[1]).read_text())))


def find(folder: Path, settings: Settings) -> dict[str, Any]:
    """The fields of verdict.Findings."""
    torch.set_num_threads(settings.worker.threads or cores())
    name = device.find(settings.worker.device)
    where = torch_device(name)  # says what is missing where it is not there
    manifest = model_folder.load(folder)
    dtype = getattr(torch, manifest.dtype)
    config = skeletons.load_config(folder)
    built = skeletons.build(config, dtype)  # as the worker will hold it
    worker_bytes = _private_bytes()
    del built
    _count_touched_anew()
    kernels = settings.worker.kernels
    attention = PackedAttention()
    check_kv(settings.kv.dtype, kernels, "packed", config)  # before what takes a minute
    batching, checked = selfcheck.check(config, kernels, attention, find_tile(dtype, where))
    stored = manifests.schemes_of(manifest)
    shapes, kv = weight_shapes(manifest) if batching == "packed" else [], KV_DTYPES[settings.kv.dtype]
    check_kv(settings.kv.dtype, kernels, batching, config)
    found = arithmetic.find(kernels, shapes, dtype, where, stored)
    selfcheck.check_layer(config, manifest, folder, kernels, batching, attention, found, where)
    if kv is not None:
        found = found.keeping(kv)
    return {
        "device": device.describe(name),
        "batching": batching,
        "arithmetic": found.to_json(),
        "together": "layer" if kernels == "reference" else found.together(stored, shapes),
        "kv": kept(config, dtype, kernels, batching, attention, kv).to_json(),
        "max_positions": max_positions(config),
        "rope_border": rope_border(config),
        "worker_bytes": worker_bytes + _touched_bytes(),
        "checked": checked,
    }


def check_kv(kv: str, kernels: str, batching: str, config: PreTrainedConfig) -> None:
    """Raises ConfigError where ``[kv] dtype`` is not ours to choose."""
    if kv != AUTO and (kernels == "reference" or batching != "packed"):
        why = 'with kernels = "reference"' if kernels == "reference" else f"by {config.model_type}, whose KV is its own"
        raise ConfigError(f'[kv] dtype = "{kv}" is not kept {why}: leave it at "auto"')


def _private_bytes() -> int:
    """Of this process's memory, what is no file's."""
    return sum(region.anonymous for region in psutil.Process().memory_maps(grouped=False))


def _count_touched_anew() -> None:
    """For _touched_bytes."""
    with contextlib.suppress(OSError):  # then pages touched while starting count too
        Path("/proc/self/clear_refs").write_text("1")


def _touched_bytes() -> int:
    """Of the files that this process maps (libraries), what has been touched: the rest the kernel takes away where memory is short. The compiler
    is only the probe's."""
    regions = psutil.Process().memory_maps(grouped=False)
    return sum(region.referenced for region in regions if region.path.startswith("/") and not region.anonymous and "llvm" not in region.path)


def weight_shapes(manifest: Manifest) -> list[tuple[int, int]]:
    """The distinct (out, in) shapes of the weight matrices that a sweep multiplies with."""
    layers = [shape for shard in manifest.shards if shard.kind == "layer" for shape in manifests.shapes_of(shard).values()]
    head: dict[int, tuple[int, int]] = {}
    for stop, part in sweep_parts(manifest):
        if stop >= manifest.layers:
            (band,) = part.tensors
            head[stop] = (head.get(stop, (0, 0))[0] + band.shape[0], band.shape[1])
    return sorted({(shape[-2], shape[-1]) for shape in (*layers, *head.values()) if len(shape) >= 2})


def kept(
    config: PreTrainedConfig, dtype: torch.dtype, kernels: str, batching: str, attention: PackedAttention, kv: str | None = None
) -> KvLayout:  # fmt: skip
    """What the worker keeps of a sequence, its keys and values as ``kv``.

    Found by running the model where tensors have shapes and no values. How a text is cut into passes and tiles changes nothing, so it is not cut.
    """
    kernels = "fast" if kernels == "invariant" else kernels
    if batching != "packed":
        batching = "sequences"
    plain = copy.deepcopy(config)
    plain.pad_token_id = None  # or some families look for it among the tokens
    model = skeletons.build(plain, dtype).model.to("meta")
    chosen = choose(kernels, batching, model.config, torch.device("meta"), attention, replace(PLAIN, kv=kv))
    chosen.prepare(model)
    with torch.inference_mode(), _without_experts(model), lean.without_compiler():  # or it is loaded for nothing: a third of a probe's time
        few, many = (_kept_after(tokens, model, chosen.batching) for tokens in (BLOCK, 2 * BLOCK))
    if isinstance(few, Paged):
        groups = tuple(KvGroup(window, size) for window, size in sorted(few.bytes_per_token().items(), key=lambda item: item[0] or 0))
        return KvLayout(groups, widened=dtype.itemsize // getattr(torch, kv).itemsize if kv else 1)
    grown = max(0, _bytes_of(many) - _bytes_of(few)) // BLOCK
    return KvLayout((KvGroup(None, grown),), max(0, _bytes_of(few) - grown * BLOCK), forks=False)


def _kept_after(tokens: int, model: PreTrainedModel, batching: Batching) -> SequenceKV:
    kv = batching.new_kv()
    for run in batching.passes(model, Pack([0] * tokens, [Piece(kv, 0, tokens, 0, tokens)], ())):
        run()
    return kv


def _bytes_of(kv: SequenceKV) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in kv.tensors())


@contextlib.contextmanager
def _without_experts(model: PreTrainedModel) -> Iterator[None]:
    """Which experts a token goes to is a value, and there are none here; what they give has the shape of what they get."""
    skipped = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    for module in skipped:
        module.forward = lambda hidden, *_, **__: hidden
    try:
        yield
    finally:
        for module in skipped:
            del module.forward


def rope_border(config: PreTrainedConfig) -> int | None:
    """Tokens up to which longrope turns by its short set; None for every other rope. See passes.py, NOTE [ longrope ]."""
    for rope in skeletons.rope_sets(config):
        if rope.get("rope_type") == "longrope" and isinstance(rope.get("original_max_position_embeddings"), int):
            return int(rope["original_max_position_embeddings"])
    return None


def max_positions(config: PreTrainedConfig) -> int:
    """Tokens that the model is made for; 2^20 where nothing in its architecture limits them."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1 << 20


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
