"""The product of rows with weights in our own machine code: right, independent of its neighbours, and nowhere else than in its output."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import ir
from torch import nn
from torch.nn import functional
from walls import moved_before_a_wall

from potatod import machine
from potatod.worker import arithmetic, cpu, kernels, native
from potatod.worker.arithmetic import Arithmetic
from potatod.worker.attention import PackedAttention
from potatod.worker.machine_code import emit, microkernel, registers, walk
from potatod.worker.native import Product

pytestmark = [
    pytest.mark.skipif(not native.runs_here(), reason="a processor without AVX2, or a torch without OpenMP"),
    pytest.mark.usefixtures("own_registers"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def product(dtype: torch.dtype) -> Product:
    return Product(microkernel.codes(str(dtype).removeprefix("torch."), ["raw"]), dtype)


def draw(rows: int, outputs: int, width: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator).to(dtype), (torch.randn(outputs, width, generator=generator) / width**0.5).to(dtype)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "outputs", "width"),
    [(1, 1, 16), (1, 17, 48), (7, 5, 2048), (13, 50, 2064), (100, 97, 4112), (3, 300, 64), (1, 1, 32), (1, 17, 96), (300, 70, 1056), (33, 129, 544)],
)
def test_it_is_the_product_in_double_precision_rounded(dtype, rows, outputs, width):
    x, weight = draw(rows, outputs, width, dtype)
    exact = x.double() @ weight.double().T
    if not product(dtype).takes(weight.shape):
        assert product(dtype).attempt(x, weight) is None and width % 32
        return
    ours = product(dtype)(x, weight)
    error, theirs = (ours.double() - exact).abs().max(), (functional.linear(x, weight).double() - exact).abs().max()
    assert ours.dtype == dtype and ours.shape == (rows, outputs)
    assert error <= 2 * theirs + 1e-6


@given(rows=st.integers(1, 150), outputs=st.integers(1, 120), lines=st.integers(1, 40), first=st.integers(0, 149), count=st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(rows, outputs, lines, first, count):
    ours = product(torch.bfloat16)
    x, weight = draw(rows, outputs, 32 * lines, torch.bfloat16)
    first = min(first, rows - 1)
    some = x[first : first + count]
    assert torch.equal(ours(some, weight), ours(x, weight)[first : first + count])


@pytest.mark.parametrize(("rows", "outputs", "width"), [(40, 300, 544), (49, 257, 1056), (130, 100, 2080), (3, 259, 1120)])
def test_and_however_many_outputs_a_thread_claims_at_a_time(rows, outputs, width):
    """To the sign of nought. With one thread it claims the most."""
    ours, before = product(torch.bfloat16), torch.get_num_threads()
    x, weight = draw(rows, outputs, width, torch.bfloat16)
    torch.set_num_threads(1)
    whole = ours(x, weight)
    torch.set_num_threads(before)
    parts = [ours(x, some.clone()) for some in weight.split(13)]
    assert torch.equal(torch.cat(parts, 1).view(torch.int16), whole.view(torch.int16))
    assert torch.equal(torch.cat([ours(row[None], weight) for row in x[-5:]]).view(torch.int16), whole[-5:].view(torch.int16))


def test_nought_and_what_is_no_number_have_the_same_bits_in_every_output():
    ours = product(torch.bfloat16)
    weight, x = torch.zeros(21, 64, dtype=torch.bfloat16), torch.zeros(2, 64, dtype=torch.bfloat16)
    x[:, 0] = x[:, 32] = 1
    tiny = torch.finfo(torch.bfloat16).tiny
    weight[:, 0], weight[:, 32] = tiny, -1.5 * tiny  # what is left of it is below every normal number
    x[1, 5], weight[:, 5] = float("inf"), float("-inf")
    x[0, 5] = 0
    weight[:, 6] = float("inf")
    x[1, 6] = 1
    bits = ours(x, weight).view(torch.int16)
    assert all((row == row[0]).all() for row in bits)


@pytest.mark.parametrize(("rows", "outputs", "width"), [(1, 1, 32), (17, 17, 96), (33, 129, 544), (147, 80, 32)])
def test_nothing_behind_rows_weights_bias_or_results_is_touched(rows, outputs, width):
    x, weight = draw(rows, outputs, width, torch.bfloat16)
    bias = torch.randn(outputs)
    ours = product(torch.bfloat16)
    expected = ours(x, weight, bias)
    plain, lies, added = moved_before_a_wall(x.float()), moved_before_a_wall(weight), moved_before_a_wall(bias)
    at = {native.PLAIN: plain.data_ptr()}
    for form in ours.forms(native.pieces_of(lies)):
        made = moved_before_a_wall(torch.zeros(rows * native.row_bytes(form, width), dtype=torch.uint8))
        ours._take(form, native.making(plain.data_ptr(), rows, width, made.data_ptr()), 2)
        at[form] = made.data_ptr()
    out = moved_before_a_wall(torch.zeros(rows, outputs, dtype=torch.bfloat16))
    for scheme, call in ours.calls(at, rows, native.pieces_of(lies), added, out.data_ptr()):
        ours._take(scheme, call, 2)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_and_whatever_threads_there_are(threads, dtype):
    ours = product(dtype)
    x, weight = draw(20, 500, 2336, dtype)
    many = ours(x, weight)
    torch.set_num_threads(1)
    assert torch.equal(many, ours(x, weight))


def test_what_a_thread_claims_is_whole_tiles():
    assert native.CHUNK % native.WHOLE_TILES == 0 and native.BLOCK_OUTPUTS % native.WHOLE_BLOCKS == 0
    for each in (registers.SIXTEEN, registers.THIRTY_TWO):
        assert all(native.WHOLE_TILES % outputs == 0 and walk.BLOCK_ROWS % rows == 0 for rows, outputs in each.tiles)


def test_numbers_that_are_none_stay_in_their_row():
    ours = product(torch.bfloat16)
    x, weight = draw(9, 33, 64, torch.bfloat16)
    clean = ours(x, weight)
    x[4, 3] = float("nan")
    x[7, 0] = float("inf")
    out = ours(x, weight)
    assert out[4].isnan().all() and not out[7].isfinite().any()
    others = [row for row in range(9) if row not in (4, 7)]
    assert torch.equal(out[others], clean[others])


def test_every_bf16_number_is_read_as_it_is():
    """A weight of one column, every pattern of bits in turn, times one. What is smaller than any normal number is nought to AMX, as it is to torch's
    product there."""
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    weight = torch.zeros(1 << 16, 32, dtype=torch.bfloat16)
    weight[:, 0] = patterns.view(torch.bfloat16)
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    x[0, 0] = 1
    out, expected = product(torch.bfloat16)(x, weight)[0], weight[:, 0].clone()
    if registers.here().amx:
        expected[expected.abs() < torch.finfo(torch.bfloat16).tiny] = 0
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(0), expected.nan_to_num(0))


def test_tiles_of_amx_are_left_as_they_were(threads):
    """A library that remembers what it told its thread of their sizes must be right."""
    if not registers.here().amx:
        pytest.skip("a processor without AMX")
    torch.set_num_threads(1)  # this one
    told, found = (numpy.zeros(64, numpy.uint8) for _ in range(2))
    told[0], told[16:18], told[48] = 1, (8, 0), 3
    x, weight = draw(13, 37, 64, torch.bfloat16)
    ours = product(torch.bfloat16)
    load, store, release = (_one_instruction(name) for name in ("ldtilecfg", "sttilecfg", "ldtilecfg"))
    load(told.ctypes.data)
    ours(x, weight)
    store(found.ctypes.data)
    release(numpy.zeros(64, numpy.uint8).ctypes.data)
    assert found.tolist() == told.tolist()


def _one_instruction(name: str) -> Callable[[int], None]:
    """A function that does it with 64 bytes."""
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [emit.BYTES]), "one")
    b = ir.IRBuilder(function.append_basic_block())
    b.call(ir.Function(module, function.function_type, f"llvm.x86.{name}"), function.args)
    b.ret_void()
    memory = native.executable(microkernel.assembled(module))
    called = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(native.address(memory))
    called.memory = memory
    return called


def test_a_bias_is_added_before_rounding():
    x, weight = draw(3, 40, 64, torch.bfloat16)
    bias = torch.randn(40).bfloat16()
    expected = (x.double() @ weight.double().T + bias.double()).bfloat16()
    assert (product(torch.bfloat16)(x, weight, bias).double() - expected.double()).abs().max() <= 2**-6


def test_rows_of_any_shape_and_none_at_all():
    ours = product(torch.bfloat16)
    x, weight = draw(12, 16, 32, torch.bfloat16)
    assert torch.equal(ours(x.view(2, 6, 32), weight).view(12, 16), ours(x, weight))
    assert torch.equal(ours(x.view(12, 32)[:, :].T.contiguous().T, weight), ours(x, weight))
    assert ours(x[:0], weight).shape == (0, 16)
    assert ours(x[0], weight).shape == (16,)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.zeros(2, 12), torch.zeros(4, 12)),
        (torch.zeros(2, 16, dtype=torch.bfloat16), torch.zeros(4, 16)),
        (torch.zeros(2, 16), torch.zeros(16, 4).T),
        (torch.zeros(2, 16, device="meta"), torch.zeros(4, 16, device="meta")),
        (torch.zeros(2, 16), torch.zeros(3, 4, 16)),
    ],
    ids=["width", "dtype", "transposed", "meta", "experts"],
)
def test_what_it_cannot_multiply_is_left_to_torch(x, weight):
    assert product(torch.float32).attempt(x, weight) is None


def test_linear_layers_that_compute_otherwise_keep_their_own_forward():
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(nn.Linear(16, 16, bias=False), Scaled(16, 16))
    called = []
    chosen = kernels.Kernels(_NoBatching(), lambda x, weight, bias: called.append(weight) or functional.linear(x, weight, bias))
    chosen.prepare(model)
    x = torch.randn(2, 16)
    assert torch.equal(model(x), 2 * functional.linear(functional.linear(x, model[0].weight), model[1].weight, model[1].bias))
    assert [weight is model[0].weight for weight in called] == [True]


class _NoBatching:
    def prepare(self, model: nn.Module) -> None:
        pass


_WHERE = """
import ctypes, sentencepiece, torch
from potatod.worker import native
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.rpartition("/")[2]}
where = ctypes.cast(native.team(), ctypes.c_void_p).value
for line in open("/proc/self/maps"):
    first, _, last = line.split()[0].partition("-")
    if int(first, 16) <= where < int(last, 16):
        print(len(libraries), line.split()[-1])
