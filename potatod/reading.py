"""Reads that give all that was asked for, or say which file is at fault and where."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from .errors import ModelDataError

#: A read that fails is tried so often before it is given up.
ATTEMPTS: Final = 3
_BLOCK: Final = 4096


def fill(fd: int, path: Path, offset: int, memory: memoryview, *, direct: bool = False) -> None:
    """``memory`` from there on; raises :class:`ModelDataError` naming ``path``, which ``fd`` is open on, and the offset.

    ``direct``: every read must begin at a multiple of 4096 bytes.
    """
    done = failures = 0
    while done < len(memory):  # one call reads less than 2 GiB
        try:
            count = os.preadv(fd, [memory[done:]], offset + done)
        except OSError as error:
            failures += 1
            if failures < ATTEMPTS:
                continue
            raise ModelDataError(
                f"{path}: reading {len(memory) - done} bytes at offset {offset + done} failed {failures} times: {error.strerror}"
            ) from error
        if count == 0:
            raise _truncated(path, offset + done)
        before, done = done, done + count
        if done < len(memory) and direct:
            done -= done % _BLOCK  # a short direct read goes on from the last whole block
            if done <= before:
                raise _truncated(path, offset + before + count)


def _truncated(path: Path, end: int) -> ModelDataError:
    return ModelDataError(f"{path} ends at offset {end}, in the middle of a part: it was truncated")
