"""One question and its answer at a command line: asked, followed to its end, left with Ctrl-C or Ctrl-\\."""

from __future__ import annotations

import enum
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from .asking import AnswerOptions, Prompt
from .client import Answer, Client
from .errors import BadRequest, ClientError
from .exit_codes import EXIT_INTERRUPTED
from .screen import Screen

#: After Ctrl-C the daemon may say for so long how the answer ended.
_LAST_WORDS_S: Final = 1.0


class Outcome(enum.Enum):
    COMPLETE = enum.auto()
    #: Ctrl-C: it is cancelled
    INTERRUPTED = enum.auto()
    #: the job goes on without us
    DETACHED = enum.auto()


class _Detach(Exception):
    """Ctrl-\\ was typed."""


def answer_options(given: dict[str, Any]) -> AnswerOptions:
    """What was given on the command line. An empty list of stop strings is none."""
    priority = "batch" if given.pop("batch", False) else None
    return cast(AnswerOptions, {**given, "stop": given["stop"] or None, "priority": priority})


def generate(client: Client, prompt: Prompt, *, system: str | None, raw: bool = False, options: AnswerOptions, count: int = 1) -> list[Answer]:
    """As ``client.generate_many``; errors call options as they are typed here."""
    with as_typed(options):
        if count == 1:
            return [client.generate(prompt, system=system, raw=raw, **options)]
        return client.generate_many(prompt, count, system=system, raw=raw, **options)


@contextmanager
def as_typed(options: AnswerOptions) -> Iterator[None]:
    """Errors call options as they are typed at a command line."""
    try:
        yield
    except BadRequest as error:
        name, _, rest = str(error).partition(" ")
        raise BadRequest(f"--{name.replace('_', '-')} {rest}" if name in options or name == "answers" else str(error)) from None


def follow(answer: Answer, screen: Screen, *, cancels: bool = True) -> Outcome:
    """Shows it to its end. Ctrl-C cancels it, or leaves it where ``cancels`` is false; Ctrl-\\ leaves it. A second Ctrl-C ends the program at once."""
    try:
        with _detaching():
            for message in answer.messages():
                screen.show(message)
        return Outcome.COMPLETE
    except _Detach:
        return _detached(answer, cancels)
    except KeyboardInterrupt:
        if not cancels:
            return _detached(answer, cancels)
        answer.cancel()
    except ClientError:
        screen.break_off()
        raise
    try:
        answer.wait(_LAST_WORDS_S)
    except ClientError:
        pass  # nobody waits for it any more
    except KeyboardInterrupt:
        os._exit(EXIT_INTERRUPTED)
    return Outcome.INTERRUPTED


def say_detached(answer: Answer, quiet: bool) -> None:
    """How to come back."""
    if answer.accepted is not None and not quiet:
        sys.stderr.write(f"job {answer.accepted.job} goes on: potato-client attach {answer.accepted.job[:8]}\n")


def _detached(answer: Answer, cancels: bool) -> Outcome:
    """Where the daemon has not accepted what was asked here there is nothing to leave yet: it is cancelled when it is."""
    if answer.detach() is None and cancels:
        answer.cancel()
        return Outcome.INTERRUPTED
    return Outcome.DETACHED


@contextmanager
def _detaching() -> Iterator[None]:
    """Ctrl-\\ raises; anywhere but in the main thread signals are somebody else's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def detach(_number: int, _frame: object) -> None:
        raise _Detach

    before = signal.signal(signal.SIGQUIT, detach)
    try:
        yield
    finally:
        signal.signal(signal.SIGQUIT, before)
