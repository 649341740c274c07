"""What the gateway keeps, and for how long.

Of what is kept beside jobs: a response's record goes with its job. Files, batches and what these have answered go after [jobs] keep, as jobs do; what a
batch is asked from, when that is over. What a gateway that was killed has left half made goes too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from potato_client import ClientError
from potato_client.protocol import MAX_LISTED
from potatod import log

from .batch_work import KINDS, file_id
from .store import OVER, Store
from .upstream import Upstream

Page = dict[str, Any]

_EVERY_S: Final = 3600.0
#: A front that is away is asked again after so long.
_AGAIN_S: Final = 10.0
#: What is being written has been touched within this.
_HALF_MADE_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Outdated:
    """Ids."""

    files: list[str]
    batches: list[str]


class Retention:
    def __init__(self, store: Store, upstream: Upstream, keep_s: Callable[[], float], logger: logging.Logger) -> None:
        """``keep_s``: as the configuration says now."""
        self._store = store
        self._upstream = upstream
        self._keep_s = keep_s
        self._logger = logger
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._live())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _live(self) -> None:
        while True:
            try:
                responses = await self._delete_responses()
                gone = await self._delete_outdated()
                await asyncio.to_thread(self._delete_half_made)
                if responses or gone.files or gone.batches:
                    log.event(self._logger, "deleted what was over", responses=responses, files=len(gone.files), batches=len(gone.batches))
            except Exception:  # its top: the gateway lives, and it is tried again
                self._logger.exception("what is over was not deleted")
            await asyncio.sleep(_EVERY_S)

    async def _delete_responses(self) -> int:
        """Those whose jobs are gone."""
        records = await asyncio.to_thread(self._store.ids, "responses")  # before the jobs: each had its job by then
        gone = records - await self._jobs() if records else set()
        for id in gone:
            self._store.delete("responses", id)
            await asyncio.sleep(0)
        return len(gone)

    async def _jobs(self) -> set[str]:
        """All that there are."""
        found: set[str] = set()
        before = 0
        while True:
            try:
                reports = await self._upstream.jobs([], MAX_LISTED, before)
            except ClientError:
                await asyncio.sleep(_AGAIN_S)
                continue
            found |= {report.job for report in reports}
            if len(reports) < MAX_LISTED:
                return found
            before = reports[-1].number

    async def _delete_outdated(self) -> Outdated:
        def read() -> Outdated:
            return outdated(list(self._store.pages("files")), list(self._store.pages("batches")), time.time() - self._keep_s())

        gone = await asyncio.to_thread(read)
        for id in gone.batches:
            self._store.delete("batches", id)
        for id in gone.files:
            if not self._store.asked_from(id):  # a batch may have been asked for meanwhile
                self._store.delete_file(id)
            await asyncio.sleep(0)
        return gone

    def _delete_half_made(self) -> None:
        """Of files without a page, those that nobody writes."""
        going_on = {file_id(page["id"], kind) for page in self._store.pages("batches") if page["status"] not in OVER for kind in KINDS}
        self._store.delete_half_made(going_on, time.time() - _HALF_MADE_S)


def outdated(files: Sequence[Page], batches: Sequence[Page], before: float) -> Outdated:
    """Batches that were over ``before`` (seconds since 1970), and files of before that no batch is still asked from."""
    asked: Collection[str] = {page["input_file_id"] for page in batches if page["status"] not in OVER}
    old = [page["id"] for page in files if page["created_at"] < before and page["id"] not in asked]
    return Outdated(old, [page["id"] for page in batches if page["status"] in OVER and page[f"{page['status']}_at"] < before])
