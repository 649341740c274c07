"""What is looked at ahead, in the middle of a sweep that waits for weights: neither model's numbers depend on the other's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine import Engine
from families import by_name

from potatod import drafts, model_folder
from potatod import manifest as manifests
from potatod.messages import Draft, DraftText, Drawn
from potatod.spans import Spans
from potatod.store import draft as drafting
from potatod.worker import arithmetic
from potatod.worker.attention import PackedAttention
from potatod.worker.drafter import Drafter
from potatod.worker.probe import weight_shapes

PROMPT = [5, 17, 42, 8, 99, 23, 61, 7, 30, 12, 77, 54, 3, 18, 66] * 3
VOCABULARY = 320


@pytest.fixture(scope="module", params=["Llama 3", "Gemma 3", "Mixtral"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def folder(family: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from .conftest import make_tiny

    folder = make_tiny(by_name(family), request.param, tmp_path_factory.mktemp("ahead")).folder
    drafting.make(folder, folder, "int8")
    return folder


def drafter_of(folder: Path, attention: PackedAttention) -> Drafter:
    """As the probe finds its arithmetic: layers and attention of our own, where the families' are known."""
    copy = drafts.named(folder, "int8")
    manifest = model_folder.load(copy)
    device, dtype, schemes = torch.device("cpu"), getattr(torch, manifest.dtype), manifests.schemes_of(manifest)
    found = arithmetic.find("fast", weight_shapes(manifest), dtype, device, schemes)
    made = Drafter(copy, {"arithmetic": found.to_json()}, VOCABULARY, torch.device("cpu"), attention, Spans())
    made.draft(Draft(1, 1, (DraftText(1, tuple(PROMPT), 6, 40, Drawn()),), 12, 1 << 20, 1e6), lambda: None)
    return made


def gaps_of(drafter: Drafter) -> dict[tuple[int, ...], list[float]]:
    looked = drafter._texts[1].looked
    assert looked is not None
    return {tuple(each.read.tokens[: each.length]): each.gaps for each in looked.every()}


@pytest.mark.parametrize("kernels", ["invariant", "fast"])
def test_bits_are_the_same_in_the_middle_of_a_sweep(folder: Path, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: tuple[dict[int, list[int]], ...] = ({1: PROMPT}, {1: [4, 9, 8], 2: PROMPT[:7]}, {1: [6], 2: [3]})
    with Engine(folder, 1 << 21, kernels=kernels) as engine:
        alone = [engine.sweep(each) for each in steps]
    with Engine(folder, 1 << 21, kernels=kernels) as engine:
        worker = engine.worker
        inside, outside = (drafter_of(folder, worker._kernels.batching._attention) for _ in range(2))  # type: ignore[attr-defined]
        rounds = 0
        waits = worker._arrivals.await_parts

        def waited(indices: list[int]) -> list[int]:
            nonlocal rounds
            worker._arrivals.read_bytes_per_s, worker._ring_bytes = 1.0, 1 << 30
            rounds += worker._looked_ahead()
            return waits(indices)

        monkeypatch.setattr(worker._arrivals, "await_parts", waited)
        worker._drafter = inside
        beside = [engine.sweep(each) for each in steps]
        assert worker._drafter is inside, worker._why_no_drafter
    for _ in range(rounds):
        assert outside.ahead(1e9)
    assert rounds >= 4
    assert gaps_of(inside) == gaps_of(outside)
    for one, other in zip(alone, beside, strict=True):
        assert one.keys() == other.keys()
        for sequence, logits in one.items():
            assert torch.equal(torch.as_tensor(other[sequence]), torch.as_tensor(logits))
