"""``python -m potatod.worker.measure SETTINGS STORED_AS``: how fast this machine computes with weights, as one line of JSON. Then it ends.

Llama-like models of random weights run through the worker's own kernels, at a context of a few tokens: one whose layers are too large for any cache,
which gives bytes of weights a second at several numbers of rows; and two whose layers are nearly nothing, which differ in how many they are and
so give what a layer costs whatever its size.
"""

from __future__ import annotations

import mmap
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from potatod import errand, forms, memory, schemes
from potatod.config import Settings
from potatod.dtypes import RAW
from potatod.machine import cache_bytes, cores

from . import arithmetic, device, kernels
from .attention import PackedAttention
from .banded import Banded, Piece, Scratch
from .device import Device
from .lenders import open_device
from .selfcheck import Runner
from .simulated import Simulated

#: Sequences in a sweep, one token each.
ROWS: Final = (1, 4, 16, 64, 256)
#: Each is measured so often, or until it has taken so long.
_TIMES: Final = 25
_LIMIT_S: Final = 1.0
#: (hidden size, intermediate size): a layer has 0.15 million weights, or 45 million.
NARROW, WIDE = (128, 256), (2048, 5632)
_WIDE_WEIGHTS: Final = 45_000_000
#: Layers of the narrow models.
_FEW, _MANY = 4, 16
#: Weights of the wide one, at least: little enough for the smallest machine that serves anything. Where caches hold much of it and there is RAM, more.
_WIDE_BYTES: Final = 180 << 20
_CACHES: Final = 3
_SHARE_OF_RAM: Final = 8
#: A layer of a large model.
_UPLOADED_BYTES: Final = 256 << 20


def main(argv: list[str]) -> int:
    scheme, _, dtype = argv[1].rpartition(" of ")  # as manifest.stored_as says it
    return errand.answer(lambda: find(Settings.from_json(argv[0]), getattr(torch, dtype), scheme or RAW))


@torch.inference_mode()
def find(settings: Settings, dtype: torch.dtype, scheme: str = RAW) -> dict[str, Any]:
    """``device``, as torch names it; ``compute``: [rows, bytes a second] each; ``layer_s``: seconds; ``upload``: bytes a second, None on a cpu;
    ``overlaps``: whether uploads go on while the device computes."""
    torch.set_num_threads(settings.worker.threads or cores())
    name = device.find(settings.worker.device)
    opened = open_device(name)
    if isinstance(opened, Simulated) and opened.compute_bytes_per_s:  # it says so itself
        said = {"device": name, "layer_s": 0.0, "compute": [[1, opened.compute_bytes_per_s], [ROWS[-1], opened.compute_bytes_per_s]]}
        return said | {"upload": opened.upload_bytes_per_s, "overlaps": True}
    where = torch.device("cpu") if opened is None else opened.torch_device
    attention = PackedAttention()
    few, many = (_Timed(_model(*NARROW, layers, dtype, where), settings.worker.kernels, where, attention).seconds(1) for layers in (_FEW, _MANY))
    layer_s = max(many - few, 0.0) / (_MANY - _FEW)
    layers = _wide_bytes() // (_WIDE_WEIGHTS * dtype.itemsize)
    wide = _Timed(_model(*WIDE, layers, dtype, where), settings.worker.kernels, where, attention, scheme)
    upload, overlaps = (None, True) if opened is None else _uploads(opened, settings.pool.page_lock is not False)
    return {
        "device": name,
        "layer_s": layer_s,
        "compute": list(_by_rows(wide, max(few - (_FEW - layers) * layer_s, 0.0))),
        "upload": upload,
        "overlaps": overlaps,
    }


def _wide_bytes() -> int:
    return max(_WIDE_BYTES, min(_CACHES * cache_bytes(), memory.available().size_bytes // _SHARE_OF_RAM))


def _uploads(opened: Device, page_lock: bool) -> tuple[float, bool]:
    """Bytes a second from memory, page-locked where it is to be and can be, to the device: copies as slots.py makes them, one layer after the other.

    And whether it was page-locked: if not, whoever copies waits for it, and enqueues nothing to compute meanwhile.
    """
    nbytes = min(_UPLOADED_BYTES, opened.free_bytes() // 2)
    memory = mmap.mmap(-1, nbytes)
    source = torch.frombuffer(memory, dtype=torch.uint8)
    source.fill_(1)  # pages that are there
    locked = page_lock and opened.page_lock(source.data_ptr(), source.numel())
    target = opened.empty(nbytes)
    times = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        opened.copy(target, source)
        opened.copied().synchronize()
        times.append(time.perf_counter() - began)
    return nbytes / statistics.median(times), locked


def _by_rows(wide: _Timed, fixed_s: float) -> Iterator[tuple[int, float]]:
    """(rows, bytes of weights a second) for ROWS, as far as that takes no longer than it should."""
    for rows in ROWS:
        seconds = wide.seconds(rows)
        yield rows, wide.weights_bytes / max(seconds - fixed_s, seconds / 2)
        if seconds > _LIMIT_S:
            return


def _model(hidden: int, intermediate: int, layers: int, dtype: torch.dtype, where: torch.device) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256), max_position_embeddings=256,
    )  # fmt: skip
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    return model.to(where)


def _stored(scheme: str, weight: torch.Tensor) -> Piece:
    if scheme in schemes.GGML:  # any blocks take the same time
        lies = torch.zeros(weight.shape[0] * forms.record_bytes(scheme, weight.shape[1]), dtype=torch.uint8)
    else:
        lies = schemes.get(scheme).pack(weight.detach().cpu())
    return Piece(scheme, lies.to(weight.device), weight.dtype, weight.shape)


class _Timed:
    """Sweeps of one token each of so many sequences."""

    def __init__(self, model: PreTrainedModel, name: str, where: torch.device, attention: PackedAttention, scheme: str = RAW) -> None:
        """``scheme``: what the layers' matrices are stored in."""
        shapes = sorted({tuple(p.shape) for p in model.parameters() if p.dim() == 2})
        found = arithmetic.find(name, shapes, model.dtype, where, {RAW, scheme})
        self.weights_bytes = sum(p.numel() * p.itemsize for p in model.model.layers.parameters())
        for module in model.model.layers.modules() if scheme != RAW else ():
            if isinstance(module, nn.Linear):
                piece = _stored(scheme, module.weight)
                self.weights_bytes += piece.lies.nbytes - module.weight.nbytes
                module._parameters["weight"] = Banded.of([piece], Scratch())  # type: ignore[assignment]  # as the worker binds it
        self._where = where
        self._runner = Runner(model, kernels.choose(name, "packed", model.config, where, attention, found))

    def seconds(self, rows: int) -> float:
        """Of a sweep with so many rows: the median, since what else the machine and its neighbours do goes on while the model is served."""
        sequences = [self._runner.new_kv() for _ in range(rows)]
        self._runner.run([(kv, [3]) for kv in sequences], 1)
        times: list[float] = []
        while len(times) < _TIMES and (not times or sum(times) < _LIMIT_S):
            began = time.perf_counter()
            self._runner.run([(kv, [3]) for kv in sequences], len(times) + 2)
            if self._where.type != "cpu":
                torch.get_device_module(self._where).synchronize(self._where)
            times.append(time.perf_counter() - began)
        return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
