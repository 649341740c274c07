"""Where rows of the embedding come from, and which bytes are compared with their checksum before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import xxhash
from engine import Engine
from families import Family, by_name
from torch import nn

from potatod import model_folder, pool
from potatod.errors import InternalError, ModelDataError
from potatod.manifest import Part, Tensor
from potatod.plan import Placed, Plan, sweep_parts
from potatod.spans import Spans
from potatod.worker import embedding as module_under_test
from potatod.worker.embedding import Embedding, Twins, reader_compares
from potatod.worker.places import places_of

from .conftest import Tiny
from .test_families import expected_tokens

WIDTH, BAND, BANDS = 64, 32, 4  # of fp32: a band is two blocks of 4096 bytes
ROWS = BAND * BANDS
BAND_BYTES = BAND * WIDTH * 4


@pytest.fixture
def matrix() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def parts(tmp_path: Path, matrix: torch.Tensor) -> list[Part]:
    data = bytes(4096) + matrix.numpy().tobytes()
    (tmp_path / "embed").write_bytes(data)
    found = []
    for band in range(BANDS):
        at = 4096 + band * BAND_BYTES
        tensor = Tensor("embed", "float32", (BAND, WIDTH), "raw", 0, BAND_BYTES, band * BAND)
        found.append(Part("embed", at, BAND_BYTES, xxhash.xxh3_64_hexdigest(data[at : at + BAND_BYTES]), (tensor,)))
    return found


def damage(folder: Path, row: int) -> None:
    """As a disk does it: nothing says that the file is another one."""
    before = os.stat(folder / "embed")
    with open(folder / "embed", "r+b") as file:
        file.seek(4096 + row * WIDTH * 4)
        file.write(b"\xff\xff\xff\x7f")
    os.utime(folder / "embed", ns=(before.st_atime_ns, before.st_mtime_ns))


class Sweep:
    """A tied head of two parts, the first of which stays in the pool, and what of it has come."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.come: set[int] = set()
        length = 2 * BAND_BYTES
        homes: list[tuple[Any, int]] = [("ram", 4096), ("disk", -1)]
        placed = tuple(Placed(0, "embed", 4096 + n * length, length, "", home, offset) for n, (home, offset) in enumerate(homes))
        self.plan = Plan(placed, 4096 + length, 4096 + length, 0)
        self.pool = pool.Pool(pool.create(4096 + length))
        self.pool.view[4096:] = matrix.numpy().tobytes()[:length]

    def twins(self, *, compared: bool = True) -> Twins:
        arrivals: Any = SimpleNamespace(seen=lambda index: index in self.come)
        return Twins(self.pool, self.plan, arrivals, compared)


def gathered(embedding: Embedding, ids: list[list[int]]) -> torch.Tensor:
    which, rows = embedding.bring(torch.tensor(ids))
    assert which.shape == (len(ids), len(ids[0]))
    return rows[which]


