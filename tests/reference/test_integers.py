"""Rows that become integers: what is kept of them, and that sums of products never leave 32 bits."""

from __future__ import annotations

import math

import pytest
import torch

from potatod import forms, schemes
from potatod.schemes import GGML
from potatod.worker import native
from potatod.worker.banded import Piece
from potatod.worker.machine_code import codings, microkernel
from potatod.worker.native import ALIKE, GROUP, Product

pytestmark = [
    pytest.mark.skipif(not native.runs_here(), reason="a processor without AVX2, or a torch without OpenMP"),
    pytest.mark.usefixtures("own_registers"),
]

SCHEMES = sorted(native.INTEGERS)
WIDTHS = [32, 96, 128, 160, 512, 544, 1280]


def product(scheme: str, dtype: str = "bfloat16") -> Product:
    return Product(microkernel.codes(dtype, [scheme]), getattr(torch, dtype))


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of (rows, width): the integers, the scale of each ALIKE, the sum of each GROUP, as our code leaves them."""
    rows, width = x.shape
    record = native.row_bytes(native.ROUNDED, width)
    lies = torch.full((rows, record), 0xAA, dtype=torch.uint8)
    x = x.float().contiguous()
    product("int8")._take(native.ROUNDED, native.making(x.data_ptr(), rows, width, lies.data_ptr()), torch.get_num_threads())
    scales = 2 * width + 128 * (width // 64)
    sums = scales + 4 * math.ceil(width / ALIKE)
    integers, planes = lies[:, : 2 * width].contiguous().view(torch.int16), lies[:, 2 * width : scales]
    assert torch.equal(planes, woven(integers[:, : width // 64 * 64]))
    return (
        integers, lies[:, scales:sums].contiguous().view(torch.float32),
        lies[:, sums : sums + 4 * math.ceil(width / (8 * GROUP)) * 8].contiguous().view(torch.float32),
    )  # fmt: skip


def woven(integers: torch.Tensor) -> torch.Tensor:
    """Of each 64 columns the higher bytes, then the lower ones: two of the first 32 columns, two of the others, and so on."""
    by_lanes = integers.reshape(len(integers), -1, 2, 16, 2).transpose(2, 3).reshape(len(integers), -1, 64)
    return torch.stack([by_lanes >> 8 & 255, by_lanes & 255], dim=2).to(torch.uint8).flatten(1)


def test_the_schemes_that_are_multiplied_so_are_those_whose_codings_say_so():
    assert {name for name, coding in codings.CODINGS.items() if isinstance(coding, codings.Integers)} == native.INTEGERS


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_is_rounded_to_16_bits_of_the_largest_of_its_neighbours(width):
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(width)) * torch.logspace(-6, 4, 5)[:, None]
    integers, scales, sums = rounded(x)
    every = scales.repeat_interleave(ALIKE, dim=1)[:, :width]
    most = torch.cat([some.abs().amax(dim=1, keepdim=True) for some in x.split(ALIKE, dim=1)], dim=1)
    assert torch.equal(scales.log2(), scales.log2().round()), "powers of two"
    assert ((most / scales >= 2**14) & (most / scales < 2**15)).all()
    assert torch.equal(integers, (x / every).round().clamp(-32767, 32767).short())
    assert ((integers * every - x).abs() <= every / 2).all()
    assert torch.equal(sums[:, : width // GROUP].double(), (integers * every).double().view(5, -1, GROUP).sum(dim=2)), "exactly"
    assert not sums[:, width // GROUP :].any(), "groups that the row has not are nought"


def test_numbers_of_bf16_within_seven_bits_of_the_largest_are_kept_as_they_are():
    x = torch.randn(3, 256).bfloat16().float()
    integers, scales, _ = rounded(x)
    every = scales.repeat_interleave(ALIKE, dim=1)
    large = x.abs() >= every * 2**14 / 128
    assert large.sum() > 500 and torch.equal((integers * every)[large], x[large])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_no_number_stays_none_and_touches_no_other_row(scheme):
    width = 512
    piece = Piece(scheme, _lies(scheme, 13, width), torch.bfloat16, (13, width))
    x = torch.randn(4, width).bfloat16()
    ours = product(scheme)
    clean = ours.by_pieces(x, [piece])
    for bad in (float("nan"), float("inf"), float("-inf")):
        dirty = x.clone()
        dirty[1, 200] = bad
        out = ours.by_pieces(dirty, [piece])
        assert not out[1].isfinite().any()
        assert torch.equal(out[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-39, 3e-38, 1e30])
def test_the_smallest_and_the_largest(scheme, value):
    piece = Piece(scheme, _lies(scheme, 5, 256), torch.float32, (5, 256))
    values = schemes.get(scheme).view(piece.lies, "float32", piece.shape).double()
    x = torch.full((2, 256), value)
    exact = x.double() @ values.T
    out = product(scheme, "float32").by_pieces(x, [piece]).double()
    smallest = 2.0**-126  # of a scale
    assert ((out - exact).abs() <= (value * 2**-14 + smallest) * values.abs().sum(dim=1)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_integers_there_are_do_not_leave_32_bits(scheme, rows, sign):
    """Every product as large as it can be, of one sign: sums that went round would have the other."""
    width = 768
    piece = Piece(scheme, _largest(scheme, 3, width), torch.float32, (3, width))
    values = schemes.get(scheme).view(piece.lies, "float32", piece.shape).double()
    assert (values != 0).all()
    x = torch.full((rows, width), sign * 65535.0)  # 32767 and a half of its scale: rounded up, and held back
    exact = x.double() @ values.T
    out = product(scheme, "float32").by_pieces(x, [piece]).double()
    torch.testing.assert_close(out, exact, rtol=1e-4, atol=0)


def _lies(scheme: str, rows: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if scheme not in GGML:
        return schemes.get(scheme).pack(torch.randn(rows, width, generator=generator) * 0.02)
    lies = torch.randint(0, 64, (rows, forms.record_bytes(scheme, width)), dtype=torch.uint8, generator=generator)
    steps = width // 256 * (2 if GGML[scheme].kind.minimum else 1)
    lies[:, : 2 * steps] = torch.rand(rows, steps, generator=generator).add(0.5).half().view(torch.uint8)
    return lies.view(-1)


def _largest(scheme: str, rows: int, width: int) -> torch.Tensor:
    """Scales and integers as large as the scheme's files have them; no minima."""
    record = forms.record_bytes(scheme, width)
    lies = torch.zeros(rows, record, dtype=torch.uint8)
    one = torch.tensor([1.0])
    if scheme == "int8":
        lies[:, :4] = one.view(torch.uint8)
        lies[:, 4 : 4 + width] = 127
    elif scheme == "int4":
        groups = width // GROUP
        lies[:, :4] = one.view(torch.uint8)
        lies[:, 8 : 8 + groups] = 255
        lies[:, 8 + 2 * groups : 8 + 2 * groups + width // 2] = 255
    else:
        blocks = width // 256
        lies[:, : 2 * blocks] = one.half().view(torch.uint8).repeat(blocks)
        at = 2 * blocks * (2 if GGML[scheme].kind.minimum else 1)
        if scheme == "q6_k":  # 0 is −32, and −128 the largest scale
            lies[:, at : at + width // 16] = 128
        else:
            lies[:, at : at + width // GROUP] = 63
            lies[:, at + 2 * width // GROUP :] = 255
    return lies.view(-1)
