"""``python -m potatod.reader.measure FOLDER SETTINGS``: what the disk gives in the reader's own reads, as one line of JSON. Then it ends."""

from __future__ import annotations

import itertools
import mmap
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import xxhash

from potatod import errand, model_folder
from potatod.config import Settings
from potatod.sections import Reader

from .source import Source

#: So long, or so many bytes, whichever is first. The first _SETTLE_S are not counted: a disk's own cache and a throttle's burst pass.
_LIMIT_S: Final = 2.5
_SETTLE_S: Final = 0.5
_MOST_BYTES: Final = 8 << 30
#: What a checksum is tried on.
_CHECKED_BYTES: Final = 64 << 20


def main(argv: list[str]) -> int:
    return errand.answer(lambda: _of(Path(argv[0]), Settings.from_json(argv[1])))


def _of(folder: Path, settings: Settings) -> dict[str, Any]:
    return find(folder, settings.reader, settings.model.mirrors)


def find(folder: Path, settings: Reader, mirrors: Sequence[str] = ()) -> dict[str, Any]:
    """``bytes_per_s`` of reading the folder's parts in their order, ``in_flight`` pieces at a time from it and each of its mirrors, round and round;
    ``checksum_bytes_per_s``."""
    index = model_folder.load(folder)
    parts = [part for shard in index.shards if shard.kind in ("layer", "head") for part in shard.parts]
    pieces = [
        (part.file, part.offset + at, min(settings.piece, part.length - at)) for part in parts for at in range(0, part.length, settings.piece)
    ]
    folders = [folder, *map(Path, mirrors)]
    sources = [{name: Source(each / name, settings.io) for name in {part.file for part in parts}} for each in folders]
    done: list[tuple[float, int]] = []
    began = time.monotonic()
    endless = itertools.cycle(pieces)  # its next() is one step of the interpreter: threads share it
    most = itertools.count(1)

    def read(files: dict[str, Source]) -> None:
        with closing(mmap.mmap(-1, settings.piece)) as memory, memoryview(memory) as view:
            while time.monotonic() - began < _LIMIT_S and next(most) * settings.piece <= _MOST_BYTES:
                file, offset, length = next(endless)
                files[file].read_into(offset, view[:length])
                done.append((time.monotonic(), length))

    with ThreadPoolExecutor(settings.in_flight * len(folders)) as threads:
        for running in [threads.submit(read, files) for _ in range(settings.in_flight) for files in sources]:
            running.result()
    return {"bytes_per_s": _rate(sorted(done), began), "checksum_bytes_per_s": _checksum_rate()}


def _checksum_rate() -> float:
    """Bytes a second of one thread, of memory that is in no cache."""
    memory = bytes(_CHECKED_BYTES)
    began = time.perf_counter()
    xxhash.xxh3_64_digest(memory)
    return _CHECKED_BYTES / (time.perf_counter() - began)


def _rate(done: list[tuple[float, int]], began: float) -> float:
    """From the first piece that came after _SETTLE_S to the last one; over all where there are too few."""
    settled = [(at, length) for at, length in done if at - began >= _SETTLE_S]
    if len(settled) >= 2 and settled[-1][0] > settled[0][0]:
        return sum(length for _, length in settled[1:]) / (settled[-1][0] - settled[0][0])
    return sum(length for _, length in done) / (done[-1][0] - began)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
