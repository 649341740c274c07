"""Several forward passes of one model, layer by layer together, so that each layer's weights are lent once for all of them.

Each pass is transformers' own code, unchanged. Where it needs the next weights it calls :meth:`Lockstep.arrive`, and goes on when all passes
have come there and the weights have been changed. Between two steps the passes run one after the other, always in the same order: greenlets
of one thread, so nothing runs at the same time and nothing needs a lock.

    pass 0 ── layer 0 ──┐         ┌── layer 1 ──┐
    pass 1 ── layer 0 ──┤  step ──┤── layer 1 ──┤  step …
    pass 2 ── layer 0 ──┘         └── layer 1 ──┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from potatod.errors import InternalError

T = TypeVar("T")


class Lockstep:
    """``step`` is called whenever all passes have arrived."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step
        #: who runs the passes one after the other; None where there is only one, which needs nobody
        self._conductor: Any = None

    def run(self, passes: Sequence[Callable[[], T]]) -> list[T]:
        """What each pass returns. Where one raises, the others are ended and the exception goes on."""
        if len(passes) == 1:
            return [passes[0]()]
        self._conductor = getcurrent()
        started = [greenlet(one) for one in passes]
        try:
            while True:
                results = [one.switch() for one in started]  # each runs up to where it arrives, or to its end
                ended = sum(one.dead for one in started)
                if ended == len(started):
                    return results
                if ended:
                    raise InternalError("the forward passes of one model did not all arrive at the same places")
                self._step()
        finally:
            self._conductor = None
            for one in started:
                if not one.dead:
                    one.throw()

    def arrive(self) -> None:
        """Called by a pass: returns after the step that all passes wait for."""
        if self._conductor is None:
            self._step()
        else:
            self._conductor.switch()
