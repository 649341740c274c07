"""Weights that are decoded while they are multiplied with: the product is that of their values, and `packed` has the bits of bf16."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional
from walls import before_a_wall

from potatod import forms, schemes
from potatod.errors import ModelDataError
from potatod.schemes import GGML
from potatod.worker import native
from potatod.worker.banded import Banded, Piece, Scratch, linear
from potatod.worker.kernels import linear_by
from potatod.worker.machine_code import elf, microkernel
from potatod.worker.native import Product

pytestmark = [
    pytest.mark.skipif(not native.runs_here(), reason="a processor without AVX2, or a torch without OpenMP"),
    pytest.mark.usefixtures("own_registers"),
]

SCHEMES = ["packed", "int8", "int4", *GGML]
ROWS = [1, 2, 3, 5, 6, 13, 50]


def product(*stored: str, dtype: str = "bfloat16") -> Product:
    return Product(microkernel.codes(dtype, stored), getattr(torch, dtype))


def matrix(scheme: str, rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Piece:
    """Random weights as the scheme stores them."""
    generator = torch.Generator().manual_seed(seed)
    if scheme in GGML:
        lies = torch.randint(0, 256, (rows, forms.record_bytes(scheme, columns)), dtype=torch.uint8, generator=generator)
        kind = GGML[scheme].kind
        shares = columns // (256 if kind.k else 32) * (2 if kind.minimum else 1)
        lies[:, : 2 * shares] = torch.randn(rows, shares, generator=generator).half().view(torch.uint8)
        return Piece(scheme, lies.view(-1), dtype, (rows, columns))
    values = (torch.randn(rows, columns, generator=generator) * 0.02).to(dtype)
    values[rows // 2, columns // 3] = 0
    return Piece(scheme, schemes.get(scheme).pack(values), dtype, (rows, columns))


def rows_of(count: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(9)).to(dtype)


@pytest.mark.parametrize("columns", [256, 512, 768, 1024, 2304])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_the_product_with_the_schemes_own_values(scheme, columns):
    piece = matrix(scheme, 77, columns)
    values = schemes.get(scheme).view(piece.lies, "float32", piece.shape).double()
    ours = product(scheme)
    for count in ROWS:
        x = rows_of(count, columns)
        exact = x.double() @ values.T
        assert (ours.by_pieces(x, [piece]).double() - exact).abs().max() <= 0.006 * exact.abs().max()


@pytest.mark.parametrize("columns", [128, 144, 240, 256, 272, 496, 512, 576, 640, 752, 768, 784, 1008, 1536, 2304, 2400, 4448])
@pytest.mark.parametrize("count", [1, 7, 33, 130])
def test_packed_weights_give_the_bits_of_bf16(columns, count):
    piece = matrix("packed", 101, columns)
    x = rows_of(count, columns)
    ours = product("packed", "raw")
    if not ours.takes(piece.shape, "packed"):
        assert columns % 32 and not ours.has(piece)
        return
    assert torch.equal(ours.by_pieces(x, [piece]), ours(x, piece.values()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scheme", ["int8", "int4", "q4_1"])
def test_whatever_the_dtype_of_the_model(scheme, dtype):
    piece = matrix(scheme, 40, 96, getattr(torch, dtype))
    x = rows_of(3, 96, getattr(torch, dtype))
    exact = x.double() @ schemes.get(scheme).view(piece.lies, "float32", piece.shape).double().T
    out = product(scheme, dtype=dtype).by_pieces(x, [piece])
    assert out.dtype == getattr(torch, dtype)
    rounded = 1e-4 if scheme in native.INTEGERS else 2e-6  # rows become integers of 16 bits
    assert (out.double() - exact).abs().max() <= (rounded if dtype == "float32" else 0.006) * exact.abs().max()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rows_bits_depend_on_no_other_row_no_piece_and_no_thread(scheme):
    piece = matrix(scheme, 150, 768)
    x = rows_of(61, 768)
    ours = product(scheme)
    all_at_once = ours.by_pieces(x, [piece])
    for first, count in ((0, 1), (3, 2), (17, 5), (40, 21)):
        assert torch.equal(ours.by_pieces(x[first : first + count], [piece]), all_at_once[first : first + count])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(ours.by_pieces(x, [piece]), all_at_once)
    torch.set_num_threads(threads)
    if scheme != "packed":  # whose bands are stored by themselves
        record = forms.record_bytes(scheme, 768)
        parts = [Piece(scheme, piece.lies[a * record : b * record], piece.dtype, (b - a, 768)) for a, b in ((0, 13), (13, 150))]
        assert torch.equal(ours.by_pieces(x, parts), all_at_once)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_bias_and_pieces_in_several_schemes(scheme):
    one, other = matrix(scheme, 37, 256), matrix("int8", 60, 256)
    bias = torch.randn(97).bfloat16()
    x = rows_of(4, 256)
    ours = product(scheme, "int8")
    together = linear_by(ours.attempt, x, Banded.of([one, other], Scratch()), bias)
    assert torch.equal(together, torch.cat([ours.by_pieces(x, [one], bias[:37]), ours.by_pieces(x, [other], bias[37:])], dim=1))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_our_code_values_are_taken_piece_by_piece(scheme):
    piece = matrix(scheme, 24, 256)
    banded = Banded.of([piece, piece], Scratch())
    x = rows_of(3, 256)
    if forms.exact(scheme):  # the bits are those of the whole
        assert torch.equal(linear(x, banded), functional.linear(x, torch.cat([piece.values()] * 2)))
        assert banded._whole is None
        return
    expected = functional.linear(x, piece.values())
    assert torch.equal(linear(x, banded), torch.cat([expected, expected], dim=1))
    assert banded._whole is None
    assert torch.equal(linear_by(product("raw").attempt, x, banded), linear(x, banded)), "a product that has no code for it"
    assert torch.equal(banded.together().detach(), torch.cat([piece.values(), piece.values()]))


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "packed"])
def test_a_large_piece_is_decoded_some_rows_at_a_time(scheme, monkeypatch):
    from potatod.worker import banded

    piece = matrix(scheme, 50, 256)
    x, whole = rows_of(2, 256), piece.values()
    monkeypatch.setattr(banded, "AT_A_TIME", 7 * 256)
    assert [some.shape[0] for some in piece.some()] == [7] * 7 + [1]
    assert torch.equal(torch.cat([some.values() for some in piece.some()]), whole)
    expected = torch.cat([torch.nn.functional.linear(x, rows) for rows in whole.split(7)], dim=1)
    assert torch.equal(linear(x, Banded.of([piece], Scratch())), expected)
    assert torch.equal(Banded.of([piece], Scratch()).together().detach(), whole)


@pytest.mark.parametrize("columns", [512, 2560])
def test_bytes_that_no_packing_made_are_read_and_nothing_beyond_them(columns):
    """Exceptions that are said to lie anywhere in the band and beyond it: the product is that of the scheme's own values, and whoever reads behind the
    band's last byte dies of it."""
    record = forms.record_bytes("packed", columns)
    size = 5 * record + 4096 - 5 * record % 4096
    guarded = before_a_wall(size)
    generator = torch.Generator().manual_seed(3)
    ours = product("packed")
    x = rows_of(2, columns)
    for _ in range(50):
        guarded[:] = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        records = guarded[: 5 * record].view(5, record)
        starts = torch.randint(5 * record - 8, size + 200, (5,), dtype=torch.int32, generator=generator)
        records[:, 0:4] = starts[:, None].view(torch.uint8)
        records[:, 4:6] = torch.randint(0, 50, (5, 1), dtype=torch.int16, generator=generator).view(torch.uint8)
        records[:, 6] = torch.randint(0, 12, (5,), dtype=torch.uint8, generator=generator)
        out = ours.by_pieces(x, [Piece("packed", guarded, torch.bfloat16, (5, columns))])
        assert out.shape == (2, 5)
        assert schemes.get("packed").view(guarded, "bfloat16", (5, columns)).shape == (5, columns)


