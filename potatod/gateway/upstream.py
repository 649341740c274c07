"""The connections to the front: what is asked through them, and followed.

A connection follows a job once, and so many at a time. So there are as many connections as it takes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from potato_client import AsyncAnswer, AsyncClient, ClientError, FollowedAlready, RequestRefused
from potato_client.job_report import JobReport, JobState
from potato_client.protocol import MAX_FOLLOWED, Accepted, Described, JobAction, Report
from potato_client.status import ToolUse

from .faults import Fault

#: Followed by one connection.
_FOLLOWED: Final = MAX_FOLLOWED // 2
#: What a job has said comes at once; more than this it does not take.
_SHOWN_S: Final = 5.0
#: A status that is no older is good enough for everybody who asks.
_FRESH_S: Final = 1.0

Follow = Callable[[AsyncClient], Awaitable[AsyncAnswer]]


@dataclass(frozen=True, slots=True)
class SoFar:
    report: JobReport
    text: str
    reasoning: str


class Upstream:
    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._clients: list[AsyncClient] = []
        self._following: dict[AsyncAnswer, AsyncClient] = {}
        self._status: tuple[float, Report] | None = None
        self._asking_status = asyncio.Lock()

    async def follow(self, ask: Follow, began: Callable[[AsyncAnswer], None] = lambda _: None) -> AsyncAnswer:
        """Returns when it is a job on disk. ``began`` is told of each answer that may become it. Raises :class:`ClientError`."""
        tried: list[AsyncClient] = []
        while True:
            client = self._free(tried)
            answer = await ask(client)
            self._following[answer] = client
            began(answer)
            try:
                await accepted(answer)
                return answer
            except FollowedAlready:  # there: another connection may
                self.done([answer])
                tried.append(client)
            except ClientError:
                self.done([answer])
                raise

    async def attach(self, job: str) -> AsyncAnswer:
        """Raises :class:`ClientError`."""
        begun: list[AsyncAnswer] = []
        try:
            return await self.follow(lambda client: client.attach(job), begun.append)
        except BaseException:
            self.done(begun)
            raise

    async def so_far(self, job: str) -> SoFar:
        """What a job has said until now. Raises :class:`ClientError` where there is none, :class:`Fault` where not all of it comes."""
        report = (await self.show(job)).report
        answer = await self.attach(job)
        try:
            async with asyncio.timeout(_SHOWN_S):
                while len(answer.token_ids) < report.completion_tokens and not answer.over:
                    async for _ in answer.messages():
                        break
        except TimeoutError:
            raise Fault(503, "the front did not say all of it in time; ask again", code="unavailable") from None
        except RequestRefused:  # a failed job has text all the same
            pass
        finally:
            self.done([answer])
        return SoFar(report, answer.text, answer.reasoning)

    async def jobs(self, states: Sequence[JobState], limit: int, before: int) -> list[JobReport]:
        return await self._any().jobs(states, limit, before)

    async def show(self, job: str) -> Described:
        return await self._any().show(job)

    async def manage(self, job: str, action: JobAction) -> JobReport:
        return await self._any().manage(job, action)

    async def status(self) -> Report:
        """A second old at most; however many ask, it is asked for once."""
        async with self._asking_status:
            now = time.monotonic()
            if self._status is None or now - self._status[0] > _FRESH_S:
                self._status = now, await self._any().status()
            return self._status[1]

    async def tool_use(self, model: str) -> ToolUse:
        """What that model's chat template knows of tools."""
        return next((served.tools for served in (await self.status()).models if served.name == model), "none")

    def done(self, answers: Sequence[AsyncAnswer]) -> None:
        """Nobody listens to these any more; those that are not over go on."""
        for answer in answers:
            if not answer.over:
                answer.detach()
            self._following.pop(answer, None)

    async def close(self) -> None:
        """Jobs go on."""
        self.done(list(self._following))
        for client in self._clients:
            await client.close()

    def _free(self, tried: Sequence[AsyncClient]) -> AsyncClient:
        """The first connection that has room and was not tried."""
        for client in self._clients:
            if client not in tried and sum(user is client for user in self._following.values()) < _FOLLOWED:
                return client
        self._clients.append(AsyncClient(self._socket))
        return self._clients[-1]

    def _any(self) -> AsyncClient:
        return self._clients[0] if self._clients else self._free([])


async def accepted(answer: AsyncAnswer) -> None:
    """Waits until it is a job on disk, or over. Raises :class:`ClientError`."""
    if answer.accepted is None:
        async for message in answer.messages():
            if isinstance(message, Accepted):
                return


def unknown(error: ClientError) -> bool:
    return isinstance(error, RequestRefused) and error.code == "unknown_job"