"""


def test_it_runs_on_torchs_own_threads_where_another_runtime_is_loaded_too():
    """sentencepiece brings one."""
    found = subprocess.run([sys.executable, "-c", _WHERE], capture_output=True, text=True, check=True, timeout=120).stdout.split()
    assert found[0] == "2" and "/torch/lib/" in found[1]


def test_what_was_found_survives_the_way_to_the_worker():
    found = Arithmetic(tile=1, product=product(torch.bfloat16))
    again = Arithmetic.from_json(found.to_json())
    x, weight = draw(5, 40, 64, torch.bfloat16)
    assert again.product is not None and torch.equal(again.product(x, weight), product(torch.bfloat16)(x, weight))
    assert Arithmetic.from_json(arithmetic.PLAIN.to_json()) == arithmetic.PLAIN


def test_it_is_used_wherever_it_runs_and_never_in_reference():
    shapes, on_cpu = [(64, 64), (64, 12)], torch.device("cpu")
    found = arithmetic.find("invariant", shapes, torch.bfloat16, on_cpu)
    assert found.product is not None and found.attention is not None and set(found.groupings) == {(64, 12)}
    assert arithmetic.find("reference", shapes, torch.bfloat16, on_cpu).product is None


@pytest.mark.parametrize("stored", [["raw"], ["packed"], ["raw", "packed"], ["int8", "raw"], ["q4_0"]], ids=str)
@pytest.mark.parametrize("width", [64, 48, 12])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["reference", "invariant", "fast"])
def test_what_is_put_together_is_foreseen_and_is_what_it_does_not_take(monkeypatch, name, dtype, width, stored):
    monkeypatch.setattr(machine, "lets_us_use_amx", lambda: registers.here().amx)
    shapes = [(64, 64), (20, width)]
    found = arithmetic.find(name, [], dtype, torch.device("cpu"), stored)
    foreseen = arithmetic.would_put_together(name, stored, dtype, shapes)
    if name == "reference":
        assert foreseen == "layer"
        return
    assert foreseen == found.together(stored, shapes)
    if width == 48 and not all(found.product.takes(shape, scheme) for shape in shapes for scheme in stored if scheme != "int8"):
        assert foreseen == ("matrix" if "packed" in stored else "bands")


@pytest.mark.parametrize("name", ["invariant", "fast"])
@pytest.mark.parametrize("native_", [True, False])
def test_many_rows_of_numbers_are_left_to_torch_in_fast_where_the_processor_multiplies_them_itself(monkeypatch, name, native_):
    monkeypatch.setattr(cpu, "multiplies", lambda dtype: native_ or dtype == torch.float32)
    found = arithmetic.find(name, [], torch.bfloat16, torch.device("cpu"))
    found = Arithmetic.from_json(found.to_json())
    x, weight = draw(100, 40, 64, torch.bfloat16)
    left = [found.product.attempt(x[:count], weight) is None for count in (1, 32, 33, 100)]
    many = native_ and name == "fast" and not registers.here().amx
    assert left == [False, False, many, many]
    in_fp32 = arithmetic.find(name, [], torch.float32, torch.device("cpu"))
    assert in_fp32.product.attempt(x.float(), weight.float()) is not None


def test_attention_names_stay_known():
    """choose() with a product leaves the rest of a name as it is."""
    found = Arithmetic(product=product(torch.float32))
    config = _config()
    for name in ("reference", "fast", "invariant"):
        chosen = kernels.choose(name, "packed", config, torch.device("cpu"), PackedAttention(), found)
        assert (chosen.linear is functional.linear) == (name == "reference")


def _config():
    from transformers import LlamaConfig

    return LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
