"""Splits an answer's text into the model's thoughts and what it says, by the marks that its template declares. Pure.

    [blanks] <think> thoughts </think> [blanks] answer            or, where the template itself wrote <think>:
    thoughts </think> [blanks] answer

Thoughts come first or not at all: marks inside the answer are text. Marks and the blanks around them belong to neither, and no
part of a mark is ever shown.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Marks:
    opening: str
    closing: str


_KNOWN: Final = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
)


def declared(template: str, tokens: Collection[str] = ()) -> Marks | None:
    """The marks that a chat template writes or looks for, or that the tokenizer has tokens for; None: it does not think."""
    for marks in _KNOWN:
        if marks.closing in template or (marks.opening in tokens and marks.closing in tokens):
            return marks
    return None


class _State(enum.Enum):
    BEFORE = enum.auto()  # nothing but blanks so far
    THINKING = enum.auto()
    AFTER_MARK = enum.auto()  # thoughts are over, nothing but blanks since
    ANSWERING = enum.auto()


class Reasoning:
    """One per answer. Without ``marks`` everything is answer."""

    def __init__(self, marks: Marks | None = None, prompt: str = "") -> None:
        """``prompt`` is the rendered chat: where it ends with the opening mark the answer begins inside the thoughts."""
        self._marks = marks
        self._held = ""
        self._thought = False  # whether a thought has been shown
        if marks is None:
            self._state = _State.ANSWERING
        else:
            self._state = _State.THINKING if prompt.rstrip().endswith(marks.opening) else _State.BEFORE

    def push(self, text: str) -> tuple[str, str]:
        """(thoughts, answer) that this text makes certain."""
        if self._state is _State.ANSWERING or self._marks is None:
            return "", text
        self._held += text
        thoughts = ""
        if self._state is _State.BEFORE:
            self._look_for_opening(self._marks.opening)
        if self._state is _State.THINKING:
            thoughts = self._think(self._marks.closing)
        if self._state is _State.AFTER_MARK:
            self._held = self._held.lstrip()
            if self._held:
                self._state = _State.ANSWERING
        if self._state is _State.ANSWERING:
            return thoughts, self._take()
        return thoughts, ""

    def flush(self) -> tuple[str, str]:
        """The text is complete: what was held back."""
        held = self._take()
        if self._state is _State.THINKING:
            return held.rstrip() if self._thought else held.strip(), ""
        return "", "" if self._state is _State.AFTER_MARK else held

    def _look_for_opening(self, opening: str) -> None:
        begun = self._held.lstrip()
        if begun.startswith(opening):
            self._held, self._state = begun[len(opening) :], _State.THINKING
        elif not opening.startswith(begun):
            self._state = _State.ANSWERING

    def _think(self, closing: str) -> str:
        """Thoughts up to the closing mark, or up to what may become blanks and a closing mark."""
        if not self._thought:
            self._held = self._held.lstrip()
        end = self._held.find(closing)
        if end >= 0:
            thoughts, self._held = self._held[:end].rstrip(), self._held[end + len(closing) :]
            self._state = _State.AFTER_MARK
            return thoughts
        cut = len(self._held)
        for length in range(min(len(closing) - 1, cut), 0, -1):
            if self._held.endswith(closing[:length]):
                cut -= length
                break
        thoughts = self._held[:cut].rstrip()
        self._held = self._held[len(thoughts) :]
        self._thought = self._thought or bool(thoughts)
        return thoughts

    def _take(self) -> str:
        held, self._held = self._held, ""
        return held
