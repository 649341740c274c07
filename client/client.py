"""The client for programs with threads.

with Client() as client:
    answer = client.generate("What is the capital of France?", max_tokens=64)
    for piece in answer:
        sys.stdout.write(piece.text)
answer.finished.completion_tokens, answer.s_per_token

job = client.submit("Summarise …")     # the daemon has it, whatever becomes of this program
client.attach(job)                     # an answer as above, from its beginning
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from queue import Empty
from types import TracebackType
from typing import Self, TypeVar, Unpack

from .address import ASK_AGAIN_S, STALE_S, Stale, endpoint, look
from .answer import Collected, only
from .asking import AnswerOptions, Prompt, Tools, generate_message, list_message, page_of, several
from .connection import Connection, Inbox
from .job_report import JobReport, JobState
from .protocol import SILENCE_S, Accepted, Attach, Described, JobAction, Listed, Manage, Managed, Piece, Report, Show, Status
from .session import Message, Question, encode

_M = TypeVar("_M", bound=Message)


class Answer(Collected):
    """An answer as it comes: iterate for its pieces. ``text``, ``finished`` and the rest can be read at any time.

    Iterating raises :class:`DaemonLost`, :class:`RequestRefused` or another :class:`ClientError` where the answer comes
    to nothing. Whoever stops iterating early and wants no more says ``cancel``, or ``detach`` where the job is to go on; closing the client
    cancels it too.
    """

    def __init__(self, request: int, inbox: Inbox, connection: Connection) -> None:
        super().__init__(request)
        self._inbox = inbox
        self._connection = connection

    def __iter__(self) -> Iterator[Piece]:
        return (message for message in self.messages() if isinstance(message, Piece))

    def messages(self) -> Iterator[Message]:
        """All that the daemon says about it: Accepted, Progress, Piece, Finished."""
        while not self.over:
            yield self.take(self._inbox.get())

    def cancel(self) -> None:
        """Asks the daemon to stop; the answer then ends with Finished("cancelled"), after the sweep under way."""
        self._connection.cancel(self.request)

    def detach(self) -> str | None:
        """Hears no more of it; the job, whose id is returned, goes on. None, and nothing done, where the daemon has not accepted it yet."""
        if self.accepted is None:
            return None
        self._connection.detach(self.request)
        return self.accepted.job

    def wait(self, timeout_s: float) -> bool:
        """Takes in what comes until it is over, or for so long; whether it is over. Raises as iterating does."""
        until = time.monotonic() + timeout_s
        while not self.over and (left_s := until - time.monotonic()) > 0:
            self._take_within(left_s)
        return self.over

    def _take_within(self, seconds: float) -> None:
        try:
            event = self._inbox.get(timeout=seconds)
        except Empty:
            return
        self.take(event)


class Client:
    """A connection to one daemon. May be used from several threads, and for several answers at once.

    ``socket``: ``ipc://`` and an absolute path, or the path of a key file for a daemon on another machine; None takes ``POTATO_SOCKET``, else where
    this user's daemon listens.
    ``timeout_s``: a daemon that says nothing for so long is gone; it is asked for a sign of life all the while.
    """

    def __init__(self, socket: str | None = None, *, timeout_s: float = SILENCE_S) -> None:
        where = endpoint(socket)
        self.address = where.address
        self._timeout_s = timeout_s
        self._connection = Connection(where, timeout_s)
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cancels the answers that are not complete; what was submitted goes on."""
        self._connection.close()

    def generate(
        self, prompt: Prompt, *, system: str | None = None, raw: bool = False, key: str | None = None, tools: Tools = (),
        **options: Unpack[AnswerOptions],
    ) -> Answer:  # fmt: skip
        """Asks, and returns at once; iterate over what comes back.

        ``prompt``: a question, or a conversation of messages with role and content. ``raw``: goes on with the text as
        it is, without the model's chat template. ``key``: asked for with the same one it is the same job, so that a program may ask again that does not
        know whether it has asked. ``tools``: what the model may call, as its chat template takes them; what it calls is part of the text, written as
        the model writes it. Options: :class:`AnswerOptions`. Raises :class:`BadRequest`, :class:`NoDaemon`.
        """
        message = generate_message(next(self._numbers), prompt, system=system, raw=raw, key=key, tools=tools, options=options)
        return self._followed(message)

    def generate_many(
        self, prompt: Prompt, count: int, *, system: str | None = None, raw: bool = False, **options: Unpack[AnswerOptions]
    ) -> list[Answer]:  # fmt: skip
        """So many answers to one prompt, which share its computation; they come at the same time. As :meth:`generate`."""
        return [self.generate(prompt, system=system, raw=raw, **each) for each in several(options, count)]

    def cancel(self, answer: Answer) -> None:
        """The same as ``answer.cancel()``."""
        answer.cancel()

    def submit(
        self, prompt: Prompt, *, system: str | None = None, raw: bool = False, key: str | None = None, tools: Tools = (),
        **options: Unpack[AnswerOptions],
    ) -> str:  # fmt: skip
        """As :meth:`generate`, and returns the job's id as soon as the daemon has it on disk: nobody needs to wait for the answer."""
        message = generate_message(next(self._numbers), prompt, system=system, raw=raw, key=key, follow=False, tools=tools, options=options)
        return self._only(message, Accepted).job

    def attach(self, job: str) -> Answer:
        """The answer of a job: what there is of it, and what comes. ``job``: its id, or its beginning where that is no other's."""
        return self._followed(Attach(next(self._numbers), job))

    def jobs(self, states: Sequence[JobState] = (), limit: int = 100, before: int = 0) -> list[JobReport]:
        """The last ones that were asked for, the newest first; of these states, or of all; only those that arrived before the one of number ``before``,
        where that is not 0. Raises :class:`BadRequest`, :class:`NoDaemon`."""
        found: list[JobReport] = []
        more = True
        while more and (wanted := page_of(limit, len(found))) > 0:
            page = self._only(list_message(next(self._numbers), states, wanted, before), Listed)
            found, more = [*found, *page.reports], page.more and bool(page.reports)
            before = found[-1].number if found else before
        return found

    def show(self, job: str) -> Described:
        """A job and what was asked. Raises :class:`RequestRefused` where there is none."""
        return self._only(Show(next(self._numbers), job), Described)

    def manage(self, job: str, action: JobAction) -> JobReport:
        """Cancels, pauses, resumes, retries or deletes it; the job as it is now. Raises :class:`RequestRefused` where that is not possible."""
        return self._only(Manage(next(self._numbers), job, action), Managed).report

    def status(self) -> Report:
        """What the daemon is and does now. Raises :class:`NoDaemon`, :class:`DaemonLost`."""
        return self._only(Status(next(self._numbers)), Report)

    def _followed(self, message: Question) -> Answer:
        frame = encode(message)
        self._look()
        inbox = self._connection.ask(message.request, frame, followed=True, kept=isinstance(message, Attach))
        return Answer(message.request, inbox, self._connection)

    def _only(self, message: Question, expected: type[_M]) -> _M:
        frame = encode(message)
        self._look()
        return only(self._connection.ask(message.request, frame).get(), expected)

    def _look(self) -> None:
        """Raises :class:`NoDaemon` where nobody listens; waits a little where that may change."""
        until = time.monotonic() + min(STALE_S, self._timeout_s)
        while True:
            try:
                return look(self.address)
            except Stale:
                if time.monotonic() >= until:
                    raise
            time.sleep(ASK_AGAIN_S)
