"""A model at the hub by HTTP: what it consists of, ranges of its files, and whole files that go on where they stopped.

huggingface_hub's own requests with its tokens, endpoint and waits; its downloads are not used, since they begin anew in each process and end in its
cache. What is said of a commit stays true, so that parts of a file that came on different days fit each other.

NOTE [ what has come is kept ]
A file grows as ``NAME.partial``. Under its own name it has the size and the SHA-256 that the hub says, and is on the disk.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final
from urllib.parse import quote

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff, http_stream_backoff

from potatod.errors import ModelDataError, Unavailable, first_line

from . import shard_file
from .hub import explained

_TIMEOUT_S: Final = 20.0
#: A connection is made anew so often without a byte more; the waits between them double.
_RETRIES: Final = 5
_LONGEST_WAIT_S: Final = 8.0
_CHUNK_BYTES: Final = 1 << 20


class Stopped(Exception):
    """Nobody waits for the download any more."""


@dataclass(frozen=True, slots=True)
class HubFile:
    name: str
    size_bytes: int
    #: empty where the hub says none, which is so of small files
    sha256: str


@dataclass(frozen=True, slots=True)
class Repository:
    """A model at one commit."""

    id: str
    commit: str
    #: "unknown" where its page says none
    licence: str
    #: by name; those in folders below are not ours
    files: MappingProxyType[str, HubFile]


def look(model_id: str, revision: str | None) -> Repository:
    """Asks the hub once. Raises NoSuchModel or Unavailable."""
    below = f"/revision/{quote(revision, safe='')}" if revision else ""
    with explained(model_id, revision):
        answer = http_backoff(
            "GET", f"{huggingface_hub.constants.ENDPOINT}/api/models/{model_id}{below}", params={"blobs": "true"},
            headers=build_hf_headers(), timeout=_TIMEOUT_S, max_retries=_RETRIES,
        )  # fmt: skip
        hf_raise_for_status(answer)
    try:
        page = answer.json()
        files = [_file(entry) for entry in page["siblings"]]
        card = page.get("cardData") or {}
        licence = card.get("license_name") or card.get("license") or "unknown"
        return Repository(
            model_id, str(page["sha"]), ", ".join(licence) if isinstance(licence, list) else str(licence),
            MappingProxyType({file.name: file for file in files if file.name == Path(file.name).name and not file.name.startswith(".")}),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unavailable(f"what {huggingface_hub.constants.ENDPOINT} says of {model_id} is not what a hub says ({error!r}): is it one?") from None


def _file(entry: dict[str, Any]) -> HubFile:
    lfs = entry.get("lfs") or {}
    return HubFile(str(entry["rfilename"]), int(lfs.get("size") or entry["size"]), str(lfs.get("sha256") or ""))


def read_range(repository: Repository, name: str, offset: int, length: int) -> bytes:
    """So many bytes of a file; raises NoSuchModel, Unavailable, or ModelDataError where it has not so many."""
    if repository.files[name].size_bytes < offset + length:
        raise ModelDataError(f"{name} of {repository.id} ends before byte {offset + length}: it is no whole safetensors file")
    got = bytearray()

    def once() -> bool:
        with _stream(repository, name, offset + len(got), offset + length) as (begins, chunks):
            skipped = offset + len(got) - begins
            for chunk in chunks:
                got.extend(chunk[skipped:])
                skipped = max(0, skipped - len(chunk))
                if len(got) >= length:
                    return True
        return False

    if length:
        _persistently(repository, name, once, lambda: len(got))
    return bytes(got[:length])


def download(
    repository: Repository, file: HubFile, folder: Path, *, stopped: Callable[[], bool] = lambda: False, arrived: Callable[[int], None] = lambda _: None
) -> None:  # fmt: skip
    """``folder/NAME``, whole and checked; see NOTE [ what has come is kept ]. ``arrived`` is told how many bytes are there. Raises NoSuchModel,
    Unavailable, DoesNotFit, ModelDataError where it is wrong twice, and Stopped soon after ``stopped()``."""
    path = partial_of(folder / file.name)
    for _ in range(2):
        with _Partial(path) as partial:
            if partial.size > file.size_bytes or (partial.size and not file.sha256):  # nothing would tell whether that is right
                partial.restart()
            _persistently(repository, file.name, lambda: _fill(repository, file, partial, stopped, arrived), lambda: partial.size)
            found = partial.digest.hexdigest()
            if file.sha256 in ("", found):
                partial.finish(folder / file.name)
                return
            partial.restart()
            arrived(0)
    raise ModelDataError(
        f"{file.name} of {repository.id} came twice with another SHA-256 ({found}) than the hub says ({file.sha256}): something between here and the "
        "hub changes it, or it is damaged there"
    )


def partial_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


class _Partial:
    """A file that grows, with its SHA-256. Raises DoesNotFit where the disk is full."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Partial:
        with self._explained():
            self._file = open(self._path, "a+b", opener=shard_file.no_link)
            self._file.seek(0)
            self.digest, self.size = hashlib.sha256(), 0
            while data := self._file.read(_CHUNK_BYTES):
                self.digest.update(data)
                self.size += len(data)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):  # what could not be written is tried once more, and whoever called has been told
            self._file.close()

    def append(self, data: bytes) -> None:
        with self._explained():
            self._file.write(data)
            self._file.flush()
        self.digest.update(data)
        self.size += len(data)

    def restart(self) -> None:
        with self._explained():
            self._file.truncate(0)
        self.digest, self.size = hashlib.sha256(), 0

    def finish(self, path: Path) -> None:
        """Under this name from now on. What cannot be synced is worth nothing: it looks whole for as long as the kernel remembers it."""
        with self._explained():
            try:
                os.fsync(self._file.fileno())
            except OSError:
                with suppress(OSError):
                    self._file.truncate(0)
                raise
            self._path.replace(path)
        shard_file.sync_folder(path.parent)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise shard_file.explained(error, self._path) from None


