"""What one rendering of a chat template may still do. Pure; sandbox.py says what pays.

A step stands for one to four microseconds at most and for a few dozen bytes of memory, so a budget bounds both.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Final

from jinja2.exceptions import SecurityError

#: Steps of one rendering beside those for its input: one to four seconds at the worst, as measured with whatever we could think of.
_BASE_STEPS: Final = 1_000_000
_STEPS_PER_CHAR: Final = 2
#: However long the chat: clients take a front for dead that says nothing for ten seconds.
_MOST_STEPS: Final = 4_000_000
#: Longest text in a rendering, beside what its input allows.
_BASE_CHARS: Final = 1 << 20
_CHARS_PER_CHAR: Final = 8
#: Copying so many characters counts as one step.
CHARS_PER_STEP: Final = 64
MAX_NUMBER_BITS: Final = 4096

_CONTAINERS: Final = (list, tuple, set, frozenset, KeysView, ItemsView, ValuesView)
_COUNTED: Final = (Mapping, range, *_CONTAINERS)


class Budget:
    def __init__(self, input_chars: int) -> None:
        self.steps = min(_MOST_STEPS, _BASE_STEPS + _STEPS_PER_CHAR * input_chars)
        self.chars = _BASE_CHARS + _CHARS_PER_CHAR * input_chars

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise SecurityError("it does more than a chat template may")

    def fit(self, chars: int) -> None:
        """A text of this length is about to be, has just been made, or is gone through."""
        if chars > self.chars:
            raise SecurityError("it makes more text than a chat template may")
        self.spend(1 + chars // CHARS_PER_STEP)

    def pay(self, value: Any) -> Any:
        """For a value whole, by its unrolled size: ``[a, a]`` again and again doubles without any loop."""
        if isinstance(value, str):
            self.fit(len(value))
        elif value is None or isinstance(value, int | float):
            self.pay_items(value)
        elif isinstance(value, Mapping):
            self.spend(1)
            for key, item in value.items():
                self.pay(key)
                self.pay(item)
        elif isinstance(value, _CONTAINERS):
            self.spend(1)
            for item in value:
                self.pay(item)
        else:
            self.pay_items(value)
        return value

    def pay_items(self, value: Any, each: int = 1) -> Any:
        """For a text, or for the places of a container, whatever stands in them; ``each`` is in steps.

        An iterator pays when an item is taken, so go on with what is returned.
        """
        if isinstance(value, str):
            self.fit(len(value))
        elif isinstance(value, int) and value.bit_length() > MAX_NUMBER_BITS:
            raise SecurityError("it computes with numbers larger than a chat template may")
        elif isinstance(value, _COUNTED):
            self.spend(1 + each * len(value))
        elif isinstance(value, Iterator):
            return self._taken(value, each)
        else:
            self.spend(1)
        return value

    def passed(self, pieces: Iterable[str]) -> Iterator[str]:
        """Pieces of one text, each only while the text is not too long."""
        length = 0
        for piece in pieces:
            length += len(piece)
            if length > self.chars:
                raise SecurityError("it makes more text than a chat template may")
            self.spend(1 + len(piece) // CHARS_PER_STEP)
            yield piece

    def _taken(self, items: Iterator[Any], each: int) -> Iterator[Any]:
        for item in items:
            self.spend(each)
            yield item