def test_a_piece_whose_memory_is_not_as_large_as_its_shape_says_is_not_multiplied_with():
    ours = product("int8", "raw")
    piece = matrix("int8", 20, 64)
    assert ours.suits(rows_of(1, 64), piece)
    assert not ours.suits(rows_of(1, 64), dataclasses.replace(piece, shape=(21, 64)))
    whole = torch.zeros(4, 64).bfloat16()
    assert ours.suits(rows_of(1, 64), Piece.of(whole))
    assert not ours.suits(rows_of(1, 64), dataclasses.replace(Piece.of(whole), shape=(5, 64)))


def test_a_bias_of_another_length_is_not_added():
    ours = product("raw")
    assert ours.attempt(rows_of(1, 64), torch.zeros(4, 64).bfloat16(), torch.zeros(3).bfloat16()) is None


def test_more_exceptions_than_there_are_bytes_are_refused_before_there_is_memory_for_them():
    record = forms.record_bytes("packed", 128)
    lies = torch.zeros(100 * record + forms.SPARE_BYTES, dtype=torch.uint8)
    lies[: 100 * record].view(100, record)[:, 4:6] = 255
    with pytest.raises(ModelDataError, match="more exceptions than there are bytes"):
        schemes.get("packed").view(lies, "bfloat16", (100, 128))


def test_constants_are_found_wherever_the_code_lies():
    """The same code from two places: what it refers to is relative to itself."""
    codes = microkernel.codes("bfloat16", ["q4_0"])
    piece, x = matrix("q4_0", 20, 64), rows_of(1, 64)
    one, other = (Product(codes, torch.bfloat16).by_pieces(x, [piece]) for _ in range(2))
    exact = x.double() @ schemes.get("q4_0").view(piece.lies, "float32", piece.shape).double().T
    assert torch.equal(one, other) and (one.double() - exact).abs().max() <= 0.006 * exact.abs().max()


def test_an_object_that_needs_something_else_is_refused():
    import llvmlite.binding as llvm
    from llvmlite import ir

    module = ir.Module()
    elsewhere = ir.Function(module, ir.FunctionType(ir.VoidType(), []), "elsewhere")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), []), "function")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.call(elsewhere, [])
    builder.ret_void()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(reloc="pic", codemodel="small")
    with pytest.raises(ValueError, match="outside of itself"):
        elf.linked(machine.emit_object(llvm.parse_assembly(str(module))))
