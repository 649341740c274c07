"""The text of one answer: tokens go in, what may be shown comes out. Pure.

    token ─▶ detokenizer ─▶ stop strings ─▶ reasoning ─▶ Shown(token_ids, text, reasoning)
       └───▶ constraint, where there is one ─▶ allowed()

Each of the three may hold text back: half a character, what may become a stop string, what may become a mark of
thinking. A token is shown no later than the first of its text (earlier only where a mark of thinking may begin), and tokens behind a stop string
are never shown.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .detokenizer import Detokenizer
from .grammar import Constraint
from .reasoning import Reasoning
from .stops import Stops


@dataclass(frozen=True, slots=True)
class Shown:
    """What may be shown now, all of it after what was shown before."""

    token_ids: tuple[int, ...]
    text: str
    reasoning: str

    def __bool__(self) -> bool:
        return bool(self.token_ids or self.text or self.reasoning)


class Text:
    def __init__(self, detokenizer: Detokenizer, stops: Stops, reasoning: Reasoning, constraint: Constraint | None = None) -> None:
        """``constraint``: what the text must be."""
        self._detokenizer = detokenizer
        self._stops = stops
        self._reasoning = reasoning
        self._constraint = constraint
        #: characters that came out of the detokenizer, and how many of them have passed the stop strings
        self._made = 0
        self._passed = 0
        #: not shown yet: id, and how many characters there were before it
        self._held: deque[tuple[int, int]] = deque()

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come; then nothing more is shown."""
        return self._stops.found

    @property
    def complete(self) -> bool:
        """Whether its constraint lets nothing come any more. Raises :class:`Refusal` as that does."""
        return self._constraint is not None and self._constraint.complete

    def allowed(self) -> NDArray[np.bool_] | None:
        """Tokens that may come next, (vocabulary,); None: all. Raises :class:`Refusal` as the constraint does."""
        return None if self._constraint is None else self._constraint.allowed()

    def bytes_of(self, token: int) -> bytes:
        """As :meth:`Detokenizer.bytes_of`."""
        return self._detokenizer.bytes_of(token)

    def push(self, token: int) -> Shown:
        if self._constraint is not None:
            self._constraint.push(token)
        self._held.append((token, self._made))
        text = self._detokenizer.push([token])
        self._made += len(text)
        return self._shown(self._stops.push(text), last=False)

    def finish(self) -> Shown:
        """The answer is complete: what was held back comes out, unless a stop string ended it."""
        if self.stopped:
            return self._shown("", last=True)
        text = self._detokenizer.flush()
        self._made += len(text)
        return self._shown(self._stops.push(text) + self._stops.flush(), last=True)

    def _shown(self, text: str, *, last: bool) -> Shown:
        self._passed += len(text)
        ids = []
        while self._held and (self._held[0][1] < self._passed or (last and not self.stopped)):
            ids.append(self._held.popleft()[0])
        thought, answer = self._reasoning.push(text)
        if last:
            more_thought, more_answer = self._reasoning.flush()
            thought, answer = thought + more_thought, answer + more_answer
        return Shown(tuple(ids), answer, thought)
