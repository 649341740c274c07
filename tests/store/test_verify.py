"""`verify` reads every byte: a flipped bit anywhere is found and its shard named."""

from __future__ import annotations

import random

import pytest
from factories import prepared_folder

from potatod import model_folder
from potatod.errors import ModelDataError, NoSuchModel
from potatod.store.verify import verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("verify"), "Llama 2")


def flip(path, at: int, bit: int = 0) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << bit)]))


def test_a_whole_folder_is_whole_and_progress_reaches_its_end(folder):
    seen: list[tuple[int, int]] = []
    size = verify(folder, lambda done, total: seen.append((done, total))).size_bytes
    assert seen[-1] == (size, size) and size > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("seed", range(20))
def test_one_flipped_bit_in_any_part_is_found_and_named(folder, seed):
    chance = random.Random(seed)
    shard = chance.choice(model_folder.load(folder).shards)
    part = chance.choice(shard.parts)
    place = (folder / part.file, part.offset + chance.randrange(part.length), chance.randrange(8))
    flip(*place)
    try:
        with pytest.raises(ModelDataError, match=f"is damaged: {f'layer {shard.layer}' if shard.kind == 'layer' else shard.kind}"):
            verify(folder)
    finally:
        flip(*place)
    verify(folder)


def test_several_damaged_parts_are_all_counted(folder):
    parts = [shard.parts[0] for shard in model_folder.load(folder).shards]
    for part in parts:
        flip(folder / part.file, part.offset)
    try:
        with pytest.raises(ModelDataError, match=rf"and {len(parts) - 5} more"):
            verify(folder)
    finally:
        for part in parts:
            flip(folder / part.file, part.offset)


def test_a_file_that_is_cut_is_found_by_its_size(folder):
    path = folder / "layer.0002.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    try:
        with pytest.raises(ModelDataError, match=r"layer\.0002\.safetensors has \d+ bytes and should have"):
            verify(folder)
    finally:
        path.write_bytes(data)


def test_a_place_without_a_model_is_said(tmp_path):
    with pytest.raises(NoSuchModel):
        verify(tmp_path / "nothing")
