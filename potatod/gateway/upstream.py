"""The connections to the front, and what becomes of an answer whose client has left.

NOTE [ a client that leaves ]
An HTTP client that closes its connection has pressed stop, or has lost patience and asks again at once: libraries do, after a timeout, with
``x-stainless-retry-count``. So its jobs go on for ``GRACE_S`` and are cancelled then, unless the same is asked for again: then it is the same jobs,
from where they are. What was asked for with an ``Idempotency-Key``, or as a job, goes on until it is over.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from potato_client import AsyncAnswer, AsyncClient, ClientError, RequestRefused
from potato_client.job_report import JobReport, JobState
from potato_client.protocol import MAX_FOLLOWED, Accepted, Described, JobAction, Report
from potatod import log

from .asking import Question

GRACE_S: Final = 30.0
#: Followed by one connection.
_FOLLOWED: Final = MAX_FOLLOWED // 2
#: What a job has said comes at once; more than this it does not take.
_SHOWN_S: Final = 5.0
#: A status that is no older is good enough for everybody who asks.
_FRESH_S: Final = 1.0


@dataclass(slots=True)
class Asked:
    """The answers to one request."""

    answers: list[AsyncAnswer] = field(default_factory=list)
    #: whether they go on when nobody listens
    stays: bool = False
    #: by what the same request is known
    digest: bytes = b""
    key: str = ""

    @property
    def jobs(self) -> list[str]:
        """Their ids."""
        return [answer.accepted.job for answer in self.answers if answer.accepted is not None]


@dataclass(frozen=True, slots=True)
class SoFar:
    report: JobReport
    text: str
    reasoning: str


class Upstream:
    def __init__(self, socket: str, logger: logging.Logger) -> None:
        self._socket = socket
        self._logger = logger
        self._clients: list[AsyncClient] = []
        self._following: dict[AsyncAnswer, AsyncClient] = {}
        self._left: dict[bytes, tuple[str, asyncio.Task[None]]] = {}
        self._status: tuple[float, Report] | None = None

    async def ask(self, question: Question, *, digest: bytes, again: bool, idempotency: str | None, stays: bool = False) -> Asked:
        """Returns when all of it is on disk. ``again``: the client says that it has asked before; ``stays``: it goes on whoever leaves. Raises
        :class:`ClientError`; nothing of it is asked for then."""
        asked = Asked(stays=stays or idempotency is not None, digest=digest)
        if idempotency is not None:
            asked.key = f"http:{hashlib.sha256(idempotency.encode()).hexdigest()[:48]}"
        else:
            asked.key = self._before(digest) if again else ""
        asked.key = asked.key or f"http:{secrets.token_hex(16)}"
        options = dict(question.options)
        if options.get("seed") is None and question.count > 1:
            options["seed"] = int.from_bytes(hashlib.sha256(asked.key.encode()).digest()[:7], "big")  # one for all: they share the prompt's work
        try:
            for at, prompt in enumerate(question.prompts):
                for choice in range(question.count):
                    key = f"{asked.key}:{at}:{choice}"
                    asked.answers.append(await self._generate(prompt, question, key, {**options, "choice": choice}))
            for answer in asked.answers:
                await _accepted(answer)
        except BaseException:
            self.leave(asked, at_once=True)
            raise
        return asked

    async def attach(self, job: str) -> AsyncAnswer:
        """Returns when it is known that there is such a job. Raises :class:`ClientError`."""
        answer = await self._follow(lambda client: client.attach(job))
        try:
            await _accepted(answer)
        except BaseException:
            self.done([answer])
            raise
        return answer

    async def so_far(self, job: str) -> SoFar:
        """What a job has said until now. Raises :class:`ClientError` where there is none."""
        report = (await self.show(job)).report
        answer = await self.attach(job)
        try:
            async with asyncio.timeout(_SHOWN_S):
                while len(answer.token_ids) < report.completion_tokens and not answer.over:
                    async for _ in answer.messages():
                        break
        except (TimeoutError, RequestRefused):  # a failed job has text all the same
            pass
        finally:
            self.done([answer])
        return SoFar(report, answer.text, answer.reasoning)

    async def jobs(self, states: Sequence[JobState], limit: int) -> list[JobReport]:
        return await self._any().jobs(states, limit)

    async def show(self, job: str) -> Described:
        return await self._any().show(job)

    async def manage(self, job: str, action: JobAction) -> JobReport:
        return await self._any().manage(job, action)

    async def status(self) -> Report:
        now = time.monotonic()
        if self._status is None or now - self._status[0] > _FRESH_S:
            self._status = now, await self._any().status()
        return self._status[1]

    def done(self, answers: Sequence[AsyncAnswer]) -> None:
        """Nobody listens to these any more; those that are not over go on."""
        for answer in answers:
            if not answer.over:
                answer.detach()
            self._following.pop(answer, None)

    def leave(self, asked: Asked, *, at_once: bool = False) -> None:
        """The client has left: NOTE [ a client that leaves ]. ``at_once``: nobody will ask for it again."""
        open_jobs = [answer.accepted.job for answer in asked.answers if answer.accepted is not None and not answer.over]
        for answer in asked.answers:
            if answer.accepted is None and not answer.over:
                answer.cancel()
        self.done(asked.answers)
        if asked.answers and not asked.stays:
            task = asyncio.create_task(self._cancel_later(asked.digest, open_jobs, 0.0 if at_once else GRACE_S))
            self._left[asked.digest] = asked.key, task

    async def close(self) -> None:
        """Jobs go on."""
        for _, task in self._left.values():
            task.cancel()
        self.done(list(self._following))
        for client in self._clients:
            await client.close()

    # means

    def _before(self, digest: bytes) -> str:
        key, task = self._left.pop(digest, ("", None))
        if task is not None:
            task.cancel()
            log.event(self._logger, "asked for again", key=key)
        return key

    async def _cancel_later(self, digest: bytes, jobs: list[str], after_s: float) -> None:
        await asyncio.sleep(after_s)
        if self._left.get(digest, ("", None))[1] is asyncio.current_task():
            del self._left[digest]
        for job in jobs:
            with suppress(ClientError):
                await self.manage(job, "cancel")
                log.event(self._logger, "cancelled: its client has left", job=job)

    async def _generate(self, prompt: Any, question: Question, key: str, options: dict[str, Any]) -> AsyncAnswer:
        return await self._follow(lambda client: client.generate(prompt, raw=question.raw, key=key, tools=question.tools, **options))

    async def _follow(self, ask: Any) -> AsyncAnswer:
        client = self._least_busy()
        answer: AsyncAnswer = await ask(client)
        self._following[answer] = client
        return answer

    def _least_busy(self) -> AsyncClient:
        """The first connection that has room."""
        for client in self._clients:
            if sum(user is client for user in self._following.values()) < _FOLLOWED:
                return client
        self._clients.append(AsyncClient(self._socket))
        return self._clients[-1]

    def _any(self) -> AsyncClient:
        return self._clients[0] if self._clients else self._least_busy()


async def _accepted(answer: AsyncAnswer) -> None:
    """Waits until it is a job on disk, or over."""
    if answer.accepted is None:
        async for message in answer.messages():
            if isinstance(message, Accepted):
                return


def digest_of(path: str, body: bytes) -> bytes:
    """What the same request is known by."""
    return hashlib.sha256(path.encode() + b"\0" + body).digest()


def unknown(error: ClientError) -> bool:
    return isinstance(error, RequestRefused) and error.code == "unknown_job"
