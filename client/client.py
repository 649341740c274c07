"""The client for programs with threads.

with Client() as client:
    answer = client.generate("What is the capital of France?", max_tokens=64)
    for piece in answer:
        sys.stdout.write(piece.text)
answer.finished.completion_tokens, answer.s_per_token
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from queue import Empty
from types import TracebackType
from typing import Self, Unpack

from .address import ASK_AGAIN_S, STALE_S, Stale, endpoint, look
from .answer import Collected, report_of
from .asking import AnswerOptions, Prompt, generate_message, several
from .connection import Connection, Inbox
from .protocol import SILENCE_S, Piece, Report, Status
from .session import Message, encode


class Answer(Collected):
    """An answer as it comes: iterate for its pieces. ``text``, ``finished`` and the rest can be read at any time.

    Iterating raises :class:`DaemonLost`, :class:`RequestRefused` or another :class:`ClientError` where the answer comes
    to nothing. Whoever stops iterating early and wants no more says ``cancel``; closing the client does it too.
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

    ``socket``: ``ipc://`` and an absolute path; None takes ``POTATO_SOCKET``, else where this user's daemon listens.
    ``timeout_s``: a daemon that says nothing for so long is gone; it is asked for a sign of life all the while.
    """

    def __init__(self, socket: str | None = None, *, timeout_s: float = SILENCE_S) -> None:
        self.address = endpoint(socket)
        self._timeout_s = timeout_s
        self._connection = Connection(self.address, timeout_s)
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cancels the answers that are not complete."""
        self._connection.close()

    def generate(self, prompt: Prompt, *, system: str | None = None, raw: bool = False, **options: Unpack[AnswerOptions]) -> Answer:
        """Asks, and returns at once; iterate over what comes back.

        ``prompt``: a question, or a conversation of messages with role and content. ``raw``: goes on with the text as
        it is, without the model's chat template. Options: :class:`AnswerOptions`. Raises :class:`BadRequest`,
        :class:`NoDaemon`.
        """
        message = generate_message(next(self._numbers), prompt, system=system, raw=raw, options=options)
        frame = encode(message)
        self._look()
        return Answer(message.request, self._connection.ask(message.request, frame), self._connection)

    def generate_many(
        self, prompt: Prompt, count: int, *, system: str | None = None, raw: bool = False, **options: Unpack[AnswerOptions]
    ) -> list[Answer]:  # fmt: skip
        """So many answers to one prompt, which share its computation; they come at the same time. As :meth:`generate`."""
        return [self.generate(prompt, system=system, raw=raw, **each) for each in several(options, count)]

    def cancel(self, answer: Answer) -> None:
        """The same as ``answer.cancel()``."""
        answer.cancel()

    def status(self) -> Report:
        """What the daemon is and does now. Raises :class:`NoDaemon`, :class:`DaemonLost`."""
        message = Status(next(self._numbers))
        self._look()
        return report_of(self._connection.ask(message.request, encode(message)).get())

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
