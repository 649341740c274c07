"""Schemes: bytes of a tensor and back, exactly or as near as their files say."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potatod import forms, schemes
from potatod.errors import ModelDataError
from potatod.schemes import GGML, Unpackable, packed
from potatod.schemes.ggml import BLOCK_BYTES

DTYPES = ["float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


@given(dtype=st.sampled_from(DTYPES), shape=st.lists(st.integers(0, 5), max_size=3).map(tuple), seed=st.integers(0, 99))
def test_raw_bytes_become_the_same_tensor(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(shape, generator=generator) * 10).to(getattr(torch, dtype))
    raw = schemes.get("raw")
    packed = raw.pack(tensor)
    assert len(packed) == tensor.numel() * tensor.itemsize
    assert torch.equal(raw.view(packed.clone(), dtype, shape), tensor)


def test_a_raw_view_shares_the_bytes_it_is_made_of() -> None:
    lies = torch.zeros(8, dtype=torch.uint8)
    view = schemes.get("raw").view(lies, "float32", (2,))
    lies[3] = 0x40
    assert view.tolist() == [2.0, 0.0]


def test_raw_packs_what_does_not_lie_in_order() -> None:
    tensor = torch.arange(6, dtype=torch.int16).view(2, 3).t()
    assert bytes(schemes.get("raw").pack(tensor).tolist()) == bytes([0, 0, 3, 0, 1, 0, 4, 0, 2, 0, 5, 0])


def test_an_unknown_scheme_is_refused_with_the_ones_that_are_known() -> None:
    with pytest.raises(ModelDataError, match=r"'int3' is not known.*raw"):
        schemes.get("int3")


def weights(rows: int, columns: int, seed: int = 0, sigma: float = 0.02) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * sigma).bfloat16()


def there_and_back(scheme: str, tensor: torch.Tensor, dtype: str = "float32") -> torch.Tensor:
    lies = schemes.get(scheme).pack(tensor)
    assert lies.dtype == torch.uint8 and forms.fits(scheme, *tensor.shape, len(lies))
    return schemes.get(scheme).view(lies, dtype, tuple(tensor.shape))


def error(scheme: str, tensor: torch.Tensor) -> float:
    values = there_and_back(scheme, tensor)
    return float((values - tensor.float()).norm() / tensor.float().norm())


WIDTHS = [128, 144, 256, 272, 384, 496, 512, 576, 640, 768, 896, 1024, 1536, 4096]


@pytest.mark.parametrize("columns", WIDTHS)
def test_packed_weights_are_the_same_to_the_bit_at_every_width(columns: int) -> None:
    tensor = weights(40, columns)
    tensor[3] = 0
    tensor[4, ::7] *= 1e-4
    tensor[5, :9] = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, 3e38, -1e-30, 1.0])
    assert torch.equal(there_and_back("packed", tensor, "bfloat16").view(torch.int16), tensor.view(torch.int16))


@given(seed=st.integers(0, 1000), sigma=st.floats(1e-3, 10), spread=st.floats(0, 1.5))
def test_packed_weights_of_any_size_are_the_same_to_the_bit(seed: int, sigma: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(7, 320, generator=generator) * sigma * torch.rand(7, 320, generator=generator) ** spread).bfloat16()
    assert torch.equal(there_and_back("packed", tensor, "bfloat16"), tensor)


def test_packed_weights_take_seven_tenths_of_the_bytes() -> None:
    tensor = weights(512, 1536)
    assert len(schemes.get("packed").pack(tensor)) <= 0.7 * tensor.nbytes + 16


def test_a_gap_is_as_wide_as_it_is() -> None:
    """A byte says 255 at most, and "255 further, nothing there" is not a weight."""
    for gap in (0, 1, 253, 254, 255, 256, 509, 510, 511, 765):
        tensor = torch.full((1, 1024), 1.0).bfloat16()
        tensor[0, ::2] *= 16
        tensor[0, gap] = tensor[0, -1] = 2.0**-5
        lies = schemes.get("packed").pack(tensor)
        start = int.from_bytes(bytes(lies[:4].tolist()), "little")
        wide = [255] * (gap // 255) + [gap % 255]
        assert lies[start : start + len(wide)].tolist() == wide, "the weight stands among the gaps"
        assert torch.equal(there_and_back("packed", tensor, "bfloat16"), tensor)


def test_what_has_no_window_cannot_be_packed() -> None:
    bits = torch.randint(-(1 << 15), 1 << 15, (4, 4096), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Unpackable):
        schemes.get("packed").pack(bits.to(torch.int16).view(torch.bfloat16))
    with pytest.raises(Unpackable):
        schemes.get("packed").pack(torch.randn(4, 256))


def test_lanes_stand_where_instructions_put_them() -> None:
    assert sorted(packed.LANES) == list(range(16))


@pytest.mark.parametrize(("scheme", "most"), [("int8", 0.009), ("int4", 0.075)])
def test_rounded_weights_are_as_near_as_the_scheme_allows(scheme: str, most: float) -> None:
    assert error(scheme, weights(64, 1024)) < most


def test_a_searched_scale_is_no_worse_than_the_largest_weights() -> None:
    tensor = weights(64, 1024).float()
    tensor[:, 5] *= 6
    scale = tensor.abs().amax(dim=1, keepdim=True) / 127
    plain = ((tensor / scale).round() * scale - tensor).norm() / tensor.norm()
    assert error("int8", tensor) <= plain * 1.0001, "clipping seldom pays with so many steps"
    groups = tensor.view(64, 32, 32)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    plain = (((groups - low) / step).round() * step + low - groups).norm() / tensor.norm()
    assert error("int4", tensor) < 0.99 * plain


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_rows_and_groups_of_nothing_and_of_one_sign_stay_what_they_are(scheme: str) -> None:
    tensor = torch.zeros(4, 64)
    tensor[1] = 0.5
    tensor[2] = -0.25
    tensor[3, 7] = 3.0
    assert torch.allclose(there_and_back(scheme, tensor), tensor, atol=0.01)
    assert there_and_back(scheme, tensor)[0].eq(0).all()


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_row_does_not_depend_on_the_rows_that_are_packed_with_it(scheme: str) -> None:
    tensor = weights(300, 256)
    whole = schemes.get(scheme).pack(tensor)
    parts = torch.cat([schemes.get(scheme).pack(tensor[:7]), schemes.get(scheme).pack(tensor[7:])])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("name", sorted(GGML))
def test_planes_hold_what_gguf_dequantises(name: str) -> None:
    kind = getattr(gguf.GGMLQuantizationType, name.upper() if "_k" not in name else name[:3].upper() + "K")
    generator = np.random.default_rng(1)
    columns = 1024
    count = columns // (256 if name.endswith("k") else 32)
    blocks = generator.integers(0, 256, (9, count, BLOCK_BYTES[name]), dtype=np.uint8)
    numbers = generator.standard_normal((9, count)).astype(np.float16)[..., None].view(np.uint8)
    at = 208 if name == "q6_k" else 0
    blocks[:, :, at : at + 2] = numbers
    if name in ("q4_1", "q5_1", "q4_k", "q5_k"):
        blocks[:, :, 2:4] = numbers[::-1]
    flat = blocks.reshape(9, -1)
    lies = GGML[name].planes(torch.from_numpy(flat))
    assert forms.fits(name, 9, columns, len(lies))
    assert np.array_equal(GGML[name].view(lies, "float32", (9, columns)).numpy(), gguf.dequantize(flat, kind))
    assert len(lies) < 1.03 * flat.size


def test_blocks_cannot_be_made_of_values() -> None:
    with pytest.raises(TypeError):
        GGML["q4_1"].pack(torch.zeros(1, 32))


@pytest.mark.parametrize(("scheme", "columns"), [("int8", 12), ("int4", 48), ("packed", 136), ("packed", 64), ("q4_k", 128)])
def test_a_width_that_a_scheme_cannot_take_is_named(scheme: str, columns: int) -> None:
    assert f"{columns}" in str(forms.refusal(scheme, columns))
    assert forms.refusal(scheme, 256) is None
