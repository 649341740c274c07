"""Questions on their way to the front, and what becomes of their answers when the client has left.

NOTE [ a client that leaves ]
An HTTP client that closes its connection has pressed stop, or has lost patience and asks again at once: libraries do, after a timeout, with
``x-stainless-retry-count``. So its jobs go on for ``GRACE_S`` and are cancelled then, unless the same is asked for again: then it is the same jobs,
from where they are. What was asked for with an ``Idempotency-Key``, or as a job, goes on until it is over.

So that a gateway that is killed changes nothing of this, each question is noted in a file, which the next one finds: for it all of these clients have
just left.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from potato_client import AsyncAnswer, ClientError, RequestRefused
from potato_client.job_report import OVER
from potatod import log

from .asking import Question
from .store import Store
from .upstream import Upstream, accepted, unknown

GRACE_S: Final = 30.0
#: A question that is on its way becomes a job, or is refused, within this.
_ACCEPTED_S: Final = 60.0
#: A front that is away is asked again after so long.
_AGAIN_S: Final = 2.0
#: Refusals after which nothing comes of a job; after all others it goes on.
_ENDED: Final = frozenset({"poisoned", "internal", "bad_request", "prompt_too_long", "unknown_job"})


@dataclass(slots=True)
class Asked:
    """The answers to one request."""

    #: by what the same request is known
    digest: bytes
    key: str
    #: whether they go on when nobody listens
    stays: bool
    #: whether the key was drawn for it, so that no job can have been there before
    fresh: bool = True
    #: whether their jobs are to be deleted when nobody needs them any more; not where they stay
    forgotten: bool = False
    answers: list[AsyncAnswer] = field(default_factory=list)

    @property
    def jobs(self) -> list[str]:
        """Their ids."""
        return [answer.accepted.job for answer in self.answers if answer.accepted is not None]

    @property
    def open_jobs(self) -> list[str]:
        """Of these, the ones of which something may still come."""
        return [answer.accepted.job for answer in self.answers if answer.accepted is not None and not _ended(answer)]


@dataclass(slots=True)
class _Left:
    """A client has left; for now its jobs go on."""

    key: str
    task: asyncio.Task[None]
    jobs: list[str]
    forgotten: bool


class Questions:
    def __init__(self, upstream: Upstream, store: Store, logger: logging.Logger) -> None:
        self._upstream = upstream
        self._store = store
        self._logger = logger
        self._left: dict[bytes, _Left] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def go_on(self) -> None:
        """With what the gateway before was asked."""
        for page in self._store.pages("asked"):
            self._wait_for_it(bytes.fromhex(page["digest"]), page["key"], page["jobs"], page["forgotten"])

    async def ask(
        self, question: Question, *, digest: bytes, again: bool, idempotency: str | None, stays: bool = False, forgotten: bool = False
    ) -> Asked:  # fmt: skip
        """Returns when all of it is on disk. ``again``: the client says that it has asked before; ``stays``: it goes on whoever leaves;
        ``forgotten``: its jobs are not to be kept. Raises :class:`ClientError`; nothing of it is asked for then."""
        before = self._left.pop(digest, None) if again and idempotency is None else None
        if before is not None:
            before.task.cancel()
            log.event(self._logger, "asked for again", jobs=",".join(before.jobs))
        key = before.key if before is not None else _key_of(idempotency)
        fresh = before is None and idempotency is None
        assert not (forgotten and (stays or idempotency is not None)), "what is kept for others is not forgotten"
        asked = Asked(digest, key, stays or idempotency is not None, fresh, forgotten)
        try:
            await self._all(question, asked)
        except asyncio.CancelledError:
            self.leave(asked)
            raise
        except BaseException:
            self.undo(asked)
            if before is not None:
                self._wait_for_it(digest, key, before.jobs, before.forgotten)
            raise
        if not asked.stays:
            self._store.note("asked", _name(key), {"digest": digest.hex(), "key": key, "jobs": asked.jobs, "forgotten": forgotten})
        return asked

    def leave(self, asked: Asked) -> None:
        """Nobody listens any more, since all has been said or since the client has left: NOTE [ a client that leaves ]."""
        if all(answer.accepted is not None or answer.over for answer in asked.answers):
            self._leave(asked)
        else:
            self._start(self._leave_when_accepted(asked))

    async def delete(self, job: str) -> None:
        """A job that is not over is cancelled first; one that is gone is no fault. Raises :class:`ClientError`."""
        try:
            if (await self._upstream.show(job)).report.state not in OVER:
                await self._upstream.manage(job, "cancel")
            async with asyncio.timeout(_ACCEPTED_S):  # a sweep always finishes
                while (await self._upstream.show(job)).report.state not in OVER:
                    await asyncio.sleep(0.1)
            await self._upstream.manage(job, "delete")
        except RequestRefused as error:
            if not unknown(error):
                raise

    async def cancel(self, jobs: list[str]) -> None:
        """Those that are over stay as they are. Waits for a front that is away."""
        for job in jobs:
            while True:
                try:
                    if (await self._upstream.show(job)).report.state not in OVER:
                        await self._upstream.manage(job, "cancel")
                        log.event(self._logger, "cancelled: nobody waits for it", job=job)
                except RequestRefused as error:
                    if error.code not in ("unknown_job", "not_now"):
                        await asyncio.sleep(_AGAIN_S)
                        continue
                except ClientError:
                    await asyncio.sleep(_AGAIN_S)
                    continue
                break

    async def close(self) -> None:
        """Jobs go on, and the next gateway knows of them."""
        tasks = [*self._tasks, *(left.task for left in self._left.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # means

    async def _all(self, question: Question, asked: Asked) -> None:
        options = dict(question.options)
        if options.get("seed") is None and question.count > 1:
            options["seed"] = int.from_bytes(hashlib.sha256(asked.key.encode()).digest()[:7], "big")  # one for all: they share the prompt's work
        begun: dict[int, AsyncAnswer] = {}

        async def one(number: int) -> None:
            at, choice = divmod(number, question.count)
            more = {**options, "choice": choice}
            await self._upstream.follow(
                lambda client: client.generate(
                    question.prompts[at], raw=question.raw, key=f"{asked.key}:{at}:{choice}", tools=question.tools, model=question.model, **more
                ),
                lambda answer: begun.__setitem__(number, answer),
            )

        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(len(question.prompts) * question.count):
                    tasks.create_task(one(number))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            asked.answers = [begun[number] for number in sorted(begun)]

    def undo(self, asked: Asked) -> None:
        """Of a request that was refused in part: what was asked for with it is cancelled, but not what was there before."""
        new = [answer.accepted.job for answer in asked.answers if answer.accepted is not None and not answer.accepted.known]
        for answer in asked.answers:
            if answer.accepted is None and asked.fresh:
                answer.cancel()
        self._upstream.done(asked.answers)
        self._start(self.cancel(new))

    def _leave(self, asked: Asked) -> None:
        jobs = asked.open_jobs
        self._upstream.done(asked.answers)
        if asked.stays:
            return
        if not jobs and asked.forgotten:
            self._start(self._forget(asked.key, asked.jobs))
        else:
            self._wait_for_it(asked.digest, asked.key, asked.jobs, asked.forgotten)

    async def _leave_when_accepted(self, asked: Asked) -> None:
        for answer in asked.answers:
            try:
                async with asyncio.timeout(_ACCEPTED_S):
                    await accepted(answer)
            except (TimeoutError, ClientError):
                continue
        self._leave(asked)

    def _wait_for_it(self, digest: bytes, key: str, jobs: list[str], forgotten: bool) -> None:
        async def wait() -> None:
            await asyncio.sleep(GRACE_S)
            if digest in self._left and self._left[digest].task is asyncio.current_task():
                del self._left[digest]
            await self.cancel(jobs)
            if forgotten:
                await self._forget(key, jobs)
            self._store.delete("asked", _name(key))

        task = self._start(wait())
        self._left[digest] = _Left(key, task, jobs, forgotten)

    async def _forget(self, key: str, jobs: list[str]) -> None:
        """If they cannot be deleted now, [jobs] keep will."""
        for job in jobs:
            try:
                await self.delete(job)
            except (ClientError, TimeoutError) as error:
                log.event(self._logger, "not deleted, though it was not to be kept", level=logging.WARNING, job=job, why=str(error))
        self._store.delete("asked", _name(key))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _ended(answer: AsyncAnswer) -> bool:
    """Whether nothing more can come of its job: it is over, and not only for us."""
    return answer.finished is not None or (isinstance(answer.error, RequestRefused) and answer.error.code in _ENDED)


def _key_of(idempotency: str | None) -> str:
    return f"http:{secrets.token_hex(16) if idempotency is None else hashlib.sha256(idempotency.encode()).hexdigest()[:48]}"


def _name(key: str) -> str:
    return key.removeprefix("http:")


def digest_of(path: str, body: bytes) -> bytes:
    """What the same request is known by."""
    return hashlib.sha256(path.encode() + b"\0" + body).digest()
