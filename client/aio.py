"""The client for programs with asyncio: the same decisions (session, answer, asking, address), other waiting.

async with AsyncClient() as client:
    answer = await client.generate("What is the capital of France?")
    async for piece in answer:
        ...
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import zmq
import zmq.asyncio

from .address import ASK_AGAIN_S, STALE_S, Endpoint, Stale, endpoint, look
from .answer import Collected, only
from .asking import AnswerOptions, Prompt, Tools, generate_message, list_message, page_of, several
from .connection import LINGER_MS, client_name, dealer
from .errors import ClientError
from .job_report import JobReport, JobState
from .protocol import SILENCE_S, Accepted, Attach, Described, JobAction, Listed, Manage, Managed, Piece, Report, Show, Status
from .session import Event, Message, Question, Session, encode

_M = TypeVar("_M", bound=Message)
_Inbox = asyncio.Queue[Event]


class AsyncAnswer(Collected):
    """As :class:`potato_client.Answer`, with ``async for`` and ``await``."""

    def __init__(self, request: int, inbox: _Inbox, connection: _Connection) -> None:
        super().__init__(request)
        self._inbox = inbox
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async for message in self.messages():
            if isinstance(message, Piece):
                yield message

    async def messages(self) -> AsyncIterator[Message]:
        """All that the daemon says about it: Accepted, Progress, Piece, Finished."""
        while not self.over:
            yield self.take(await self._inbox.get())

    def cancel(self) -> None:
        """Asks the daemon to stop; the answer then ends with Finished("cancelled"), after the sweep under way."""
        self._connection.cancel(self.request)

    def detach(self) -> str | None:
        """As :meth:`potato_client.Answer.detach`."""
        if self.accepted is None:
            return None
        self._connection.detach(self.request)
        return self.accepted.job

    async def wait(self, timeout_s: float) -> bool:
        """Takes in what comes until it is over, or for so long; whether it is over. Raises as iterating does."""
        try:
            async with asyncio.timeout(timeout_s):
                async for _ in self.messages():
                    pass
        except TimeoutError:
            pass
        return self.over


class AsyncClient:
    """As :class:`potato_client.Client`. Belongs to the event loop in which it is first used."""

    def __init__(self, socket: str | None = None, *, timeout_s: float = SILENCE_S) -> None:
        self._endpoint = endpoint(socket)
        self.address = self._endpoint.address
        self._timeout_s = timeout_s
        self._connection: _Connection | None = None
        self._closed = False
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels the answers that are not complete; what was submitted goes on."""
        self._closed = True
        if self._connection is not None:
            await self._connection.close()

    async def generate(
        self, prompt: Prompt, *, system: str | None = None, raw: bool = False, key: str | None = None, tools: Tools = (),
        **options: Unpack[AnswerOptions],
    ) -> AsyncAnswer:  # fmt: skip
        """As :meth:`potato_client.Client.generate`."""
        return await self._followed(generate_message(next(self._numbers), prompt, system=system, raw=raw, key=key, tools=tools, options=options))

    async def generate_many(
        self, prompt: Prompt, count: int, *, system: str | None = None, raw: bool = False, **options: Unpack[AnswerOptions]
    ) -> list[AsyncAnswer]:  # fmt: skip
        """As :meth:`potato_client.Client.generate_many`."""
        return [await self.generate(prompt, system=system, raw=raw, **each) for each in several(options, count)]

    def cancel(self, answer: AsyncAnswer) -> None:
        """The same as ``answer.cancel()``."""
        answer.cancel()

    async def submit(
        self, prompt: Prompt, *, system: str | None = None, raw: bool = False, key: str | None = None, tools: Tools = (),
        **options: Unpack[AnswerOptions],
    ) -> str:  # fmt: skip
        """As :meth:`potato_client.Client.submit`."""
        message = generate_message(next(self._numbers), prompt, system=system, raw=raw, key=key, follow=False, tools=tools, options=options)
        return (await self._only(message, Accepted)).job

    async def attach(self, job: str) -> AsyncAnswer:
        """As :meth:`potato_client.Client.attach`."""
        return await self._followed(Attach(next(self._numbers), job))

    async def jobs(self, states: Sequence[JobState] = (), limit: int = 100, before: int = 0) -> list[JobReport]:
        """As :meth:`potato_client.Client.jobs`."""
        found: list[JobReport] = []
        more = True
        while more and (wanted := page_of(limit, len(found))) > 0:
            page = await self._only(list_message(next(self._numbers), states, wanted, before), Listed)
            found, more = [*found, *page.reports], page.more and bool(page.reports)
            before = found[-1].number if found else before
        return found

    async def show(self, job: str) -> Described:
        """As :meth:`potato_client.Client.show`."""
        return await self._only(Show(next(self._numbers), job), Described)

    async def manage(self, job: str, action: JobAction) -> JobReport:
        """As :meth:`potato_client.Client.manage`."""
        return (await self._only(Manage(next(self._numbers), job, action), Managed)).report

    async def status(self) -> Report:
        """What the daemon is and does now. Raises :class:`NoDaemon`, :class:`DaemonLost`."""
        return await self._only(Status(next(self._numbers)), Report)

    async def _followed(self, message: Question) -> AsyncAnswer:
        frame = encode(message)
        connection = await self._connected()
        inbox = connection.ask(message.request, frame, followed=True, kept=isinstance(message, Attach))
        return AsyncAnswer(message.request, inbox, connection)

    async def _only(self, message: Question, expected: type[_M]) -> _M:
        frame = encode(message)
        connection = await self._connected()
        return only(await connection.ask(message.request, frame).get(), expected)

    async def _connected(self) -> _Connection:
        if self._closed:
            raise ClientError("this client is closed")
        await self._look()
        if self._connection is None:
            self._connection = _Connection(self._endpoint, self._timeout_s)
        return self._connection

    async def _look(self) -> None:
        """Raises :class:`NoDaemon` where nobody listens; waits a little where that may change."""
        until = time.monotonic() + min(STALE_S, self._timeout_s)
        while True:
            try:
                return look(self.address)
            except Stale:
                if time.monotonic() >= until:
                    raise
            await asyncio.sleep(ASK_AGAIN_S)


