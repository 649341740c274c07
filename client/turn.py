"""One question and its answer at a command line: asked, followed to its end, ended by Ctrl-C."""

from __future__ import annotations

import os
from typing import Any, Final, cast

from .asking import AnswerOptions, Prompt
from .client import Answer, Client
from .errors import BadRequest, ClientError
from .exit_codes import EXIT_INTERRUPTED
from .screen import Screen

#: After Ctrl-C the daemon may say for so long how the answer ended.
_LAST_WORDS_S: Final = 1.0


def answer_options(given: dict[str, Any]) -> AnswerOptions:
    """What was given on the command line. An empty list of stop strings is none."""
    priority = "batch" if given.pop("batch", False) else None
    return cast(AnswerOptions, {**given, "stop": given["stop"] or None, "priority": priority})


def generate(client: Client, prompt: Prompt, *, system: str | None, raw: bool = False, options: AnswerOptions, count: int = 1) -> list[Answer]:
    """As ``client.generate_many``; errors call options as they are typed here."""
    try:
        if count == 1:
            return [client.generate(prompt, system=system, raw=raw, **options)]
        return client.generate_many(prompt, count, system=system, raw=raw, **options)
    except BadRequest as error:
        name, _, rest = str(error).partition(" ")
        raise BadRequest(f"--{name.replace('_', '-')} {rest}" if name in options or name == "answers" else str(error)) from None


def follow(answer: Answer, screen: Screen) -> bool:
    """Shows it to its end; whether Ctrl-C ended it. A second Ctrl-C ends the program at once."""
    try:
        for message in answer.messages():
            screen.show(message)
        return False
    except KeyboardInterrupt:
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
    return True
