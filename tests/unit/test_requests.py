"""Reads that are under way: what of them has come in."""

from __future__ import annotations

import threading
import time

import pytest
import xxhash

from potatod.errors import ModelDataError
from potatod.reader.requests import Fetch, Requests
from potatod.spans import Spans

PIECE = 10


class _Source:
    """Every piece waits until it may come in."""

    path = "shard"

    def __init__(self) -> None:
        self.may = threading.Semaphore(0)
        self.asked = 0

    def read_into(self, _offset: int, memory: memoryview) -> None:
        self.asked += 1
        assert self.may.acquire(timeout=30)
        memory[:] = b"x" * len(memory)


@pytest.mark.timeout(60)
def test_a_part_that_takes_long_moves_piece_by_piece():
    """So that a slow disk is not taken for one that stands still."""
    source, requests = _Source(), Requests(1, PIECE, Spans())
    requests.start(Fetch(0, (source,), 0, 0, memoryview(bytearray(3 * PIECE)), xxhash.xxh3_64_hexdigest(b"x" * 3 * PIECE)))
    for _ in range(2):
        moved = requests.moved
        source.may.release()
        while requests.moved == moved:
            time.sleep(0.001)
        assert requests.completed() == [] and requests.waiting == 1
    source.may.release()
    while not (done := requests.completed()):
        time.sleep(0.001)
    assert [fetch.part for fetch in done] == [0] and requests.waiting == 0


class _Mirror:
    """A disk that needs so long for each piece, and holds these bytes."""

    def __init__(self, name: str, data: bytes, piece_s: float = 0.0) -> None:
        self.path, self._data, self._piece_s = name, data, piece_s
        self.pieces = 0

    def read_into(self, offset: int, memory: memoryview) -> None:
        time.sleep(self._piece_s)
        self.pieces += 1
        memory[:] = self._data[offset : offset + len(memory)]


def _read(requests: Requests, data: bytes, *mirrors: _Mirror, checksum: str | None = None) -> bytes:
    memory = bytearray(len(data))
    requests.start(Fetch(0, mirrors, 0, 0, memoryview(memory), checksum or xxhash.xxh3_64_hexdigest(data)))
    while not requests.completed():
        time.sleep(0.001)
    return bytes(memory)


@pytest.mark.timeout(60)
def test_mirrors_share_the_pieces_each_as_fast_as_it_is():
    data = bytes(range(250)) * 4
    slow, fast = _Mirror("slow", data, 0.008), _Mirror("fast", data, 0.002)
    assert _read(Requests(2, PIECE, Spans(), mirrors=2), data, slow, fast) == data
    assert slow.pieces + fast.pieces == len(data) // PIECE
    assert 0 < slow.pieces < fast.pieces


@pytest.mark.timeout(60)
@pytest.mark.parametrize("wrong", [0, 1])
def test_of_mirrors_the_one_that_differs_is_named(wrong):
    data = bytes(range(250)) * 4
    damaged = bytearray(data)
    damaged[100:900] = bytes(800)
    mirrors = [_Mirror(f"mirror {n}", bytes(damaged) if n == wrong else data, 0.001) for n in range(2)]
    with pytest.raises(ModelDataError, match=f"mirror {wrong}: the part at offset 0 .* is damaged"):
        _read(Requests(2, PIECE, Spans(), mirrors=2), data, *mirrors)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [ModelDataError("cannot be read"), OSError("cannot be read"), MemoryError("cannot be read")])
def test_whatever_fails_while_damage_is_looked_for_ends_the_read_and_no_thread(error: Exception):
    class Failing(_Mirror):
        def read_into(self, offset: int, memory: memoryview) -> None:
            if len(memory) > PIECE:  # the whole part, to see whose bytes are damaged
                raise error
            super().read_into(offset, memory)

    data, requests = b"z" * 3 * PIECE, Requests(1, PIECE, Spans(), mirrors=2)
    with pytest.raises(type(error), match="cannot be read"):
        _read(requests, data, *(Failing(f"mirror {n}", bytes(3 * PIECE)) for n in range(2)), checksum=xxhash.xxh3_64_hexdigest(data))
    assert _read(requests, data, _Mirror("mirror", data)) == data


@pytest.mark.timeout(60)
def test_what_has_no_checksum_is_not_compared():
    data = b"y" * 30
    memory = bytearray(30)
    requests = Requests(1, PIECE, Spans())
    requests.start(Fetch(0, (_Mirror("m", data),), 0, 0, memoryview(memory), None))
    while not requests.completed():
        time.sleep(0.001)
    assert bytes(memory) == data


@pytest.mark.timeout(60)
def test_after_the_end_nothing_is_read_and_no_thread_is_left():
    source, requests = _Source(), Requests(2, PIECE, Spans())
    requests.start(Fetch(0, (source,), 0, 0, memoryview(bytearray(9 * PIECE)), None))
    while source.asked < 2:
        time.sleep(0.001)
    assert not requests.close(0.05), "two pieces are under way"
    source.may.release(2)
    while any(thread.is_alive() for thread in requests._threads):
        time.sleep(0.001)
    assert source.asked == 2
    assert Requests(2, PIECE, Spans()).close(30)
