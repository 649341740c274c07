"""What has been asked and answered of a batch, line by line on disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from .batch_lines import Line, custom_ids
from .store import Store

Kind = Literal["output", "error", "jobs"]
KINDS: Final[tuple[Kind, ...]] = ("output", "error", "jobs")


class Work:
    """Three files: ``output`` and ``error``, lines of answers, which become files of the client's; ``jobs``, ids of those that were asked for."""

    def __init__(self, id: str, store: Store) -> None:
        self._id = id
        self._store = store
        self._files: dict[Kind, _Lines] = {}
        self._opening = threading.Lock()
        self._total = 0
        self._failed: set[str] = set()
        self._jobs: dict[str, None] = {}
        #: custom ids
        self.done: set[str] = set()

    def part(self, kind: Kind) -> Path:
        return self._store.content(file_id(self._id, kind))

    def open(self, total: int) -> None:
        """Goes on with what is there. Raises OSError; then it can be tried again."""
        with self._opening:  # whoever was cancelled while it was opened has left a thread at it
            self.close()
            found = {}
            for kind in KINDS:
                path = self.part(kind)
                whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""  # what is cut was told to nobody
                self._files[kind] = _Lines(path, len(whole) + 1 if whole else 0)
                found[kind] = whole.split(b"\n")
            self._total = total
            self._failed = custom_ids(found["error"])
            self._jobs = {job.decode(): None for job in found["jobs"] if job}
            self.done = custom_ids(found["output"]) | self._failed

    async def asked(self, jobs: list[str]) -> None:
        """Raises OSError; then nothing of it is written."""
        self._jobs |= dict.fromkeys(jobs)
        await asyncio.to_thread(self._files["jobs"].append, "".join(f"{job}\n" for job in jobs).encode(), sync=False)

    async def put(self, line: Line, page: dict[str, Any]) -> None:
        """Returns when it is on disk. Raises OSError; then nothing of it is written."""
        kind: Kind = "output" if page["error"] is None else "error"
        file = self._files[kind]

        def write() -> None:
            """To its end in any case: whoever is cancelled meanwhile counts what is there."""
            file.append(msgspec.json.encode(page) + b"\n", sync=True)
            self.done.add(line.custom_id)
            if kind == "error":
                self._failed.add(line.custom_id)

        await asyncio.to_thread(write)

    def jobs(self) -> list[str]:
        return list(self._jobs)

    def counts(self) -> dict[str, int]:
        return {"total": self._total, "completed": len(self.done) - len(self._failed), "failed": len(self._failed)}

    def close(self) -> None:
        """What was written is on disk, or will be asked for again."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def forget(self, *kinds: Kind) -> None:
        for kind in kinds:
            self.part(kind).unlink(missing_ok=True)


def file_id(batch: str, kind: Kind) -> str:
    """The same whenever it is asked for, so that no answers are kept twice."""
    return f"file-{hashlib.sha256(f'{batch}-{kind}'.encode()).hexdigest()[:24]}"


class _Lines:
    """A file that only grows. Of what did not get there whole, nothing stays."""

    def __init__(self, path: Path, size: int) -> None:
        """``size``: of what is whole, in bytes. Raises OSError."""
        self._file = path.open("ab", buffering=0)
        self._size = size
        self._lock = threading.Lock()
        try:
            self._file.truncate(size)
        except OSError:
            self.close()
            raise

    def append(self, data: bytes, *, sync: bool) -> None:
        """Raises OSError."""
        with self._lock:
            self._file.truncate(self._size)  # what the last time left
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            if sync:
                os.fsync(self._file.fileno())
            self._size += len(data)

    def close(self) -> None:
        """Waits for who writes."""
        with self._lock, suppress(OSError):
            self._file.close()