@pytest.fixture
def sweep(matrix: torch.Tensor) -> Sweep:
    return Sweep(matrix)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each read of the file."""
    lengths: list[int] = []
    real = os.preadv

    def counted(fd: int, memory: list[memoryview], offset: int) -> int:
        lengths.append(len(memory[0]))
        return real(fd, memory, offset)

    monkeypatch.setattr(os, "preadv", counted)
    return lengths


def test_rows_are_those_of_the_file_whatever_is_repeated(tmp_path: Path, parts: list[Part], matrix: torch.Tensor, sweep: Sweep) -> None:
    embedding = Embedding(tmp_path, parts, sweep.twins())
    ids = [[5, 127, 5, 0], [64, 127, 33, 5]]
    assert torch.equal(gathered(embedding, ids), matrix[torch.tensor(ids)])


def test_a_band_is_compared_once_before_its_first_row(tmp_path: Path, parts: list[Part], sweep: Sweep, reads: list[int]) -> None:
    embedding = Embedding(tmp_path, parts, sweep.twins())
    gathered(embedding, [[1, 2]])
    gathered(embedding, [[3, 2]])
    row = WIDTH * 4
    assert reads == [BAND_BYTES, row, row], "its first rows are taken out of what was compared"
    damage(tmp_path, 40)
    with pytest.raises(ModelDataError, match=rf"embed: the part at offset {4096 + BAND_BYTES} is damaged"):
        gathered(embedding, [[33]])


def test_rows_that_stay_in_the_pool_are_not_read(tmp_path: Path, parts: list[Part], matrix: torch.Tensor, sweep: Sweep, reads: list[int]) -> None:
    embedding = Embedding(tmp_path, parts, sweep.twins())
    sweep.come = {0, 1}
    ids = [[0, 63, 17, 17]]
    assert torch.equal(gathered(embedding, ids), matrix[torch.tensor(ids)])
    assert reads == []


def test_the_pool_is_not_looked_at_before_the_part_has_come(tmp_path: Path, parts: list[Part], matrix: torch.Tensor, sweep: Sweep) -> None:
    sweep.pool.view[4096:] = bytes(2 * BAND_BYTES)
    embedding = Embedding(tmp_path, parts, sweep.twins())
    assert torch.equal(gathered(embedding, [[3]])[0, 0], matrix[3])


def test_what_the_reader_has_compared_is_not_compared_again(
    tmp_path: Path, parts: list[Part], matrix: torch.Tensor, sweep: Sweep, reads: list[int]
) -> None:
    sweep.come = {0, 1}
    assert torch.equal(gathered(Embedding(tmp_path, parts, sweep.twins()), [[64]])[0, 0], matrix[64])
    assert reads == [WIDTH * 4]
    reads.clear()
    gathered(Embedding(tmp_path, parts, sweep.twins(compared=False)), [[64]])
    assert reads == [BAND_BYTES], "the reader compares nothing, so this does"


def test_a_file_that_has_changed_since_is_refused(tmp_path: Path, parts: list[Part], sweep: Sweep) -> None:
    sweep.come = {0, 1}
    embedding = Embedding(tmp_path, parts, sweep.twins())
    gathered(embedding, [[64]])
    os.utime(tmp_path / "embed", ns=(1, 1))
    with pytest.raises(ModelDataError, match="embed was changed while it is being served"):
        gathered(embedding, [[64]])


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, parts: list[Part], sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.come = {0, 1}
    embedding = Embedding(tmp_path, parts, sweep.twins())
    tried: list[int] = []

    def broken(_fd: int, _memory: Any, offset: int) -> int:
        tried.append(offset)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    at = 4096 + 70 * WIDTH * 4
    with pytest.raises(ModelDataError, match=rf"embed: reading 256 bytes at offset {at} failed 3 times: Input/output error"):
        gathered(embedding, [[70]])
    assert tried == [at] * 3


@pytest.mark.parametrize("row", [ROWS, 10 * ROWS, -1])
def test_a_token_beyond_the_embedding_is_no_row_of_it(tmp_path: Path, parts: list[Part], sweep: Sweep, row: int) -> None:
    with pytest.raises(InternalError, match=f"token {row} was to be embedded, and the embedding has {ROWS} rows"):
        gathered(Embedding(tmp_path, parts, sweep.twins()), [[1, row]])


@pytest.mark.parametrize(
    ("verify", "mirrors", "compares"),
    [("always", (), True), ("first", (), True), ("never", (), False), ("always", ("/m",), False), ("first", ("/m",), False)],
)
def test_the_reader_has_compared_what_it_brought_from_the_folder_itself(verify: str, mirrors: tuple[str, ...], compares: bool) -> None:
    assert reader_compares(verify, mirrors) is compares


def test_a_module_gathers_as_it_would_from_the_whole_matrix(tmp_path: Path, parts: list[Part], matrix: torch.Tensor, sweep: Sweep) -> None:
    own = nn.Embedding(ROWS, WIDTH, padding_idx=100, device="meta")
    Embedding(tmp_path, parts, sweep.twins()).attach(own, places_of(own)["weight"], torch.device("cpu"), Spans())
    ids = torch.tensor([[100, 3, 100]])
    with torch.inference_mode():
        assert torch.equal(own(ids), nn.functional.embedding(ids, matrix))


def test_bands_are_asked_for_before_any_is_waited_for_and_not_too_many(
    tmp_path: Path, parts: list[Part], sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.come = {1}
    embedding = Embedding(tmp_path, parts, sweep.twins(compared=False))
    events: list[str] = []
    real = os.preadv
    monkeypatch.setattr(module_under_test, "BANDS_AHEAD", 2)
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: events.append("ask"))
    monkeypatch.setattr(os, "preadv", lambda *arguments: events.append("read") or real(*arguments))
    gathered(embedding, [[1, 40, 2, 70]])
    assert events == ["ask", "ask", "read", "read", "ask", "read"], "three bands, two at a time, and no row of them by itself"
    events.clear()
    gathered(embedding, [[1, 40, 2, 70]])
    assert events == ["ask"] * 4 + ["read"] * 4


def test_a_tied_model_that_lies_in_the_pool_needs_no_file_after_its_first_sweep(
    tiny: Callable[[Family, torch.dtype], Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny(by_name("Qwen2"), torch.float32)
    manifest = model_folder.load(made.banded)
    assert manifest.tied
    prompt = [5, 200, 7, 300, 11]
    with Engine(made.banded, 2 * sum(part.length for _, part in sweep_parts(manifest)), kernels="reference") as engine:
        first = engine.sweep({1: prompt}, "argmax")[1]
        read: list[int] = []
        monkeypatch.setattr(Embedding, "_read", lambda _self, targets: read.extend(targets))
        assert engine.greedy(2, [*prompt, int(first)], 3) == expected_tokens(made.model, [*prompt, int(first)], 3)
    assert read == []
