"""When jobs will be over: from how long answers are, how fast they come, and who is before them. Pure.

    sweeps that what there is to say takes, and what there is to read  ──▶  seconds of work
    work of all jobs, in the order of the queue, on so many places     ──▶  when each is over

How long an answer becomes nobody knows: answers before it that had become as long say how much longer they became. Where few have, it is taken to go
on to its limit. How many tokens sweeps will give it is said by others that were as long: guesses become right where a text begins to repeat itself,
which its first words do not show.
"""

from __future__ import annotations

import bisect
import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

#: Answers whose length is remembered, and how many must have been as long for their lengths to say anything.
_REMEMBERED: Final = 500
_ENOUGH: Final = 5
#: What an answer's own sweeps say counts as much as what is usual when it has had so many.
_YOUNG_SWEEPS: Final = 32
#: Of answers of a length: with fewer sweeps than this those of shorter ones say more, and so many are remembered.
_FEW_SWEEPS: Final = 8
_LATELY_SWEEPS: Final = 4096
_BITS: Final = 40
#: Between the least and the most lie nine times of ten.
_LEAST, _MOST = 0.05, 0.95
#: So much slower or faster sweeps become: the machine does other things, texts grow, jobs join and leave.
_SPREAD: Final = 0.15


@dataclass(frozen=True, slots=True)
class Eta:
    """Seconds from now; it ends between the last two nine times of ten."""

    s: float
    least_s: float
    most_s: float


@dataclass(frozen=True, slots=True)
class Left:
    """How many tokens are still to come, or how many sweeps they take."""

    expected: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Work:
    """What is left to do for one job, if it had a place now."""

    number: int
    running: bool
    s: float
    least_s: float
    most_s: float


class Lengths:
    """Of answers that ended by themselves."""

    def __init__(self) -> None:
        self._lengths: deque[int] = deque()
        self._sorted: list[int] = []

    def add(self, tokens: int) -> None:
        self._lengths.append(tokens)
        bisect.insort(self._sorted, tokens)
        if len(self._lengths) > _REMEMBERED:
            self._sorted.remove(self._lengths.popleft())

    def left(self, said: int, limit: int, asked_for: bool) -> Left | None:
        """Of an answer that has ``said`` so many of at most ``limit``; None where nobody knows. ``asked_for``: whether somebody has chosen the
        limit; else it is what the context leaves, which answers seldom reach."""
        first = bisect.bisect_right(self._sorted, said)
        count = len(self._sorted) - first

        def longer(share: float) -> float:
            return min(self._sorted[first + min(count - 1, int(share * count))], limit) - said

        if count < _ENOUGH:
            left = float(limit - said)
            return Left(left, longer(0.0) if count else 0.0, left) if asked_for else None
        return Left(longer(0.5), longer(_LEAST), longer(_MOST))


class Acceptance:
    """How many tokens sweeps give: one each, and the guesses that were right. Of a text that is long already more of them are."""

    def __init__(self) -> None:
        #: by how many tokens an answer had, in bits
        self._tokens = [0.0] * _BITS
        self._sweeps = [0.0] * _BITS
        #: since the last sweep: of a thousand jobs that wait most are alike
        self._found: dict[tuple[int, int, float], float] = {}

    def gave(self, said: int, tokens: int) -> None:
        """So many a sweep gave an answer that had ``said`` so many."""
        self._found.clear()
        bits = said.bit_length()
        if self._sweeps[bits] >= _LATELY_SWEEPS:
            self._tokens[bits] /= 2
            self._sweeps[bits] /= 2
        self._tokens[bits] += tokens
        self._sweeps[bits] += 1

    def sweeps_left(self, said: int, accepted: int, left: float) -> float:
        """That the next ``left`` tokens take of an answer that has ``said`` so many, ``accepted`` of them guessed before. As many as they took of
        others, and so much more or less as it has taken more or less than they until now."""
        asked = said, accepted, left
        if asked not in self._found:
            own = said - accepted + _YOUNG_SWEEPS
            rate = (said + _YOUNG_SWEEPS) / own
            usual = self._usual(0, said, rate) + _YOUNG_SWEEPS
            self._found[asked] = min(left, self._usual(said, said + left, rate) * own / usual)
        return self._found[asked]

    def most_sweeps_left(self, said: int, accepted: int, left: float) -> float:
        """The same of one that has bad luck: nothing of a young answer may be guessed right."""
        share = _YOUNG_SWEEPS / (said - accepted + _YOUNG_SWEEPS)
        return share * left + (1 - share) * self.sweeps_left(said, accepted, left)

    def _usual(self, first: float, last: float, rate: float) -> float:
        """``rate``: tokens a sweep where nobody was as long."""
        found, begin, end = 0.0, 0, 1
        for tokens, sweeps in zip(self._tokens, self._sweeps, strict=True):
            if begin >= last:
                break
            rate = (tokens + _FEW_SWEEPS * rate) / (sweeps + _FEW_SWEEPS)
            found += max(0.0, min(last, end) - max(first, begin)) / rate
            begin, end = end, 2 * end
        return found


def work_of(number: int, running: bool, sweeps: Left, s_per_sweep: float, prefill_s: float, passed_s: float) -> Work:
    """``passed_s``: of the sweep under way, where the job takes part in it."""
    expected, least, most = (prefill_s + each * s_per_sweep for each in (sweeps.expected, sweeps.least, sweeps.most))
    return Work(number, running, *(max(0.0, s - passed_s) for s in (expected, (1 - _SPREAD) * least, (1 + _SPREAD) * most)))


def later(etas: Mapping[int, Eta], s: float) -> Mapping[int, Eta]:
    """The same, so many seconds after they were found."""
    return {number: Eta(*(max(0.0, each - s) for each in (eta.s, eta.least_s, eta.most_s))) for number, eta in etas.items()}


def ends(works: Sequence[Work | None], places: int) -> Mapping[int, Eta]:
    """By job number. ``works`` are in the order in which they get a place; None is a job of which nobody knows how long it takes: whoever waits may
    wait for it."""
    sure = [work for work in works if work is not None]
    if len(sure) < len(works):  # those that run are known by themselves; who waits is not
        sure = [work for work in sure if work.running]
    expected, least, most = (_simulated(sure, [pick(work) for work in sure], places) for pick in (_s, _least, _most))
    return {work.number: Eta(*each) for work, *each in zip(sure, expected, least, most, strict=True)}


def _simulated(works: Sequence[Work], seconds: Sequence[float], places: int) -> list[float]:
    """When each ends: those that run have a place already, the others take one as it becomes free."""
    free = [0.0] * max(0, places - sum(work.running for work in works))
    found = []
    for work, length in zip(works, seconds, strict=True):
        begin = 0.0 if work.running else heapq.heappop(free)
        found.append(begin + length)
        heapq.heappush(free, begin + length)
    return found


def _s(work: Work) -> float:
    return work.s


def _least(work: Work) -> float:
    return work.least_s


def _most(work: Work) -> float:
    return work.most_s
