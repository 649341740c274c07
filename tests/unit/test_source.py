"""Reading from a model's files: the whole of it, or a sentence that says what is wrong."""

from __future__ import annotations

import errno
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


def test_a_read_that_fails_is_tried_again_and_then_told_with_file_and_offset(source, monkeypatch):
    memory = memoryview(mmap.mmap(-1, 8192))
    real, failures = os.preadv, iter([True, True, False])

    def preadv(fd, buffers, offset):
        if next(failures, True):
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    source.read_into(4096, memory)
    assert bytes(memory) == source.path.read_bytes()[4096:12288]
    with pytest.raises(ModelDataError, match=r"shard: reading 8192 bytes at offset 4096 failed 3 times: Input/output error"):
        source.read_into(4096, memory)


def test_a_short_read_goes_on_where_it_ended(source, monkeypatch):
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:4096]], offset))
    memory = memoryview(mmap.mmap(-1, SIZE))
    source.read_into(0, memory)
    assert bytes(memory) == source.path.read_bytes()
