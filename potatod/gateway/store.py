"""What the gateway itself keeps: pages of JSON in a folder, each whole or not there, on disk before anybody is told of it.

    PATH/responses/JOB.json     what a response's page says besides its job
    PATH/files/ID.json, ID      a file that a client sent, or that a batch made; without a page, what a batch writes
    PATH/batches/ID.json        a batch
    PATH/asked/KEY.json         what is to be cancelled if nobody asks for it again
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

from potatod.errors import ConfigError

from .faults import Fault

Kind = Literal["responses", "files", "batches", "asked"]
#: Batches of which nothing comes any more.
OVER: Final = frozenset({"completed", "failed", "cancelled"})
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")


class Store:
    def __init__(self, folder: Path) -> None:
        """Raises :class:`ConfigError` where it cannot be written."""
        self._folder = folder
        self._writing = asyncio.Lock()
        try:
            for kind in get_args(Kind):
                (folder / kind).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write [gateway] path {folder}: {error.strerror}") from None

    async def put(self, kind: Kind, id: str, page: dict[str, Any]) -> None:
        """One after the other. Raises :class:`Fault` where the disk does not take it; then the page before is still there."""
        try:
            async with self._writing:
                await asyncio.to_thread(_write, self._path(kind, id), msgspec.json.encode(page))
        except OSError as error:
            raise Fault(507, f"not kept: {error.strerror}", code="storage") from None

    def note(self, kind: Kind, id: str, page: dict[str, Any]) -> None:
        """The same without waiting for the disk, and lost with it: what a killed gateway leaves to the next one."""
        path = self._path(kind, id)
        try:
            path.write_bytes(msgspec.json.encode(page))
        except OSError:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def get(self, kind: Kind, id: str) -> dict[str, Any] | None:
        if not _ID.fullmatch(id):
            return None
        try:
            page: dict[str, Any] = msgspec.json.decode(self._path(kind, id).read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return page

    def pages(self, kind: Kind) -> Iterator[dict[str, Any]]:
        """The newest first."""
        found = [page for path in (self._folder / kind).glob("*.json") if (page := self.get(kind, path.stem)) is not None]
        yield from sorted(found, key=lambda page: (page.get("created_at", 0), str(page.get("id"))), reverse=True)

    def ids(self, kind: Kind) -> set[str]:
        """Of all pages."""
        return {path.stem for path in (self._folder / kind).glob("*.json")}

    def delete(self, kind: Kind, id: str) -> None:
        self._path(kind, id).unlink(missing_ok=True)

    def delete_file(self, id: str) -> None:
        """Its page first: without it, it is nobody's."""
        self.delete("files", id)
        self.content(id).unlink(missing_ok=True)

    def asked_from(self, id: str) -> str | None:
        """A batch that is not over and is asked from this file."""
        return next((page["id"] for page in self.pages("batches") if page["input_file_id"] == id and page["status"] not in OVER), None)

    def delete_half_made(self, but: Collection[str], before: float) -> None:
        """What was last written ``before`` (seconds since 1970): pages that were not put in their place, and files without a page, ``but`` these."""
        paged = self.ids("files")
        for kind in get_args(Kind):
            for path in (self._folder / kind).iterdir():
                half = path.name.startswith(".") or (kind == "files" and path.suffix != ".json" and path.name not in paged and path.name not in but)
                with suppress(FileNotFoundError):
                    if half and path.stat().st_mtime < before:
                        path.unlink()

    def content(self, id: str) -> Path:
        """Where a file's bytes are."""
        assert _ID.fullmatch(id), "whoever asks has its page"
        return self._folder / "files" / id

    def content_bytes(self, page_bytes: int) -> int:
        """Of all files, with so much for the page of each. Reads the folder."""
        total = 0
        for entry in os.scandir(self._folder / "files"):
            with suppress(FileNotFoundError):  # deleted meanwhile
                total += page_bytes if entry.name.endswith(".json") else entry.stat().st_size
        return total

    def _path(self, kind: Kind, id: str) -> Path:
        return self._folder / kind / f"{id}.json"


def _write(path: Path, data: bytes) -> None:
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with made.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        made.unlink(missing_ok=True)
