"""The desks of all models that are served, of which one has the engine.

    a job's model, by checksum ─┐                     ┌─▶ who is before whom, when each is over
    a request's, by name ───────┴─▶ its desk ─▶ job ──┴─▶ which model is to have the engine next
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from . import switching
from .answer import Answer
from .desk import Desk
from .eta import Eta, later
from .refusal import Refusal
from .switching import Demand, Turn

#: Between two looks at when jobs will be over.
_ETAS_EVERY_S: Final = 1.0


class Desks:
    def __init__(self, desks: Sequence[Desk], patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``patience_s``: so long jobs wait while another model has work."""
        self._all = tuple(desks)
        self._by_checksum = {desk.checksum: desk for desk in desks}
        self._by_name = {desk.name: desk for desk in desks}
        self._patience_s = patience_s
        self._clock = clock
        self.current = self._all[0]
        self._turn = Turn(clock())
        #: of the current one, when its turn began
        self._sweeps_before = 0
        self._expected: Mapping[int, Eta] = {}
        self._expected_at = -_ETAS_EVERY_S

    def __iter__(self) -> Iterator[Desk]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, at: int) -> Desk:
        return self._all[at]

    # whose

    def asked(self, name: str) -> Desk:
        """Of the model with this name; empty: of the first. Raises :class:`Refusal`."""
        desk = self._by_name.get(name) if name else self._all[0]
        if desk is None:
            served = " and ".join(self._by_name)
            raise Refusal("other_model", f"there is no model {name[:100]!r} here: {served} {'is' if len(self) == 1 else 'are'} served")
        return desk

    def of_model(self, checksum: str) -> Desk | None:
        return self._by_checksum.get(checksum)

    def find(self, number: int) -> tuple[Desk, Answer] | None:
        """The job of that number, where it runs or waits for its turn."""
        for desk in self._all:
            if (answer := desk.answers.of(number)) is not None:
                return desk, answer
        return None

    def title(self) -> str:
        """All of them, in a sentence."""
        return " and ".join(desk.title for desk in self._all)

    # when

    def place(self, number: int) -> int:
        """How many are before that job, itself included; 0 where it does not wait."""
        before = 0
        for desk in self._in_turn():
            if desk.answers.of(number) is not None:
                return desk.answers.place(number) if desk is self.current else before + desk.answers.turn(number)
            before += len(desk.answers)
        return 0

    def places(self) -> dict[int, int]:
        """The same of all jobs that wait."""
        places = self.current.answers.places()
        before = len(self.current.answers)
        for desk in self._in_turn()[1:]:
            places |= {answer.job.number: before + place for place, answer in enumerate(desk.answers.in_turn(), 1)}
            before += len(desk.answers)
        return places

    def etas(self, *numbers: int) -> Mapping[int, Eta]:
        """By job number, of these or of all, as far as anybody knows: from what was known two seconds ago at most. Those of a model that waits begin
        when those before it are over, or when they have waited enough. That a turn may be interrupted, and how often, nobody knows."""
        now = self._clock()
        if now - self._expected_at > _ETAS_EVERY_S:
            self._expected_at, self._expected = now, self._etas(now)
        known = self._expected
        return later({number: known[number] for number in numbers if number in known} if numbers else known, now - self._expected_at)

    def _etas(self, now: float) -> Mapping[int, Eta]:
        etas = dict(self.current.outlook.etas())
        before: Eta | None = Eta(0.0, 0.0, 0.0)
        last = self.current
        for desk in self._in_turn()[1:]:
            before = None if before is None or desk.why else self._behind(last, etas, before)
            if before is None:
                break
            bound = self._begins_s(desk, now)
            begins = replace(before, s=min(before.s, bound), least_s=min(before.least_s, bound))
            own = desk.outlook.etas()
            etas |= {number: Eta(begins.s + eta.s, begins.least_s + eta.least_s, begins.most_s + eta.most_s) for number, eta in own.items()}
            last = desk
        return etas

    def _begins_s(self, desk: Desk, now: float) -> float:
        """Seconds until its turn is to come though those before it have work."""
        waited = now - (now if desk.waits_since is None else desk.waits_since)
        held, rank, best = self._turn.left_s(now), desk.scheduler.rank, self.current.scheduler.rank
        first = rank is not None and best is not None and rank < best
        return max(held, 0.0 if first else self._patience_s - waited) + self._turn.cost_s

    def _behind(self, desk: Desk, etas: Mapping[int, Eta], begins: Eta) -> Eta | None:
        """When all jobs of ``desk``, which begin then, are over and another model is loaded; None where nobody knows."""
        numbers = [answer.job.number for answer in desk.answers.in_turn()]
        if not all(number in etas for number in numbers):
            return None
        ends = [etas[number] for number in numbers] or [begins]
        s, least_s, most_s = (max(times) for times in ((e.s for e in ends), (e.least_s for e in ends), (e.most_s for e in ends)))
        change_s = self._turn.cost_s
        return Eta(s + change_s, least_s + change_s, most_s + change_s)

    def _in_turn(self) -> list[Desk]:
        """The one that has the engine, those that have jobs and will have it, and those that have jobs and stay down."""
        waiting = [self._all[at] for at in switching.in_turn(self._demands(self._clock()), self._patience_s)]
        down = [desk for desk in self._all if desk is not self.current and desk.why and len(desk.answers)]
        return [self.current, *waiting, *down]

    # which

    def choose(self) -> Desk | None:
        """The one whose model is to have the engine instead of the current one; None: nothing is to change. Asked between two sweeps."""
        if len(self._all) == 1:
            return None
        now, current = self._clock(), self.current
        for desk in self._all:
            if desk is current or not len(desk.answers):
                desk.waits_since = None
            elif desk.waits_since is None:
                desk.waits_since = now
        waiting = self._demands(now)
        if current.why:  # what waits goes on, and where nothing does there is one that could
            able = switching.in_turn(waiting, self._patience_s) or [desk.at for desk in self._all if not desk.why]
            return self._all[able[0]] if able else None
        scheduler = current.scheduler
        swept = current.times.sweeps > self._sweeps_before
        self._turn.look(now, scheduler.rank, swept=swept, running=scheduler.running, reading=scheduler.reading)
        at = switching.next_model(self._turn, waiting, now, self._patience_s)
        return None if at is None else self._all[at]

    def change(self, desk: Desk) -> None:
        """The engine is on its way to its model."""
        now = self._clock()
        if len(self.current.answers):
            self.current.waits_since = now
        self._turn = Turn(now, self._turn.cost_s)
        self._sweeps_before = desk.times.sweeps
        self.current, desk.waits_since = desk, None

    def _demands(self, now: float) -> list[Demand]:
        return [
            Demand(desk.at, rank, now - (now if desk.waits_since is None else desk.waits_since))
            for desk in self._all
            if desk is not self.current and not desk.why and (rank := desk.scheduler.rank) is not None
        ]
