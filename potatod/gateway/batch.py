"""The life of one batch, from the lines of its file to those of its answers.

NOTE [ a batch outlives everything ]
Each line is asked with a key made of the batch and the line, so that it is the same job however often it is asked for; and its answer is appended to a
file as soon as it is there. So a gateway that begins reads the lines again, leaves out those that are answered, and asks for the rest: of these, the
front has the jobs already. OpenAI's ``completion_window`` promises a day; here a batch takes what it takes and does not expire.

What cannot be written, since the disk is full or files have no more room, is tried again until it can: it is never what becomes of a line.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, ParamSpec, TypeVar

from potato_client import ClientError, DaemonLost, NoDaemon, RequestRefused
from potato_client.status import ToolUse
from potatod import log

from . import pages, streams, tools
from .batch_lines import Line, Wrong, answered, failed, lines_of, within_body
from .batch_work import Kind, Work, file_id
from .faults import Fault
from .filing import Files
from .questions import Asked, Questions
from .served import Served
from .store import Store
from .upstream import Upstream

#: Lines of one batch that are asked at the same time.
_WINDOW: Final = 64
#: What passes by itself is asked again after so long.
_AGAIN_S: Final = 2.0
#: So is what could not be written.
_FULL_S: Final = 5.0
_PASSING: Final = frozenset({"queue_full", "too_fast", "degraded", "stopping", "storage", "hello_first"})
_ERRORS_SHOWN: Final = 100

Page = dict[str, Any]
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Batch:
    def __init__(
        self, page: Page, *, served: Served, upstream: Upstream, questions: Questions, store: Store, files: Files, logger: logging.Logger
    ) -> None:
        #: what OpenAI's clients read of it
        self.page = page
        self._cancelled = page["status"] == "cancelling"
        self.task: asyncio.Task[None] | None = None
        self._id: str = page["id"]
        self._served = served
        self._upstream = upstream
        self._questions = questions
        self._store = store
        self._files = files
        self._logger = logger
        self._work = Work(self._id, store)
        #: one write after the other: what waits for room is said once
        self._writing = asyncio.Lock()

    async def live(self) -> None:
        """A batch's top: whatever ends it is written down, or left for the next gateway."""
        try:
            try:
                await self._answer_all()
            except asyncio.CancelledError:
                if not self._cancelled:
                    raise  # the gateway ends
                await self._end_cancelled()
        except Exception:  # a batch's top: the others, and the gateway, live
            self._logger.exception("batch %s stands still until the gateway is started again", self._id)
        finally:
            self._work.close()

    async def cancel(self) -> None:
        """Raises :class:`Fault`."""
        if not self._cancelled:
            await self._put("cancelling")
            self._cancelled = True
            assert self.task is not None
            self.task.cancel()

    async def _answer_all(self) -> None:
        if self._cancelled:
            await self._end_cancelled()
            return
        if (absent := next((name for name in self._models() if name not in self._served), None)) is not None:
            log.event(self._logger, "a batch waits for its model", batch=self._id, model=absent)
            return
        lines, wrong = await self._kept(self._lines)
        if wrong and self.page["status"] == "validating":
            self.page["errors"] = {"object": "list", "data": [each.page() for each in wrong[:_ERRORS_SHOWN]]}
            await self._note("failed")
            return
        await self._open(len(lines))
        self.page["models"] = sorted({line.question.model for line in lines})
        self.page["model"] = self.page["models"][0] if len(self.page["models"]) == 1 else None
        await self._note("in_progress")
        left = [line for line in lines if line.custom_id not in self._work.done]
        try:
            async with asyncio.TaskGroup() as tasks:
                for model in self.page["models"]:  # one that is down keeps no other's lines waiting
                    own = iter([line for line in left if line.question.model == model])
                    for _ in range(max(1, _WINDOW // len(self.page["models"]))):
                        tasks.create_task(self._ask(own))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        await self._note("finalizing")
        await self._end("completed")

    def _models(self) -> list[str]:
        """That its lines ask; none before they were understood."""
        named: list[str] = self.page.get("models") or [self.page.get("model")]
        return [name for name in named if name is not None]

    async def _lines(self) -> tuple[list[Line], list[Wrong]]:
        def read() -> tuple[list[Line], list[Wrong]]:
            try:
                text = self._store.content(self.page["input_file_id"]).read_bytes()
            except FileNotFoundError:
                text = b""  # deleted meanwhile: nothing to ask
            return lines_of(text, self.page["endpoint"], self._served.model)

        lines, wrong = await asyncio.to_thread(read)
        uses = {model: await self._tool_use(model) for model in {line.question.model for line in lines if line.question.tools}}
        wrong += [found for line in lines if line.question.tools and (found := _of_tools(line, uses[line.question.model])) is not None]
        return lines, wrong

    async def _tool_use(self, model: str) -> ToolUse:
        """Waits for a front that is away: at a start this one may be there first."""
        while True:
            try:
                return await self._upstream.tool_use(model)
            except ClientError:
                await asyncio.sleep(_AGAIN_S)

    async def _ask(self, lines: Iterator[Line]) -> None:
        """One after the other; others take from the same lines."""
        for line in lines:
            page = await self._answer(line)
            await self._kept(self._write, line, page)
            self._count()

    async def _answer(self, line: Line) -> Page:
        """What is written of it, whatever comes. Waits as long as it takes."""
        while True:
            asked: Asked | None = None
            try:
                asked = await self._questions.ask(line.question, digest=b"", again=False, idempotency=f"{self._id}:{line.number}")
                await self._kept(self._work.asked, asked.jobs)
                async for _ in streams.merged(asked.answers):
                    pass
                model = self._served.model(line.question.model)
                head = pages.Head(asked.jobs[0], int(time.time()), model.name, model.fingerprint)
                return answered(line, line.shape(self.page["endpoint"]).whole(head, asked.answers, len(line.question.prompts)))
            except Fault as fault:
                return failed(line, fault)
            except ClientError as error:
                passes = isinstance(error, NoDaemon | DaemonLost) or (isinstance(error, RequestRefused) and error.code in _PASSING)
                if not passes:
                    return failed(line, Fault.of(error))
            except Exception as error:  # a line's top: it fails, and the others are answered
                self._logger.exception("a line of a batch failed")
                return failed(line, Fault(500, f"this line failed: {type(error).__name__}", code="internal"))
            finally:
                if asked is not None:
                    self._questions.leave(asked)
            await asyncio.sleep(_AGAIN_S)

    async def _end_cancelled(self) -> None:
        """What is answered stays; the jobs of the rest are cancelled."""
        await self._open(self.page["request_counts"]["total"])
        await self._questions.cancel(self._work.jobs())
        await self._end("cancelled")

    async def _end(self, status: str) -> None:
        self._work.close()
        self._count()
        written: tuple[Kind, ...] = ("output", "error")
        for kind in written:
            part = self._work.part(kind)
            if part.exists() and part.stat().st_size:
                await self._kept(self._files.made, file_id(self._id, kind), f"{self._id}_{kind}.jsonl", "batch_output")
                self.page[f"{kind}_file_id"] = file_id(self._id, kind)
            else:
                self._work.forget(kind)
        await self._note(status)
        self._work.forget("jobs")

    def _count(self) -> None:
        self.page["request_counts"] = self._work.counts()

    # what it writes

    async def _kept(self, write: Callable[_P, Awaitable[_T]], *arguments: _P.args, **named: _P.kwargs) -> _T:
        """What ``write`` returns as soon as there is room."""
        async with self._writing:
            waits = False
            while True:
                try:
                    done = await write(*arguments, **named)
                    break
                except (OSError, Fault) as error:
                    if not waits:
                        log.event(self._logger, "a batch waits for the disk", level=logging.ERROR, batch=self._id, why=_why(error))
                    waits = True
                await asyncio.sleep(_FULL_S)
            if waits:
                log.event(self._logger, "a batch goes on", batch=self._id)
            return done

    async def _open(self, total: int) -> None:
        await self._kept(asyncio.to_thread, self._work.open, total)
        self._count()

    async def _write(self, line: Line, page: Page) -> None:
        """Raises OSError, and :class:`Fault` where files have no more room."""
        await self._files.check_room()
        await self._work.put(line, page)

    async def _note(self, status: str) -> None:
        await self._kept(self._put, status)

    async def _put(self, status: str) -> None:
        """Raises :class:`Fault`; then it is as it was."""
        new = {"status": status, f"{status}_at": int(time.time())}
        await self._store.put("batches", self._id, self.page | new)
        self.page |= new


def _of_tools(line: Line, use: ToolUse) -> Wrong | None:
    try:
        tools.check(use, forced=line.question.forced)
    except Fault as fault:
        return Wrong(line.number, within_body(fault))
    return None


def _why(error: OSError | Fault) -> str:
    return error.message if isinstance(error, Fault) else error.strerror or type(error).__name__
