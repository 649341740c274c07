"""Tiny checkpoints of every family, made once per test run and prepared as a user would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import Family

transformers.logging.set_verbosity_error()


@dataclass(frozen=True)
class Tiny:
    """A family's tiny model: transformers' own in memory, and the model folder that `prepare` made of it."""

    family: Family
    model: Any
    #: its head in one band
    folder: Path
    #: the same with its head in several
    banded: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family, torch.dtype], Tiny]:
    made: dict[tuple[str, torch.dtype], Tiny] = {}

    def make(family: Family, dtype: torch.dtype) -> Tiny:
        if (family.name, dtype) not in made:
            made.clear()  # one at a time is enough: tests of a family follow each other
            made[family.name, dtype] = make_tiny(family, dtype, tmp_path_factory.mktemp("tiny"))
        return made[family.name, dtype]

    return make


def make_tiny(family: Family, dtype: torch.dtype, place: Path) -> Tiny:
    from potatod.store.prepare import prepare

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(family.config(), dtype=dtype, attn_implementation="eager")
    model.eval().save_pretrained(place / "source")
    prepare(place / "source", place / "model")
    prepare(place / "source", place / "banded", head_band_bytes=1 << 14)
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "source", dtype=dtype, attn_implementation="eager").eval()
    for parameter in model.parameters():  # as loaded they lie in the mapped file, wherever: below 16 bytes of alignment kernels change bits
        parameter.data = parameter.data.clone()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return Tiny(family, model, place / "model", place / "banded")
