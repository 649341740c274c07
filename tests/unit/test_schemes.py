"""Schemes: bytes of a tensor and back, exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potatod import schemes
from potatod.errors import ModelDataError

DTYPES = ["float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


@given(dtype=st.sampled_from(DTYPES), shape=st.lists(st.integers(0, 5), max_size=3).map(tuple), seed=st.integers(0, 99))
def test_raw_bytes_become_the_same_tensor(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(shape, generator=generator) * 10).to(getattr(torch, dtype))
    raw = schemes.get("raw")
    packed = raw.pack(tensor)
    assert len(packed) == raw.nbytes(dtype, shape)
    lies = torch.frombuffer(bytearray(packed), dtype=torch.uint8) if len(packed) else torch.empty(0, dtype=torch.uint8)
    assert torch.equal(raw.view(lies, dtype, shape), tensor)


def test_a_raw_view_shares_the_bytes_it_is_made_of() -> None:
    lies = torch.zeros(8, dtype=torch.uint8)
    view = schemes.get("raw").view(lies, "float32", (2,))
    lies[3] = 0x40
    assert view.tolist() == [2.0, 0.0]


def test_raw_packs_what_does_not_lie_in_order() -> None:
    tensor = torch.arange(6, dtype=torch.int16).view(2, 3).t()
    assert bytes(schemes.get("raw").pack(tensor)) == bytes([0, 0, 3, 0, 1, 0, 4, 0, 2, 0, 5, 0])


def test_an_unknown_scheme_is_refused_with_the_ones_that_are_known() -> None:
    with pytest.raises(ModelDataError, match=r"'int3' is not known.*raw"):
        schemes.get("int3")
