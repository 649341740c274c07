"""Server-sent events: what a client that streams reads while an answer is written, minutes from token to token if it must be.

A proxy cuts what is silent, so a comment goes out every ``PING_S``, and says for people what is going on: ": 2 answers before this one".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent

from potato_client import AsyncAnswer, ClientError, words
from potato_client.protocol import Finished, Piece

from . import pages
from .faults import Fault

PING_S: Final = 15
#: A client that reads nothing for so long has left.
_SEND_S: Final = 60
_DONE: Final = "[DONE]"


def response(events: AsyncIterator[ServerSentEvent], answers: Sequence[AsyncAnswer], headers: dict[str, str]) -> EventSourceResponse:
    def ping() -> ServerSentEvent:
        return ServerSentEvent(comment=_going_on(answers), sep="\n")

    return EventSourceResponse(events, headers=headers, sep="\n", ping=PING_S, send_timeout=_SEND_S, ping_message_factory=ping)


def event(page: object, name: str | None = None) -> ServerSentEvent:
    return ServerSentEvent(data=msgspec.json.encode(page).decode(), event=name, sep="\n")


async def chunks(
    shape: pages.Format, head: pages.Head, answers: Sequence[AsyncAnswer], prompts: int, *, include_usage: bool, left: Callable[[], None]
) -> AsyncIterator[ServerSentEvent]:
    """The chunks of all answers as they come. ``left`` is called at the end, however it comes."""
    try:
        try:
            for choice in range(len(answers)):
                for page in shape.first(head, choice):
                    yield event(page)
            async for choice, message in merged(answers):
                if isinstance(message, Piece):
                    for page in shape.piece(head, choice, message):
                        yield event(page)
                elif isinstance(message, Finished):
                    for page in shape.last(head, choice, message.job, pages.finish_reason(message)):
                        yield event(page)
        except ClientError as error:
            yield event(Fault.of(error).page())
            return
        except Fault as fault:
            yield event(fault.page())
            return
        if include_usage:
            yield event(shape.usage(head, pages.usage([answer.finished for answer in answers if answer.finished is not None], prompts)))
        yield ServerSentEvent(data=_DONE, sep="\n")
    finally:
        left()


async def merged(answers: Sequence[AsyncAnswer]) -> AsyncIterator[tuple[int, object]]:
    """What the front says of each, in the order in which it comes. Raises :class:`ClientError` for the first that comes to nothing."""
    if len(answers) == 1:
        async for message in answers[0].messages():
            yield 0, message
        return
    said: asyncio.Queue[tuple[int, object]] = asyncio.Queue()

    async def listen(number: int) -> None:
        try:
            async for message in answers[number].messages():
                said.put_nowait((number, message))
        except ClientError as error:
            said.put_nowait((number, error))

    tasks = [asyncio.create_task(listen(number)) for number in range(len(answers))]
    try:
        ended = 0
        while ended < len(answers):
            number, what = await said.get()
            if isinstance(what, ClientError):
                raise what
            ended += isinstance(what, Finished)
            yield number, what
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def _going_on(answers: Sequence[AsyncAnswer]) -> str:
    """Of the first that is not over."""
    progress = next((answer.progress for answer in answers if not answer.over), None)
    return "going on" if progress is None else words.progress(progress)
