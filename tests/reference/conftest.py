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
    """A family's tiny model: transformers' own in memory, and the model folders that `prepare` makes of it when a test asks for one."""

    family: Family
    model: Any
    place: Path

    @property
    def folder(self) -> Path:
        """Its head in one band."""
        return self._prepared("model")

    @property
    def banded(self) -> Path:
        """The same with its head in several."""
        return self._prepared("banded", band_bytes=1 << 13)

    def _prepared(self, name: str, **options: int) -> Path:
        from potatod.store.prepare import prepare

        if not (self.place / name).exists():
            prepare(self.place / "source", self.place / name, **options)
        return self.place / name


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
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(family.config(), dtype=dtype, attn_implementation="eager")
    model.eval().save_pretrained(place / "source")
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "source", dtype=dtype, attn_implementation="eager").eval()
    for parameter in model.parameters():  # as loaded they lie in the mapped file, wherever: below 16 bytes of alignment kernels change bits
        parameter.data = parameter.data.clone()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return Tiny(family, model, place)


@pytest.fixture(params=["SIXTEEN", "THIRTY_TWO", "WITH_AMX"])
def own_registers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine code for registers of each kind, where this processor has them."""
    from potatod.worker.machine_code import registers

    chosen, here = getattr(registers, request.param), registers.here()
    if chosen.lanes > here.lanes or chosen.amx > here.amx:
        pytest.skip(f"a processor without {'AMX' if chosen.amx else 'AVX-512'}")
    monkeypatch.setattr(registers, "here", lambda: chosen)
