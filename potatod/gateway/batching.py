"""/v1/batches: many questions in a file, answered when there is time for them. What becomes of one is in batch.py.

    validating ─▶ in_progress ─▶ finalizing ─▶ completed
        └─▶ failed      └─▶ cancelling ─▶ cancelled
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import body
from .batch import Batch
from .batch_lines import ENDPOINTS
from .faults import Fault, Json, not_found
from .filing import Files
from .query import listed, route
from .questions import Questions
from .requests import idempotency_key
from .responses import check_metadata
from .served import Served
from .store import OVER, Store
from .upstream import Upstream

Page = dict[str, Any]


class _Body(msgspec.Struct):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] = {}


class Batches:
    def __init__(
        self, served: Served, upstream: Upstream, questions: Questions, store: Store, files: Files, logger: logging.Logger
    ) -> None:  # fmt: skip
        self._served = served
        self._upstream = upstream
        self._questions = questions
        self._creating = asyncio.Lock()
        self._store = store
        self._files = files
        self._logger = logger
        self._running: dict[str, Batch] = {}

    def routes(self) -> list[Route]:
        return [
            route("/v1/batches", self.create, "POST"),
            route("/v1/batches", self.list, query=("limit", "after")),
            route("/v1/batches/{id}", self.show),
            route("/v1/batches/{id}/cancel", self.cancel, "POST"),
        ]

    def go_on(self) -> None:
        """With all that were under way when the gateway ended."""
        for page in self._store.pages("batches"):
            if page["status"] not in OVER:
                self._begin(page)

    async def close(self) -> None:
        """They go on when the gateway is back; their jobs do meanwhile."""
        tasks = [batch.task for batch in self._running.values() if batch.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def create(self, request: Request) -> Response:
        asked = body.understood(await body.read_json(request), _Body, {"output_expires_after": ()}, {})
        check_metadata(asked.metadata)
        if asked.completion_window != "24h":
            raise Fault(400, 'completion_window is "24h": it does not expire', code="invalid_value", param="completion_window")
        if asked.endpoint not in ENDPOINTS:
            raise Fault(400, f"endpoint is one of {', '.join(ENDPOINTS)}", code="invalid_value", param="endpoint")
        if self._store.get("files", asked.input_file_id) is None:
            raise Fault(400, f"there is no file {asked.input_file_id[:100]!r}", code="invalid_value", param="input_file_id")
        key = idempotency_key(request)
        id = f"batch_{secrets.token_hex(12) if key is None else hashlib.sha256(key.encode()).hexdigest()[:24]}"
        async with self._creating:  # the same key at the same time is one batch
            page = self._known(id)
            if page is None:
                page = _page_of(id, asked)
                await self._store.put("batches", id, page)
                self._begin(page)
        same = (page["input_file_id"], page["endpoint"], page["metadata"]) == (asked.input_file_id, asked.endpoint, asked.metadata)
        if not same:
            raise Fault(422, "this Idempotency-Key was used for another batch", code="key_used")
        return Json(page)

    async def list(self, request: Request) -> Response:
        return Json(listed([self._known(page["id"]) or page for page in self._store.pages("batches")], request))

    async def show(self, request: Request) -> Response:
        return Json(self._asked_for(request))

    async def cancel(self, request: Request) -> Response:
        page = self._asked_for(request)
        if page["status"] in OVER:
            raise Fault(409, f"{page['id']} is {page['status']}: there is nothing to cancel", code="not_now")
        batch = self._running.get(page["id"])
        if batch is None:  # it stands still
            batch = self._begin(page)
        await batch.cancel()
        return Json(batch.page)

    def _asked_for(self, request: Request) -> Page:
        id = request.path_params["id"]
        page = self._known(id)
        if page is None:
            raise not_found(f"there is no batch {id[:100]!r}")
        return page

    def _known(self, id: str) -> Page | None:
        return self._running[id].page if id in self._running else self._store.get("batches", id)

    def _begin(self, page: Page) -> Batch:
        id = page["id"]
        batch = self._running[id] = Batch(
            page, served=self._served, upstream=self._upstream, questions=self._questions, store=self._store, files=self._files, logger=self._logger,
        )  # fmt: skip
        batch.task = asyncio.create_task(batch.live())
        batch.task.add_done_callback(lambda done: self._running.pop(id, None))
        return batch


def _page_of(id: str, asked: _Body) -> Page:
    times = ("in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return {
        "id": id,
        "object": "batch",
        "endpoint": asked.endpoint,
        "errors": None,
        "input_file_id": asked.input_file_id,
        "completion_window": asked.completion_window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": int(time.time()),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": asked.metadata,
    } | {f"{name}_at": None for name in times}
