"""Reads that are under way: what of them has come in."""

from __future__ import annotations

import threading
import time

import pytest
import xxhash

from potatod.reader.requests import Fetch, Requests

PIECE = 10


class _Source:
    """Every piece waits until it may come in."""

    path = "shard"

    def __init__(self) -> None:
        self.may = threading.Semaphore(0)

    def read_into(self, _offset: int, memory: memoryview) -> None:
        assert self.may.acquire(timeout=30)
        memory[:] = b"x" * len(memory)


@pytest.mark.timeout(60)
def test_a_part_that_takes_long_moves_piece_by_piece():
    """So that a slow disk is not taken for one that stands still."""
    source, requests = _Source(), Requests(1, PIECE)
    requests.start(Fetch(0, source, 0, 0, memoryview(bytearray(3 * PIECE)), xxhash.xxh3_64_hexdigest(b"x" * 3 * PIECE)))
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
