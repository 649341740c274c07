"""/v1/files: what batches are asked from, and what they have answered."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from .faults import Fault, Json, not_found, unsupported
from .query import LIST, listed, route
from .store import Store

_MAX_NAME_CHARS: Final = 255
#: Of all files: those that clients have sent, and those that batches have written and write now. Beyond it none is taken, and batches wait.
MAX_KEPT_BYTES: Final = 1 << 30
#: What an empty one takes.
_PAGE_BYTES: Final = 4096
#: What they take is looked at again after so long, while batches write.
_LOOK_S: Final = 2.0


class Files:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._keeping = asyncio.Lock()
        #: when that was seen, and bytes
        self._taken: tuple[float, int] = (-_LOOK_S, 0)

    def routes(self) -> list[Route]:
        return [
            route("/v1/files", self.upload, "POST"),
            route("/v1/files", self.list, query=(*LIST, "purpose")),
            route("/v1/files/{id}", self.show),
            route("/v1/files/{id}", self.delete, "DELETE"),
            route("/v1/files/{id}/content", self.content),
        ]

    async def upload(self, request: Request) -> Response:
        try:
            async with request.form(max_files=1, max_fields=8) as form:
                return Json(await self._kept(form))
        except OSError as error:  # of where the form lies until it is read
            raise _not_kept(error) from None

    async def check_room(self) -> None:
        """As of a moment ago. Raises :class:`Fault` where there is none."""
        if time.monotonic() - self._taken[0] > _LOOK_S:
            self._taken = time.monotonic(), await asyncio.to_thread(self._store.content_bytes, _PAGE_BYTES)
        if self._taken[1] > MAX_KEPT_BYTES:
            raise _no_room()

    async def made(self, id: str, name: str, purpose: str) -> dict[str, Any]:
        """The page of a file whose bytes are on disk already. Raises OSError and :class:`Fault`."""
        size = self._store.content(id).stat().st_size
        about = {"bytes": size, "created_at": int(time.time()), "filename": name, "purpose": purpose}
        page = {"id": id, "object": "file", "status": "processed"} | about
        await self._store.put("files", id, page)
        return page

    async def _kept(self, form: FormData) -> dict[str, Any]:
        """The page of the file that came, which is on disk then. Raises OSError and :class:`Fault`."""
        purpose, file = form.get("purpose"), form.get("file")
        for name in form:
            if name not in ("purpose", "file"):
                raise unsupported(name)
        if purpose != "batch":
            raise unsupported("purpose", 'files are for batches here: purpose is "batch"')
        if not isinstance(file, UploadFile):
            raise Fault(400, "file is missing", code="invalid_value", param="file")
        id = f"file-{secrets.token_hex(12)}"
        async with self._keeping:
            taken = await asyncio.to_thread(self._store.content_bytes, _PAGE_BYTES)
            if taken + (file.size or 0) > MAX_KEPT_BYTES:
                raise _no_room()
            try:
                await asyncio.to_thread(_copy, file.file, self._store.content(id))
                return await self.made(id, (file.filename or "file")[:_MAX_NAME_CHARS], "batch")
            except BaseException:
                self._store.content(id).unlink(missing_ok=True)
                raise

    async def list(self, request: Request) -> Response:
        purpose = request.query_params.get("purpose")
        found = [page for page in self._store.pages("files") if purpose is None or page["purpose"] == purpose]
        return Json(listed(found, request))

    async def show(self, request: Request) -> Response:
        return Json(self._page(request))

    async def delete(self, request: Request) -> Response:
        id = self._page(request)["id"]
        asking = self._store.asked_from(id)
        if asking is not None:
            raise Fault(409, f"{asking} is asked from it: cancel that first", code="not_now")
        self._store.delete_file(id)
        return Json({"id": id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        page = self._page(request)
        return FileResponse(self._store.content(page["id"]), media_type="application/octet-stream", filename=page["filename"])

    def _page(self, request: Request) -> dict[str, Any]:
        id = request.path_params["id"]
        page = self._store.get("files", id)
        if page is None:
            raise not_found(f"there is no file {id[:100]!r}")
        return page


def _copy(source: BinaryIO, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())


def _no_room() -> Fault:
    return Fault(507, f"files are kept up to {MAX_KEPT_BYTES >> 20} MiB in all, what batches write included: delete some", code="storage")


def _not_kept(error: OSError) -> Fault:
    return Fault(507, f"not kept: {error.strerror}", code="storage")
