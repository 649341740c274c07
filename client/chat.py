"""A conversation on a terminal. The whole of it is sent each turn: the daemon keeps none.

Ctrl-C ends an answer, Ctrl-D the program. What went wrong with a turn is said, and it is as if it had never been.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from pathlib import Path
from typing import Final

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from .asking import AnswerOptions
from .client import Client
from .errors import ClientError
from .exit_codes import EXIT_OK
from .paths import state_directory
from .question import ChatMessage
from .screen import Screen
from .turn import Outcome, follow, generate, say_detached
from .words import one_line

_HELP: Final = """\
Enter sends, Alt-Enter (or Esc, then Enter) begins a new line. Ctrl-C ends an answer, Ctrl-D leaves.
  /system TEXT  what the model is told before the conversation; without TEXT: say what that is
  /clear        forget the conversation so far
  /help         this
  /exit         leave
A line that should begin with a slash begins with two.
"""
_COMMANDS: Final = ("/system", "/clear", "/help", "/exit")
_COMMAND: Final = re.compile(r"/[a-z]+(\s|$)")


class Chat:
    def __init__(self, client: Client, system: str | None, options: AnswerOptions, *, quiet: bool) -> None:
        self._client = client
        self._system = system
        self._options = options
        self._quiet = quiet
        self._conversation: list[ChatMessage] = []
        self._prompt: PromptSession[str] = PromptSession(
            FormattedText([("bold", "> ")]), multiline=True, prompt_continuation="  ",
            history=_history(), key_bindings=_keys(),
        )  # fmt: skip

    def run(self) -> int:
        """Until Ctrl-D or /exit; the exit code. Raises :class:`ClientError` where no daemon is there to begin with."""
        name = self._options.get("model") or self._client.status().models[0].name
        self._say(f"{one_line(name)} · /help says how this works\n")
        while True:
            try:
                text = self._prompt.prompt()
            except KeyboardInterrupt:
                continue  # what was typed is dropped, as in a shell
            except EOFError:
                return EXIT_OK
            if _COMMAND.match(text):
                if not self._obey(text):
                    return EXIT_OK
            elif text.strip():
                self._turn(text[1:] if text.startswith("//") else text)

    def _obey(self, text: str) -> bool:
        """Whether to go on."""
        command, _, rest = text.strip().partition(" ")
        if command == "/exit":
            return False
        if command == "/clear":
            self._conversation.clear()
            self._say("forgotten\n")
        elif command == "/system":
            self._system = rest.strip() or self._system
            self._say(f"system: {one_line(self._system)}\n" if self._system else "there is no system message\n")
        elif command == "/help":
            self._say(_HELP)
        else:
            near = difflib.get_close_matches(command, _COMMANDS, n=1)
            self._say(f"there is no {command}; {f'did you mean {near[0]}?' if near else '/help lists what there is'}\n")
        return True

    def _turn(self, text: str) -> None:
        question = ChatMessage("user", text)
        screen = Screen(sys.stdout, sys.stderr, quiet=self._quiet)
        try:
            (answer,) = generate(self._client, [*self._conversation, question], system=self._system, options=self._options)
            outcome = follow(answer, screen)
        except ClientError as error:
            self._say(f"\n{one_line(str(error))}\n")
            return
        screen.end(answer, interrupted=outcome is not Outcome.COMPLETE)
        if outcome is Outcome.DETACHED:
            say_detached(answer, self._quiet)
        if answer.text:
            self._conversation += [question, ChatMessage("assistant", answer.text, answer.reasoning or None)]

    def _say(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _history() -> History:
    """What was typed in earlier chats, for this user's eyes only; none where it cannot be kept."""
    path: Path = state_directory() / "chat-history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        sys.stderr.write(f"the history is not kept: {path}: {error.strerror}\n")
        return InMemoryHistory()
    return FileHistory(path)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
