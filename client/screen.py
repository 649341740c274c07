"""Where an answer appears: stdout has the answer, stderr what is said about it.

stdout is a terminal    reasoning, dim, then the answer; control characters are shown and not obeyed
stdout is a file        the answer, byte for byte; reasoning goes to stderr
stderr is a terminal    one live line while nothing has come, one line of figures at the end
"""

from __future__ import annotations

import os
import shutil
from typing import Final, TextIO

from . import words
from .answer import Collected
from .protocol import Accepted, Piece, Progress
from .session import Message

_DIM: Final = "\x1b[2m"
_PLAIN: Final = "\x1b[0m"
_CLEAR_LINE: Final = "\r\x1b[K"


class Screen:
    """One answer on its way. ``quiet``: only the answer. ``silent``: not even that, the live line at most."""

    def __init__(self, out: TextIO, err: TextIO, *, quiet: bool = False, silent: bool = False) -> None:
        self._out, self._err = out, err
        self._on_terminal = out.isatty()
        self._talks = err.isatty() and not quiet
        self._quiet = quiet
        self._silent = silent
        self._styled = self._on_terminal and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
        self._live = False
        #: where the last character of the answer, and of its reasoning, left the line
        self._wrote, self._thought, self._at_line_start = False, False, True

    def show(self, message: Message) -> None:
        if isinstance(message, Piece):
            self._piece(message)
        elif isinstance(message, Accepted) and message.place:
            self._line(words.in_the_queue(message.place))
        elif isinstance(message, Progress):
            self._line(words.progress(message))

    def end(self, answer: Collected, *, interrupted: bool = False) -> None:
        """Leaves whole lines, and a line of figures where somebody watches."""
        self.clear()
        if (self._wrote and not self._at_line_start) or (interrupted and self._on_terminal):
            self._write(self._out, "\n")
        if answer.finished is not None and self._talks and not self._silent:
            self._write(self._err, f"{words.summary(answer.finished, answer.s_per_token)}\n")

    def break_off(self) -> None:
        """The answer ends here, and an error follows."""
        self.clear()
        if self._on_terminal and (self._thought or (self._wrote and not self._at_line_start)):
            self._write(self._out, "\n")

    def clear(self) -> None:
        """Takes the live line away."""
        if self._live:
            self._live = False
            self._write(self._err, _CLEAR_LINE)

    def _piece(self, piece: Piece) -> None:
        if self._silent:
            return
        if piece.reasoning:
            self._reasoning(piece.reasoning)
        if piece.text:
            self._answer(piece.text)

    def _reasoning(self, text: str) -> None:
        if self._on_terminal:
            shown = words.harmless(text)
            self._write(self._out, f"{_DIM}{shown}{_PLAIN}" if self._styled else shown)
        elif not self._quiet:
            self.clear()
            self._write(self._err, words.harmless(text) if self._err.isatty() else text)
        self._thought = True

    def _answer(self, text: str) -> None:
        if self._thought:
            text = text.lstrip("\n") if self._on_terminal else text
            if not text:
                return
            self._thought = False
            self._part()
        self._write(self._out, words.harmless(text) if self._on_terminal else text)
        self._wrote, self._at_line_start = True, text.endswith("\n")

    def _part(self) -> None:
        """Between the thoughts and the answer."""
        if self._on_terminal:
            self._write(self._out, "\n\n")
        elif not self._quiet:
            self._write(self._err, "\n")

    def _line(self, text: str) -> None:
        """The live line; never over an answer that has begun on the same terminal."""
        if not self._talks or (self._on_terminal and (self._wrote or self._thought)):
            return
        width = shutil.get_terminal_size().columns - 1
        self._live = True
        self._err.write(_CLEAR_LINE + words.one_line(text)[:width])
        self._err.flush()

    def _write(self, stream: TextIO, text: str) -> None:
        if stream is self._out:
            self.clear()
        stream.write(text)
        stream.flush()
