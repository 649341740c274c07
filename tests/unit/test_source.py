"""Reading from a model's files: the whole of it, or a sentence that says what is wrong."""

from __future__ import annotations

import mmap
import os

import pytest

from potatod.errors import ModelDataError
from potatod.reader.source import Source

SIZE = 16384


@pytest.fixture(params=["direct", "buffered"])
def source(request, tmp_path):
    (tmp_path / "shard").write_bytes(os.urandom(SIZE))
    return Source(tmp_path / "shard", "auto" if request.param == "direct" else request.param)  # direct where the place for tests takes it


def test_every_byte_comes(source):
    memory = memoryview(mmap.mmap(-1, 8192))
    source.read_into(4096, memory)
    assert bytes(memory) == source.path.read_bytes()[4096:12288]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("left", [0, 1, 4096, 5000, 12288, 12500])
def test_a_file_that_was_cut_anywhere_is_told_and_read_no_further(source, left):
    os.truncate(source.path, left)
    with pytest.raises(ModelDataError, match=f"ends at offset {left}, in the middle of a part: it was truncated"):
        source.read_into(0, memoryview(mmap.mmap(-1, SIZE)))