def _fill(repository: Repository, file: HubFile, partial: _Partial, stopped: Callable[[], bool], arrived: Callable[[int], None]) -> bool:
    """Appends what is missing; False where the connection ended before that."""
    if partial.size == file.size_bytes:
        return True
    with _stream(repository, file.name, partial.size, file.size_bytes) as (begins, chunks):
        if begins < partial.size:  # it knows no ranges
            partial.restart()
        for chunk in chunks:
            if stopped():
                raise Stopped
            partial.append(chunk[: file.size_bytes - partial.size])
            arrived(partial.size)
    return partial.size == file.size_bytes


@contextmanager
def _stream(repository: Repository, name: str, first: int, end: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Where in the file what comes begins, and its bytes: asked for from ``first`` up to ``end``. Waits as the hub says where it is too busy."""
    url = huggingface_hub.hf_hub_url(repository.id, name, revision=repository.commit)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={first}-{end - 1}"}
    with http_stream_backoff("GET", url, headers=headers, timeout=_TIMEOUT_S, max_retries=_RETRIES, retry_on_exceptions=()) as answer:
        hf_raise_for_status(answer)
        yield first if answer.status_code == 206 else 0, answer.iter_bytes()


def _persistently(repository: Repository, name: str, once: Callable[[], bool], progress: Callable[[], int]) -> None:
    """``once`` again and again until it returns True, while connections break and more has come than before."""
    failures, before = 0, progress()
    with explained(repository.id, repository.commit, name):
        while True:
            why = "the connection ends in the middle of a file"
            try:
                if once():
                    return
            except errors.HfHubHTTPError:
                raise
            except errors.HTTPError as error:  # of the connection: whatever came of an answer is kept
                why = first_line(error) or type(error).__name__
            failures = 1 if progress() > before else failures + 1
            before = progress()
            if failures > _RETRIES:
                raise Unavailable(f"cannot download {name} of {repository.id}: {why}; run the same command again, it goes on where it stopped")
            time.sleep(min(_LONGEST_WAIT_S, 2.0 ** (failures - 1)))