class _Connection:
    """A socket and a session, moved by two tasks: one listens, the other sends and keeps the time."""

    def __init__(self, where: Endpoint, silence_s: float) -> None:
        self._session = Session(where.address, client_name(), silence_s=silence_s)
        self._inboxes: dict[int, _Inbox] = {}
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket = dealer(self._context, where)
        self._socket.connect(where.address)
        self._wake = asyncio.Event()
        self._tasks = [asyncio.create_task(work()) for work in (self._listen, self._send)]

    def ask(self, request: int, frame: bytes, *, followed: bool = False, kept: bool = False) -> _Inbox:
        inbox = self._inboxes[request] = _Inbox()
        self._session.ask(request, frame, time.monotonic(), followed=followed, kept=kept)
        self._wake.set()
        return inbox

    def cancel(self, request: int) -> None:
        self._session.cancel(request)
        self._wake.set()

    def detach(self, request: int) -> None:
        self._session.detach(request, time.monotonic())
        self._deliver()
        self._wake.set()

    async def close(self) -> None:
        if self._socket.closed:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._session.close(time.monotonic())
        self._deliver()
        await self._hand_over()
        self._socket.close(linger=LINGER_MS)
        await asyncio.to_thread(self._context.term)

    async def _listen(self) -> None:
        try:
            while True:
                frames = await self._socket.recv_multipart()
                self._session.receive(frames[0], time.monotonic())
                self._deliver()
                self._wake.set()
        finally:
            self._give_up()

    async def _send(self) -> None:
        try:
            while True:
                self._wake.clear()
                self._session.tick(time.monotonic())
                self._deliver()
                await self._hand_over()
                await self._sleep(self._session.due_in(time.monotonic()))
        finally:
            self._give_up()

    async def _hand_over(self) -> None:
        frames = self._session.frames(time.monotonic())
        while frames:
            try:
                await self._socket.send(frames[0], zmq.DONTWAIT)
            except zmq.Again:  # as in connection.py
                self._session.put_back(frames)
                return
            del frames[0]

    async def _sleep(self, due_s: float | None) -> None:
        try:
            async with asyncio.timeout(due_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _deliver(self) -> None:
        for event in self._session.events():
            self._inboxes[event.request].put_nowait(event)
            if event.last:
                del self._inboxes[event.request]

    def _give_up(self) -> None:
        """A task ends: nobody may wait for what will not come."""
        self._session.close(time.monotonic())
        self._deliver()
