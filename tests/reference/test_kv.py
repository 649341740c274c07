"""Blocks of KV: what sequences share, what a window leaves behind, and that no bit of a text shows it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from engine import Engine
from families import by_name

from potatod.front.ledger import Ledger
from potatod.kv_layout import BLOCK, KvGroup, KvLayout, first_kept
from potatod.worker import probe
from potatod.worker.attention import PackedAttention
from potatod.worker.kv import Branch, Paged

TEXT = [3 + (7 * at + at // 5) % 80 for at in range(3 * BLOCK)]
PROMPT = [5, 17, 42, 8, 99, 23, 61, 7, 30, 12, 77, 54, 3, 18, 66]


def drawn(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(1, 2, tokens, 8, generator=generator), torch.randn(1, 2, tokens, 16, generator=generator)


def filled(lengths: list[int], window: int | None = None) -> tuple[Paged, torch.Tensor, torch.Tensor]:
    """KV to which so many tokens were appended, piece by piece, and all its keys and values."""
    kv, all_keys, all_values = Paged(), [], []
    for length in lengths:
        key, value = drawn(length)
        kv.append(0, key, value, window)
        kv.length += length
        all_keys.append(key)
        all_values.append(value)
    return kv, torch.cat(all_keys, dim=2), torch.cat(all_values, dim=2)


@pytest.mark.parametrize("lengths", [[1], [BLOCK], [BLOCK + 1], [5, BLOCK, 1, 300, 77]])
def test_what_was_appended_is_read_and_zeros_behind_it(lengths: list[int]) -> None:
    kv, keys, values = filled(lengths)
    total = sum(lengths)
    for first, end in ((0, total), (total // 2, total), (total - 1, total)):
        read = kv.read(0, first, end, torch.float32)
        assert torch.equal(read[0], keys[:, :, first:end]) and torch.equal(read[1], values[:, :, first:end])
    behind = kv.read(0, total, -(-total // BLOCK) * BLOCK, torch.float32)[0] if total % BLOCK else torch.zeros(1)
    assert not behind.any()


@pytest.mark.parametrize("length", [1, 100, BLOCK, BLOCK + 5, 2 * BLOCK])
def test_a_fork_shares_whole_blocks_and_neither_sees_what_the_other_goes_on_with(length: int) -> None:
    kv, keys, _ = filled([2 * BLOCK + 9])
    fork = kv.fork(length)
    before = {tensor.data_ptr() for tensor in kv.tensors()}
    shared = [tensor.data_ptr() in before for tensor in fork.tensors()]
    assert shared == [True] * (2 * (length // BLOCK)) + [False] * (2 * (length % BLOCK > 0))
    new_key, new_value = drawn(3)
    fork.append(0, new_key, new_value, None)
    fork.length += 3
    kv.append(0, -new_key, new_value, None)
    kv.length += 3
    assert torch.equal(fork.read(0, 0, length + 3, torch.float32)[0], torch.cat([keys[:, :, :length], new_key], dim=2))
    assert torch.equal(kv.read(0, 0, kv.length, torch.float32)[0], torch.cat([keys, -new_key], dim=2))


def test_a_window_leaves_blocks_behind_and_what_it_reaches_can_be_read_and_gone_on_from() -> None:
    window = 200
    kv, keys, _ = filled([300, 300, 1], window)
    kept = sum(1 for _ in kv.tensors()) // 2
    assert kept == 5 - first_kept(window, 600)
    first = 600 - window + 1
    assert torch.equal(kv.read(0, first, 601, torch.float32)[0], keys[:, :, first:])
    fork = kv.fork(595)
    assert torch.equal(fork.read(0, 595 - window + 1, 595, torch.float32)[0], keys[:, :, 595 - window + 1 : 595])
    assert kv.bytes_per_token() == {window: 2 * (8 + 16) * 4}


@pytest.mark.parametrize("seed", range(6))
def test_front_and_worker_agree_on_what_can_be_gone_on_from(seed: int) -> None:
    """Whatever was guessed, right in the trunk or in a branch, over the borders of blocks and of windows."""
    chance, windows = random.Random(seed), (None, 16, 128, 200)
    ledger = Ledger(KvLayout(tuple(KvGroup(window, 64) for window in windows)), 1 << 30)
    kv, adopted = Paged(), 0
    while kv.length < 900:
        start, count = kv.length, chance.choice([1, 1, 3, 9, 60]) if kv.length else 70
        assert ledger.grow(1, start, start + count)
        follows = start + 1 + chance.randrange(count)
        branch, own = Branch(kv, follows), start + count - follows
        for layer, window in enumerate(windows):
            kv.append(layer, *drawn(count), window)
            if own:
                branch.append(layer, *drawn(own), window)
        kv.length += count
        if own and chance.random() < 0.5:
            right = follows + chance.randrange(own + 1)
            ledger.cut(1, right, 0)
            branch.adopt(right)
            adopted += 1
        else:
            right = start + 1 + chance.randrange(count)
            ledger.cut(1, right)
            kv.cut(right)
        assert [ledger.forkable(1, length) for length in range(1, right + 1)] == [kv.reaches(length) for length in range(1, right + 1)]
    assert adopted > 3


#: A model's dtype, and what its keys and values are kept as.
KEPT = [(torch.float32, None), (torch.bfloat16, None), (torch.float32, "bfloat16"), (torch.bfloat16, "float8_e4m3fn")]


def test_what_the_dtype_cannot_hold_is_held_back_and_not_lost() -> None:
    kv = Paged(dtype=torch.float8_e4m3fn)
    new = torch.tensor([500.0, -1e9, 448.0, 1e-9, 0.0, 0.3]).view(1, 1, 1, 6)
    kv.append(0, new, -new, None)
    kv.length = 1
    keys, values = kv.read(0, 0, 1, torch.float32)
    assert keys.flatten().tolist() == [448.0, -448.0, 448.0, 0.0, 0.0, 0.3125]
    assert torch.equal(values, -keys)
    assert sum(tensor.nbytes for tensor in kv.tensors()) == 2 * BLOCK * 6


@pytest.mark.parametrize("name", ["Llama 3", "Gemma 3"])
def test_rounded_keys_and_values_change_logits_a_little(folders: dict[str, Path], name: str) -> None:
    found = []
    for kept in (None, "float8_e4m3fn"):
        with Engine(folders[f"{name} {torch.bfloat16}"], 1 << 22, tile=1, kv=kept) as engine:
            found.append(engine.sweep({1: TEXT[:100]})[1].float())
            nbytes = sum(tensor.nbytes for tensor in engine.worker._sequences[1].tensors())
            assert nbytes == layout_of(name, kept).bytes_of(100, 100)
    distance = (found[0] - found[1]).norm() / found[0].norm()
    assert 0 < distance < 0.1


def layout_of(name: str, kept: str | None) -> KvLayout:
    return probe.kept(by_name(name).config(), torch.bfloat16, "invariant", "packed", PackedAttention(), kept)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from .conftest import make_tiny

    made = {}
    for name in ("Llama 3", "Gemma 3"):
        for dtype in (torch.float32, torch.bfloat16):
            made[f"{name} {dtype}"] = make_tiny(by_name(name), dtype, tmp_path_factory.mktemp("kv")).folder
    return made


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("dtype", "kept"), KEPT)
@pytest.mark.parametrize("name", ["Llama 3", "Gemma 3"])
def test_whoever_goes_on_from_another_s_kv_has_the_bits_of_a_text_computed_alone(
    folders: dict[str, Path], name: str, dtype: torch.dtype, kept: str | None
) -> None:
    """Forks at, before and behind the border of a block, some of a fork, beside others."""
    folder = folders[f"{name} {dtype}"]
    with Engine(folder, 1 << 22, kernels="invariant", tile=1 if dtype == torch.bfloat16 else 8, kv=kept) as engine:
        engine.sweep({1: TEXT[:250]}, "nothing")
        lengths = {2: 250, 3: 249, 4: 2 * BLOCK - 16, 5: BLOCK + 100}
        for sequence, length in lengths.items():
            engine.fork(sequence, 1, length)
        engine.fork(6, 2, 250)
        engine.drop(1)
        rows = engine.sweep({sequence: [*TEXT[length : length + 20], sequence] for sequence, length in lengths.items()} | {6: [9]})
        for sequence, length in lengths.items():
            alone = engine.sweep({100 + sequence: [*TEXT[: length + 20], sequence]})[100 + sequence]
            assert torch.equal(rows[sequence], alone), f"forked at {length}"
        assert torch.equal(rows[6], engine.sweep({7: [*TEXT[:250], 9]})[7])


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("dtype", "kept"), KEPT)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_text_is_the_same_whoever_shares_its_sweeps(
    folders: dict[str, Path], dtype: torch.dtype, kept: str | None, temperature: float
) -> None:
    """Sampled token by token, alone and among twelve that join and leave, some of them beginning alike."""
    from potatod.sampling.params import Sampling
    from potatod.sampling.sampler import sample

    sampling = Sampling(temperature=temperature, seed=11)

    def choose(logits: torch.Tensor, tokens: list[int]) -> int:
        return sample(logits.numpy(), tokens, sampling, 0, len(tokens))

    prompts = {number: (TEXT[: 20 + 9 * number] if number % 2 else PROMPT[: 3 + number]) for number in range(1, 13)}
    alone: dict[int, list[int]] = {}
    with Engine(folders[f"Llama 3 {dtype}"], 1 << 22, tile=1 if dtype == torch.bfloat16 else 8, max_sequences=12, kv=kept) as engine:
        for number, prompt in prompts.items():
            tokens = list(prompt)
            new = tokens
            for _ in range(12):
                tokens = [*tokens, choose(engine.sweep({number: new})[number], tokens)]
                new = tokens[-1:]
            alone[number] = tokens
            engine.drop(number)
        together = {number: list(prompt) for number, prompt in prompts.items()}
        fed = dict.fromkeys(prompts, 0)
        sweep = 0
        while together != alone:
            sweep += 1
            assert sweep < 100
            steps = {
                number: tokens[fed[number] : fed[number] + 7]
                for number, tokens in together.items()
                if number <= sweep and len(tokens) < len(alone[number])
            }
            rows = engine.sweep(steps, known={number: len(together[number]) for number in steps})
            for number, new in steps.items():
                fed[number] += len(new)
                if fed[number] == len(together[number]):
                    together[number].append(choose(rows[number], together[number]))
                    assert together[number] == alone[number][: len(together[number])]
