"""The files that a model folder is made of, while it is made: in which order shards need them, which may go after each, how much disk that takes.

    works ─▶ ordered() ─▶ for each: need ─▶ made, in the journal ─▶ done

Law: what is needed and what may go is decided here, purely; a :class:`Supply` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from . import shard_file, staging
from .shards import make_room

#: So many files of a source are there at the same time, unless one shard is made of more.
MOST_FILES: Final = 2


@dataclass(frozen=True, slots=True)
class Work:
    """A shard's file that is not there yet."""

    size_bytes: int
    #: of the source, that it is made of
    files: frozenset[Path]
    #: makes it, and writes that into the journal
    make: Callable[[], None]


class Supply(Protocol):
    """Has files of a source where they are needed, for as long as they are."""

    def files_of(self, keys: Iterable[str]) -> frozenset[Path]:
        """The files that come or go of those that the source's tensors lie in."""

    def same(self, compare: Callable[[], bool]) -> bool:
        """Whether embedding and head are one, which is found out only once of a source that goes away."""

    def begin(self, works: Sequence[Work], out: Path) -> None:
        """These are made now, in this order. Raises DoesNotFit where the disk of ``out`` has not the room."""

    def need(self, work: Work) -> None:
        """Returns when its files are there, whole."""

    def done(self, work: Work) -> None:
        """It is on the disk and in the journal; files that no other needs may go."""


class Staying:
    """The files are there and stay: see :class:`Supply`."""

    def files_of(self, keys: Iterable[str]) -> frozenset[Path]:
        return frozenset()

    def same(self, compare: Callable[[], bool]) -> bool:
        return compare()

    def begin(self, works: Sequence[Work], out: Path) -> None:
        make_room(out, sum(work.size_bytes for work in works))

    def need(self, work: Work) -> None:
        pass

    def done(self, work: Work) -> None:
        pass


class Passing:
    """Files that go when no shard needs them any more: what those :class:`Supply` have in common whose files do. ``folder``: the hidden one."""

    def __init__(self, folder: Path, files: Mapping[str, frozenset[Path]]) -> None:
        """``files``: by the names of the source's tensors."""
        self._folder = folder
        self._files = files
        #: not made yet
        self._works: list[Work] = []
        #: of those that they are made of, the files that are there
        self._there: set[Path] = set()

    def files_of(self, keys: Iterable[str]) -> frozenset[Path]:
        return frozenset().union(*(self._files.get(key, frozenset()) for key in keys))

    def same(self, compare: Callable[[], bool]) -> bool:
        page = staging.remembered(self._folder)
        if "same" not in page:
            page["same"] = compare()
            staging.remember(self._folder, page)
        return bool(page["same"])

    def done(self, work: Work) -> None:
        assert self._works[0] is work
        del self._works[0]
        for path in self._there - wanted(self._works):
            self._remove(path)
            self._there.discard(path)

    def _remove(self, path: Path) -> None:
        shard_file.remove(path)


def ordered(works: Sequence[Work]) -> list[Work]:
    """So that files come and go one after the other: by the last file that each needs. Files are in the order of their names."""
    return sorted(works, key=lambda work: max(map(str, work.files), default=""))


def wanted(works: Sequence[Work]) -> frozenset[Path]:
    """All files that these are made of."""
    return frozenset().union(*(work.files for work in works))


def next_file(works: Sequence[Work], there: Collection[Path]) -> Path | None:
    """What to fetch while the first of ``works`` is made: the next file that one of them needs, where there is place for one more."""
    if len(there) >= MOST_FILES:
        return None
    missing = (sorted(work.files.difference(there)) for work in works)
    return next((files[0] for files in missing if files), None)


def peak(works: Sequence[Work], sizes: Mapping[Path, int], there: Collection[Path], arrived: Mapping[Path, int], goes: bool = True) -> int:
    """Bytes that are added to a disk at the most while these are made: with the files that come, and without those that go where ``goes``.

    ``there``: files that are on the disk already; ``arrived``: bytes that are there of others.
    """
    now = most = 0
    present = set(there)
    for at, work in enumerate(works):
        for path in sorted(work.files - present):
            now += sizes[path] - arrived.get(path, 0)
            present.add(path)
        if (ahead := next_file(works[at + 1 :], present)) is not None:
            now += sizes[ahead] - arrived.get(ahead, 0)
            present.add(ahead)
        most = max(most, now := now + work.size_bytes)
        gone = present - wanted(works[at + 1 :])
        now -= sum(sizes[path] for path in gone) if goes else 0
        present -= gone
    return most
