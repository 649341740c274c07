"""Writing one shard's file: sequentially, checksums on the way, complete or not there at all.

Law: under its own name a file is whole and on the disk. While it is written it is called ``.NAME.partial``.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import xxhash

from potatod.errors import DoesNotFit, InternalError
from potatod.manifest import Part

from .layout import Layout

Buffer = bytes | memoryview

#: What to do when the disk has room again, or works.
AGAIN: Final = "run the same command again, it goes on where it stopped"


def write(folder: Path, name: str, layout: Layout, values: Iterable[Iterable[Buffer]], *tilings: Sequence[Part]) -> list[tuple[Part, ...]]:
    """Writes ``folder/name``: for each place of the layout, in order, the buffers that make up its value.

    Returns every tiling (parts over the file, in order) with its checksums. Raises :class:`DoesNotFit` where the disk
    is full.
    """
    sums = [_Checksums(parts) for parts in tilings]
    with _whole(folder, name) as file:
        for buffer in _bytes_of(layout, values):
            file.write(buffer)
            for checksums in sums:
                checksums.update(buffer)
    return [checksums.parts() for checksums in sums]


def write_text(folder: Path, name: str, text: str) -> None:
    """A small file, complete or not there at all."""
    with _whole(folder, name) as file:
        file.write(text.encode())


@contextmanager
def _whole(folder: Path, name: str) -> Iterator[BinaryIO]:
    """Under that name it is there when all has been written, and on the disk. Raises as :func:`write`, whatever of the system failed."""
    partial = folder / f".{name}.partial"
    try:
        with open(partial, "wb", opener=no_link) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / name)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise explained(error, folder / name) from None
    sync_folder(folder)


def no_link(path: str, flags: int) -> int:
    """Opens as :func:`open` does what we write to, and follows no link there: a model folder of a stranger's may have one that leads anywhere."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def remove(path: Path) -> None:
    """It need not be there. Raises as :func:`write` does."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise explained(error, path) from None


def explained(error: OSError, path: Path) -> DoesNotFit | InternalError:
    """What an error while writing means to a person."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DoesNotFit(f"the disk is full while writing {path}; make room and {AGAIN}")
    if error.errno == errno.ELOOP:
        return InternalError(f"cannot write {path}: a link lies in its place; remove it, and {AGAIN}")
    return InternalError(f"cannot write {path}: {error.strerror or error}; when that is mended {AGAIN}")


def sync_folder(folder: Path) -> None:
    """Makes renames in it survive a power cut. Raises as :func:`write` does."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise explained(error, folder) from None


def _bytes_of(layout: Layout, values: Iterable[Iterable[Buffer]]) -> Iterator[Buffer]:
    """The whole file from its first byte to its last, zeros where no value lies."""
    yield layout.header
    at = len(layout.header)
    for place, buffers in zip(layout.places, values, strict=True):
        yield bytes(place.offset - at)
        at = place.offset
        for buffer in buffers:
            yield buffer
            at += len(buffer)
        assert at == place.offset + place.value.nbytes, f"{place.value.name} has other bytes than planned"
    yield bytes(layout.size - at)


class _Checksums:
    """XXH3-64 of each of some disjoint, ascending ranges of a file that passes by once."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._digests: list[str] = []
        self._hash = xxhash.xxh3_64()
        self._at = 0

    def update(self, buffer: Buffer) -> None:
        view = memoryview(buffer)
        end = self._at + len(view)
        while len(self._digests) < len(self._parts):
            part = self._parts[len(self._digests)]
            stop = part.offset + part.length
            if end > part.offset:
                self._hash.update(view[max(0, part.offset - self._at) : stop - self._at])
            if end < stop:
                break
            self._digests.append(self._hash.hexdigest())
            self._hash = xxhash.xxh3_64()
        self._at = end

    def parts(self) -> tuple[Part, ...]:
        return tuple(dataclasses.replace(part, checksum=digest) for part, digest in zip(self._parts, self._digests, strict=True))
