"""The files of a model at the hub, each here for as long as shards are made of it: the next one comes while the present one is converted.

One thread downloads, one file at a time. Whoever makes the shards says what is needed and what is done; nothing else deletes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from potatod.errors import ModelDataError

from . import hub_files, shard_file, staging
from .checkpoint import head_of
from .hub_files import HubFile, Repository
from .hub_source import is_there
from .shards import free_bytes, make_room
from .source import HuggingFaceSource
from .supply import Passing, Work, next_file, peak, wanted


@dataclass(frozen=True, slots=True)
class Terms:
    """What it takes, before it begins."""

    files: int
    download_bytes: int
    #: of what is still to be made
    made_bytes: int
    #: added to the disk at the most
    peak_bytes: int
    free_bytes: int


class Fetched(Passing):
    """See :class:`supply.Supply`. ``agree`` is shown the terms before the first file comes, and raises where they are not accepted; ``waiting``
    is called now and then while a file is waited for."""

    def __init__(
        self, repository: Repository, folder: Path, source: HuggingFaceSource, agree: Callable[[Terms], None], waiting: Callable[[], None]
    ) -> None:  # fmt: skip
        super().__init__(folder, source.files())
        self._repository = repository
        self._heads = staging.remembered(folder)["heads"]
        self._agree = agree
        self._waiting = waiting
        self._running: _Download | None = None
        #: of all files together, from now on
        self.expected_bytes = self._arrived = 0

    def __enter__(self) -> Fetched:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            self._running.stop()

    @property
    def arrived_bytes(self) -> int:
        return self._arrived + (0 if self._running is None else self._running.arrived)

    def begin(self, works: Sequence[Work], out: Path) -> None:
        self._works = list(works)
        needed = wanted(works)
        weights = frozenset().union(*self._files.values())
        for path in weights - needed:
            shard_file.remove(path)
            shard_file.remove(hub_files.partial_of(path))
        self._there = {path for path in needed if is_there(self._folder, self._file(path))}
        sizes = {path: self._file(path).size_bytes for path in needed}
        missing = needed - self._there
        partly = {path: _size(hub_files.partial_of(path)) for path in missing}
        self.expected_bytes = sum(sizes[path] - partly[path] for path in missing)
        peak_bytes = peak(works, sizes, self._there, partly)
        make_room(out, peak_bytes)
        self._agree(Terms(len(missing), self.expected_bytes, sum(work.size_bytes for work in works), peak_bytes, free_bytes(out)))

    def need(self, work: Work) -> None:
        for path in sorted(work.files):
            while path not in self._there:
                if self._running is None:
                    self._start(path)
                self._finish()
        ahead = next_file(self._works[1:], self._there)
        if ahead is not None and self._running is None:
            self._start(ahead)

    def _start(self, path: Path) -> None:
        self._running = _Download(self._repository, self._file(path), self._folder)
        self._running.start()

    def _finish(self) -> None:
        """The file that is coming is there; raises what went wrong with it."""
        running = self._running
        assert running is not None
        while running.is_alive():
            running.join(0.2)
            self._waiting()
        self._running = None
        if running.error is not None:
            raise running.error
        self._arrived += running.arrived
        self._check_head(self._folder / running.file.name)
        self._there.add(self._folder / running.file.name)

    def _check_head(self, path: Path) -> None:
        """What was planned with is what came."""
        if list(head_of(path)) != self._heads[path.name]:
            shard_file.remove(path)
            raise ModelDataError(f"{path.name} of {self._repository.id} has another header than the hub gave before: try again")

    def _file(self, path: Path) -> HubFile:
        return self._repository.files[path.name]


class _Download(threading.Thread):
    """One file. A daemon thread: what has come is kept wherever it ends."""

    def __init__(self, repository: Repository, file: HubFile, folder: Path) -> None:
        super().__init__(name=f"download {file.name}", daemon=True)
        self._repository = repository
        self.file = file
        self._folder = folder
        self._began = _size(hub_files.partial_of(folder / file.name))
        self._ended = threading.Event()
        #: bytes since then
        self.arrived = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            hub_files.download(self._repository, self.file, self._folder, stopped=self._ended.is_set, arrived=self._count)
        except Exception as error:  # whatever it is, it is raised where the file is waited for
            self.error = error

    def stop(self) -> None:
        self._ended.set()
        self.join(1.0)

    def _count(self, size_bytes: int) -> None:
        self.arrived = max(0, size_bytes - self._began)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
