"""The same engine on a CUDA device: exact against transformers there, uploads at full speed and beside compute, and what goes wrong said."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from engine import Engine
from families import by_name

from potatod import model_folder
from potatod.errors import DoesNotFit
from potatod.plan import sweep_parts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]

NAMES = ["Llama 2", "Llama 3.1, 3.2", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Gemma 2", "Gemma 3", "Phi-4", "gpt-oss"]
PROMPT = torch.randint(3, 320, (40,), generator=torch.Generator().manual_seed(1)).tolist()
POOL = 600 << 10
MIB = 1 << 20


@pytest.fixture
def prepared(tmp_path):
    """A family's tiny model: transformers' on the card, and the model folder."""
    import transformers

    from potatod.store.prepare import prepare

    def make(name: str):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(by_name(name).config(), attn_implementation="eager").eval()
        model.save_pretrained(tmp_path / "source")
        prepare(tmp_path / "source", tmp_path / "model", band_bytes=1 << 13)
        return model.cuda(), tmp_path / "model"

    return make


def card_bytes(folder: Path, share: float) -> int:
    """Two slots and ``share`` of the rest."""
    lengths = [(stop, part.length) for stop, part in sweep_parts(model_folder.load(folder))]
    layer = max(sum(n for s, n in lengths if s == stop) for stop in {s for s, _ in lengths})
    total = sum(n for _, n in lengths)
    return min(total, int(2 * layer + share * (total - 2 * layer)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kernels", "share"), [("reference", 0.0), ("invariant", 0.5), ("fast", 1.0)])
def test_greedy_tokens_are_those_of_transformers_on_the_same_device(prepared, name, kernels, share):
    model, folder = prepared(name)
    out = model.generate(torch.tensor([PROMPT]).cuda(), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
    with Engine(folder, POOL, kernels=kernels, device="cuda:0", card_bytes=card_bytes(folder, share)) as engine:
        assert engine.greedy(1, PROMPT, 16) == out[0, len(PROMPT) :].tolist()


def accelerator():
    from potatod.worker.device import Accelerator

    return Accelerator("cuda:0")


def pool(nbytes: int) -> torch.Tensor:
    """Memory as the pool's: shared, of whole pages, and there."""
    memory = torch.frombuffer(mmap.mmap(-1, nbytes), dtype=torch.uint8)
    return memory.copy_(torch.arange(nbytes, dtype=torch.int64).to(torch.uint8))


def seconds(copies, synchronize) -> float:
    """The best of five."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        copies()
        synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def test_uploads_from_the_locked_pool_are_as_fast_as_from_memory_that_cuda_allocated():
    device, size = accelerator(), 512 * MIB
    source, target = pool(size), device.empty(size)
    assert device.page_lock(source.data_ptr(), size), "the pool could not be page-locked: raise the memlock limit"
    ours = seconds(lambda: device.copy(target, source), lambda: device.copied().synchronize())
    assert torch.equal(target.cpu(), source)
    plain = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    theirs = seconds(lambda: target.copy_(plain, non_blocking=True), torch.cuda.synchronize)
    assert ours <= theirs / 0.9, f"{size / ours / 1e9:.1f} GB/s beside {size / theirs / 1e9:.1f}"


def test_without_page_lock_bytes_arrive_through_the_bounce_buffer():
    device, size = accelerator(), 37 * MIB + 4096
    source, target = pool(size), device.empty(size)
    device.copy(target, source)
    source.fill_(7)  # it has been read when copy() returned
    device.copied().synchronize()
    assert torch.equal(target.cpu(), pool(size))


def test_uploads_run_beside_compute():
    device, size = accelerator(), 512 * MIB
    source, target = pool(size), device.empty(size)
    assert device.page_lock(source.data_ptr(), size)
    x = torch.randn(4096, 4096, device="cuda")

    def compute() -> None:
        for _ in range(40):
            torch.mm(x, x)

    compute()
    alone = seconds(lambda: device.copy(target, source), lambda: device.copied().synchronize()), seconds(compute, torch.cuda.synchronize)

    def both() -> None:
        device.copy(target, source)
        compute()

    together = seconds(both, torch.cuda.synchronize)
    assert together < max(alone) + 0.5 * min(alone), f"{together:.4f} s together, {alone[0]:.4f} and {alone[1]:.4f} s alone"


def test_memory_that_is_not_there_is_said_with_the_missing_bytes():
    with pytest.raises(DoesNotFit, match="are missing"):
        accelerator().empty(1 << 45)


def test_a_sweep_that_runs_out_of_memory_passes_by_and_smaller_ones_are_right(prepared):
    model, folder = prepared("Llama 2")
    out = model.generate(torch.tensor([PROMPT]).cuda(), max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    with Engine(folder, POOL, kernels="fast", device="cuda:0", card_bytes=card_bytes(folder, 0.0)) as engine:
        engine.greedy(1, PROMPT, 1)
        layer = engine.worker._model._skeleton.layers[2]
        forward = layer.forward

        def greedy_for_memory(*arguments, **named):
            layer.forward = forward
            torch.empty(1 << 45, dtype=torch.uint8, device="cuda")

        layer.forward = greedy_for_memory
        assert engine.sweep({2: PROMPT}, "argmax") == {} and engine.exhausted
        assert engine.greedy(3, PROMPT, 4) == out[0, len(PROMPT) :].tolist()


LOST = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from engine import Engine
with Engine(Path(sys.argv[1]), 600 << 10, kernels="fast", device="cuda:0", card_bytes=int(sys.argv[3])) as engine:
    layer = engine.worker._model._skeleton.layers[1]
    forward = layer.forward
    def faulty(hidden, *arguments, **named):
        return forward(hidden, *arguments, **named)[:, torch.tensor([10 ** 6], device="cuda")]
    layer.forward = faulty
    print("TOKEN", engine.sweep({1: [5, 6, 7]}, "argmax"), flush=True)
"""


def test_a_fault_of_the_device_ends_the_process_and_gives_no_token(prepared):
    """A device-side assertion leaves the context dead, as a card does that is gone."""
    _, folder = prepared("Llama 2")
    tests = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", LOST, str(folder), str(tests), str(card_bytes(folder, 0.0))], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode != 0
    assert "TOKEN" not in done.stdout
