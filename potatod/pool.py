"""The shared RAM between reader and worker: a memfd, drawn byte by byte.

    0                 ring_offset                         size
    ├── resident ─────┼── ring ───────────────────────────┤
    │ part │ part │ … │ … free … │ part │ part │ … free … │
                                 ▲ oldest     ▲ next

- *resident*: every part that plan.py homed in RAM, at the offset the plan gave it. The reader writes each once, says
  ``Loaded``, and never touches it again. The worker only reads.
- *ring*: the reader writes an extent, says ``Loaded``; from then on the bytes are the worker's, until its ``Freed``.

Ownership travels by those messages, so there is no lock in here. The supervisor makes the memfd and both stages inherit it:
it has no name, and the kernel frees it with the last process that maps it, however that process ends.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from typing import Final

from .errors import DoesNotFit
from .manifest import ALIGNMENT

NAME: Final = "potato-pool"


def create(size: int, name: str = NAME) -> int:
    """A new memfd of ``size`` bytes; the descriptor is close-on-exec, so it reaches only the children that are given it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        raise DoesNotFit(f"cannot make a RAM pool of {size} bytes: {error.strerror}") from error
    return fd


class Pool:
    """This process's mapping of the pool. Lives as long as the process: tensors view it and would not keep it alive."""

    def __init__(self, fd: int) -> None:
        """Takes the descriptor over, and closes it: the mapping needs none."""
        self.size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, self.size) if self.size else mmap.mmap(-1, ALIGNMENT)
        os.close(fd)
        self.view = memoryview(self._map)

    def extent(self, offset: int, length: int) -> memoryview:
        """The pool's bytes ``[offset, offset + length)``, not copied."""
        assert offset >= 0 and offset + length <= self.size, "an extent outside of the pool"
        return self.view[offset : offset + length]


class Ring:
    """Which bytes of the ring are whose: the reader's own book-keeping. Pure arithmetic, no memory.

    Extents are handed out in order and never wrap around the end (the rest is skipped), so each is one contiguous read.
    They may come back in any order; space is reused in the order it was handed out.

    A set of extents with sum S and largest member P can always be live at once if the ring has S + P bytes: at most one skip,
    smaller than P, lies between its first and its last.
    """

    def __init__(self, offset: int, size: int) -> None:
        self.offset = offset
        self.size = size
        self._next = 0
        #: oldest first: [start, free again?]
        self._live: deque[list[int]] = deque()
        self._by_start: dict[int, list[int]] = {}

    @property
    def used(self) -> int:
        """Bytes that are handed out, skipped rests included."""
        if not self._live:
            return 0
        start = int(self._live[0][0])
        return self._next - start if self._next > start else self.size - start + self._next

    def take(self, length: int) -> int | None:
        """The pool offset of ``length`` free bytes, or None until more has come back."""
        assert 0 < length <= self.size, "a part larger than the ring: the plan is wrong"
        if not self._live:
            self._next = 0
        oldest = self._live[0][0] if self._live else None
        start = self._next
        if oldest is None or start > oldest:
            if start + length > self.size:  # skip the rest, start anew at 0
                if oldest is None or length > oldest:
                    return None
                start = 0
        elif start + length > oldest:  # wrapped already (start == oldest: full)
            return None
        extent = [start, False]
        self._live.append(extent)
        self._by_start[start] = extent
        self._next = (start + length) % self.size
        return self.offset + start

    def give(self, offset: int) -> None:
        """The extent at this pool offset is free again."""
        extent = self._by_start.pop(offset - self.offset, None)
        assert extent is not None, "freed what was not handed out"
        extent[1] = True
        while self._live and self._live[0][1]:
            self._live.popleft()
