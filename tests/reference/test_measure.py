"""What the processor does with weights is measured through the worker's own kernels. (Figures are for benchmarks; here it is what they are of.)"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from potatod.config import Settings
from potatod.worker import measure


@pytest.mark.parametrize("kernels", ["invariant", "fast", "reference"])
def test_more_rows_are_measured_of_the_same_weights(monkeypatch, kernels):
    monkeypatch.setattr(measure, "NARROW", (64, 64))
    monkeypatch.setattr(measure, "WIDE", (256, 512))
    monkeypatch.setattr(measure, "ROWS", (1, 4))
    settings = Settings()
    settings = dataclasses.replace(settings, worker=dataclasses.replace(settings.worker, kernels=kernels, threads=1))
    threads = torch.get_num_threads()
    try:
        found = measure.find(settings, torch.bfloat16)
    finally:
        torch.set_num_threads(threads)
    assert [rows for rows, _ in found["compute"]] == [1, 4]
    assert all(rate > 0 for _, rate in found["compute"]) and found["layer_s"] > 0


def test_of_a_simulated_card_what_it_is_told_is_what_it_does():
    settings = Settings()
    card = dataclasses.replace(settings.worker, device="simulated:upload=2e9,compute=5e9", threads=1)
    threads = torch.get_num_threads()
    try:
        found = measure.find(dataclasses.replace(settings, worker=card), torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert found["upload"] == 2e9 and found["overlaps"] and all(rate > 0 for _, rate in found["compute"])
