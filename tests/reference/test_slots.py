"""The accelerator's path without an accelerator: slots and events on the simulated device, where copies land late and freed slots are NaN."""

from __future__ import annotations

import pytest
import torch
from engine import Engine
from families import by_name

from potatod.manifest import Part, Tensor
from potatod.worker.simulated import Simulated
from potatod.worker.slots import SlotLender
from potatod.worker.weights import Group

from .test_families import PROMPT, expected_tokens, small_pool

SIZE = 4096


@pytest.mark.parametrize("name", ["Llama 2", "Gemma 3", "Mixtral", "GPT-2"])
def test_through_slots_the_tokens_are_transformers_own(tiny, name):
    made = tiny(by_name(name), torch.float32)
    tokens = expected_tokens(made.model, PROMPT[:20], 8)
    with Engine(made.banded, small_pool(made.banded), kernels="reference", device="simulated") as engine:
        assert engine.greedy(1, PROMPT[:20], 8) == tokens


class _Pool:
    """Stands for reader and arrivals: every group's bytes are its number; freed extents are overwritten at once, as a reader would."""

    def __init__(self, groups: int) -> None:
        self.memory = torch.zeros(groups * SIZE, dtype=torch.uint8)
        for number in range(groups):
            self.memory[number * SIZE : (number + 1) * SIZE] = number + 1

    def await_parts(self, group: Group) -> list[int]:
        at = group.indices[0] * SIZE
        self.memory[at : at + SIZE] = group.indices[0] + 1
        return [at]

    def here(self, group: Group) -> bool:
        return True

    def release(self, group: Group) -> None:
        at = group.indices[0] * SIZE
        self.memory[at : at + SIZE] = 200


def _group(number: int) -> Group:
    tensor = Tensor("w", "uint8", (SIZE,), "raw", 0, SIZE)
    return Group(number, (number,), (Part("f", 0, SIZE, "0" * 16, (tensor,)),))


def _sweep(lender: SlotLender, groups: list[Group]) -> bool:
    """One pass as Model._sweep goes; whether every group's weights were its own while it was lent."""
    good = True
    for number, group in enumerate(groups):
        lender.upload(groups[(number + 1) % len(groups)])
        with lender.lend(group) as ((_, weights, _),):
            good &= bool((weights == group.indices[0] + 1).all())
    return good


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_delays_every_group_is_lent_with_its_own_bytes(slots: int, seed: int):
    groups = [_group(number) for number in range(7)]
    device = Simulated(seed=seed, copy_s=0.0008)
    pool = _Pool(len(groups))
    lender = SlotLender(device, pool.memory, pool, groups, slots)
    assert all(_sweep(lender, groups) for _ in range(3))


@pytest.mark.parametrize("fault", ["compute before copy", "extent freed before its copy"])
def test_a_planted_fault_in_the_protocol_is_found(fault: str):
    groups = [_group(number) for number in range(7)]
    found = 0
    for seed in range(10):
        device = Simulated(seed=seed, copy_s=0.002)
        pool = _Pool(len(groups))
        lender = SlotLender(device, pool.memory, pool, groups, 2)
        if fault == "compute before copy":
            device.compute_waits_for = lambda event: None
        else:
            lender._retire = lambda lender=lender: [  # everything goes back at once, landed or not
                lender._arrivals.release(lender._copying.popleft()[1]) for _ in range(len(lender._copying))
            ]
        found += not all(_sweep(lender, groups) for _ in range(3))
    assert found == 10
