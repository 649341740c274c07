"""Attention of all sequences in one call: the same mathematics, and a row's bits do not depend on what else is computed."""

from __future__ import annotations

import importlib

import pytest
import torch

from potatod.kv_layout import BLOCK
from potatod.worker import arithmetic, native
from potatod.worker.attention import PackedAttention
from potatod.worker.kv import Batch, Branch, Paged, Piece
from potatod.worker.native_attention import NativeAttention

pytestmark = pytest.mark.skipif(not native.runs_here(), reason="a processor without AVX2, or a torch without OpenMP")

SHAPES = [(12, 2, 128), (4, 4, 64), (8, 1, 80), (3, 1, 64), (14, 2, 16)]
#: Tokens of each sequence that are there already, and that come.
SEQUENCES = [(0, 150), (200, 1), (BLOCK, 17), (5, 70), (2 * BLOCK - 1, 2)]
SCALING = 0.1


def ours(dtype: torch.dtype, kv: str | None = None) -> NativeAttention:
    found = arithmetic._attention(dtype, kv)
    assert isinstance(found, NativeAttention)
    return found


def drawn(heads: int, kv_heads: int, depth: int, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Queries, keys and values of every token of each sequence."""
    generator = torch.Generator().manual_seed(1)
    return [
        tuple(torch.randn(1, count, before + new, depth, generator=generator).to(dtype) for count in (heads, kv_heads, kv_heads))
        for before, new in SEQUENCES
    ]  # type: ignore[misc]  # three of them


def appended(keys: torch.Tensor, values: torch.Tensor, window: int | None, *cuts: int, dtype: torch.dtype | None = None) -> Paged:
    """KV that has come in pieces; the last one is not counted yet."""
    kv = Paged(across=True, dtype=dtype)
    for first, end in zip((0, *cuts), (*cuts, keys.shape[2]), strict=True):
        kv.length = first
        kv.append(0, keys[:, :, first:end], values[:, :, first:end], window)
    return kv


def together(attention: NativeAttention, steps: list[tuple[torch.Tensor, Paged, int, int]], window: int | None, kv_heads: int) -> list[torch.Tensor]:
    """``steps``: queries, KV and the first and last token of each."""
    pieces, at = [], 0
    for _, kv, first, end in steps:
        pieces.append(Piece(kv, at, at + end - first, first, end))
        at += end - first
    query = torch.cat([query[:, :, first:end] for query, _, first, end in steps], dim=2)
    out = attention(query, Batch(pieces, lambda *_: query), 0, window, SCALING, kv_heads, query.shape[3])
    return [out[:, piece.first : piece.end] for piece in pieces]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("window", [None, 50, 130])
@pytest.mark.parametrize(("heads", "kv_heads", "depth"), SHAPES)
def test_it_is_the_attention_of_every_sequence(heads: int, kv_heads: int, depth: int, window: int | None, dtype: torch.dtype) -> None:
    steps, truths = [], []
    for (before, new), (query, key, value) in zip(SEQUENCES, drawn(heads, kv_heads, depth, dtype), strict=True):
        kv = appended(key, value, window, *([before] if before else []))
        steps.append((query, kv, before, before + new))
        keys, values = (each.double().repeat_interleave(heads // kv_heads, 1) for each in (key, value))
        position, other = torch.arange(before, before + new)[:, None], torch.arange(before + new)[None]
        hidden = (other > position) | (other <= position - (window or 1 << 20))
        scores = (query[:, :, before:].double() @ keys.transpose(2, 3) * SCALING).masked_fill(hidden, float("-inf"))
        truths.append((scores.softmax(-1) @ values).transpose(1, 2))
    for out, truth in zip(together(ours(dtype), steps, window, kv_heads), truths, strict=True):
        assert (out.double() - truth).abs().max() <= {torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}[dtype]


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(("heads", "kv_heads", "depth"), SHAPES)
def test_a_row_has_the_same_bits_alone_beside_others_and_however_its_text_came(heads: int, kv_heads: int, depth: int, window: int | None) -> None:
    attention = ours(torch.bfloat16)
    sequences = drawn(heads, kv_heads, depth, torch.bfloat16)
    steps = []
    for (before, new), (query, key, value) in zip(SEQUENCES, sequences, strict=True):
        steps.append((query, appended(key, value, window, *([before] if before else [])), before, before + new))
    beside = together(attention, steps, window, kv_heads)
    for (before, new), (query, key, value), out in zip(SEQUENCES, sequences, beside, strict=True):
        for row in {0, new // 2, new - 1}:
            end = before + row + 1
            kv = appended(key[:, :, :end], value[:, :, :end], window, *range(max(1, end - 3), end))
            (alone,) = together(attention, [(query, kv, end - 1, end)], window, kv_heads)
            assert torch.equal(alone[0, 0], out[0, row])


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(("heads", "kv_heads", "depth"), SHAPES)
def test_keys_and_values_that_are_kept_in_eight_bits_are_what_they_are(heads: int, kv_heads: int, depth: int, window: int | None) -> None:
    """bf16 holds every float8."""
    found = []
    for attention, kept in ((ours(torch.bfloat16), None), (ours(torch.bfloat16, "float8_e4m3fn"), torch.float8_e4m3fn)):
        steps = []
        for (before, new), (query, key, value) in zip(SEQUENCES, drawn(heads, kv_heads, depth, torch.bfloat16), strict=True):
            if kept is None:
                key, value = (each.to(torch.float8_e4m3fn).bfloat16() for each in (key, value))
            steps.append((query, appended(key, value, window, *([before] if before else []), dtype=kept), before, before + new))
        found.append(together(attention, steps, window, kv_heads))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kv", [None, "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "depth"), SHAPES)
def test_all_sequences_take_their_keys_and_values_in_one_call_as_each_takes_its_own(
    heads: int, kv_heads: int, depth: int, across: bool, kv: str | None
) -> None:  # fmt: skip
    """In two layers, one of them with a window; ``across``: rows are as a layer's products leave them."""
    dtype, kept = torch.bfloat16 if kv else torch.float32, kv and getattr(torch, kv)
    windows = (None, 50)
    pieces, singly, new, row = [], [], [], 0
    for (before, count), (_, key, value) in zip(SEQUENCES, drawn(heads, kv_heads, depth, dtype), strict=True):
        both = [Paged(True, kept) for _ in range(2)]
        for layer, window in enumerate(windows):
            for each in both if before else ():
                each.append(layer, key[:, :, :before], value[:, :, :before, : depth // 2], window)
        for each in both:
            each.length = before
        new.append((key[:, :, before:], value[:, :, before:, : depth // 2]))
        pieces.append(Piece(both[0], row, row + count, before, before + count))
        singly.append(both[1])
        row += count
    branches = [Branch(pieces[1].kv, 201)]  # type: ignore[arg-type]  # behind the second sequence's one new token
    branches.append(Branch(branches[0], 203))
    guesses = [tuple(each[:, :, first:end] for each in new[0]) for first, end in ((0, 3), (3, 7))]
    for branch, guess in zip(branches, guesses, strict=True):
        pieces.append(Piece(branch, row, row + guess[0].shape[2], branch.length, branch.length + guess[0].shape[2]))
        row += guess[0].shape[2]
    key, value = (torch.cat([each[which] for each in [*new, *guesses]], 2) for which in (0, 1))
    if across:
        key, value = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (key, value))
    batch = Batch(pieces, lambda *_: key)
    for layer, window in enumerate(windows):
        ours(dtype, kv).append(batch, layer, key, value, window)
        for other, own in zip(singly, new, strict=True):
            other.append(layer, *own, window)
        beside = singly[1].fork(200)
        beside._write(layer, *new[1])
        beside.length = 201
        beside._write(layer, *guesses[0])
        beside.length = 203
        beside._write(layer, *guesses[1])
        found, expected = (each.read(layer, 160, 207, dtype) for each in (branches[1], beside))
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    for piece, other in zip(pieces, singly, strict=False):
        assert isinstance(piece.kv, Paged)
        for one_half, other_half in zip(piece.kv.tensors(), other.tensors(), strict=True):
            assert one_half.dtype is other_half.dtype and torch.equal(one_half.float(), other_half.float())


def test_all_numbers_of_eight_bits_are_read_as_they_are() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    kv = Paged(across=True, dtype=torch.float8_e4m3fn)
    value = every.view(1, 1, 1, 256)
    kv.append(0, value, value, None)
    zeros = torch.zeros(1, 1, 1, 256, dtype=torch.bfloat16)
    attention = ours(torch.bfloat16, "float8_e4m3fn")
    kv._layers[0][1][0][0].zero_()  # type: ignore[index]  # keys of nought: the value is all that is looked at
    out = attention(zeros, Batch([Piece(kv, 0, 1, 0, 1)], lambda *_: zeros), 0, None, 1.0, 1, 256).flatten()
    expected = every.bfloat16()
    assert torch.equal(out.isnan(), expected.isnan()) and torch.equal(out.nan_to_num(0), expected.nan_to_num(0))


def test_what_it_cannot_attend_with_is_left_to_others() -> None:
    attention = ours(torch.bfloat16)
    half, whole = torch.zeros(1, 4, 1, 64).bfloat16(), torch.zeros(1, 4, 1, 64)
    assert attention.takes(half, half, half)
    assert not attention.takes(whole, whole, whole), "another dtype"
    assert not attention.takes(half[..., :20], half[..., :20], half), "no whole vectors"
    assert not attention.takes(torch.zeros(1, 64, 1, 64).bfloat16(), half[:, :2], half[:, :2]), "more query heads of a group than there is room for"


@pytest.mark.parametrize(("family", "plain"), [("llama", True), ("qwen2", True), ("llama4_text", False)])
def test_only_layers_that_see_everything_before_them_or_a_window_are_plain(family: str, plain: bool) -> None:
    """Llama 4 attends as Llama does and sees chunks: nothing near its beginning tells."""
    import transformers

    config = transformers.CONFIG_MAPPING[family](
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=64, head_dim=16,
        **({"attention_chunk_size": 8192, "num_local_experts": 1, "intermediate_size_mlp": 64} if family == "llama4_text" else {}),
    )  # fmt: skip
    attention = PackedAttention()
    seen = []
    attention._sees = lambda *arguments: seen.append(PackedAttention._sees(attention, *arguments)) or seen[-1]  # type: ignore[method-assign,func-returns-value]
    from potatod.worker.arithmetic import PLAIN
    from potatod.worker.kernels import choose
    from potatod.worker.passes import Pack

    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    kernels = choose("fast", "packed", model.config, torch.device("cpu"), attention, PLAIN)
    kernels.prepare(model)
    kv = kernels.batching.new_kv()
    with torch.inference_mode():
        for run in kernels.batching.passes(model, Pack([1, 2, 3], [Piece(kv, 0, 3, 0, 3)], [2])):
            run()
    assert {plain for _, plain in seen} == {plain}
    assert importlib.import_module("transformers.masking_utils").causal_mask_function is not None
