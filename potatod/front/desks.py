"""The desks of all models that are served, of which one has the engine. Pure but for the clock that it is given.

    a job's model, by checksum ─┐                     ┌─▶ who is before whom, when each is over
    a request's, by name ───────┴─▶ its desk ─▶ job ──┴─▶ which model is to have the engine next
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from . import switching
from .answer import Answer
from .desk import Desk
from .eta import Eta
from .refusal import Refusal
from .switching import Demand

#: Before a change has been seen.
_CHANGE_S: Final = 10.0


class Desks:
    def __init__(self, desks: Sequence[Desk], patience_s: float) -> None:
        """``patience_s``: so long jobs wait while another model has work."""
        self._all = tuple(desks)
        self._by_checksum = {desk.checksum: desk for desk in desks}
        self._by_name = {desk.name: desk for desk in desks}
        self._patience_s = patience_s
        self.current = self._all[0]
        self._had_since = 0.0
        self._change_s = _CHANGE_S

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

    def places(self) -> dict[int, int]:
        """By job number: how many are before it, itself included; only of jobs that wait."""
        places = self.current.answers.places()
        before = len(self.current.answers)
        for desk in self._waiting_in_turn():
            places |= {answer.job.number: before + place for place, answer in enumerate(desk.answers.in_turn(), 1)}
            before += len(desk.answers)
        return places

    def etas(self, now: float) -> Mapping[int, Eta]:
        """By job number, as far as anybody knows. Those of a model that waits begin when those before it are over, or when they have waited enough."""
        etas = dict(self.current.outlook.etas())
        before: Eta | None = Eta(0.0, 0.0, 0.0)
        last = self.current
        for desk in self._waiting_in_turn():
            before = None if before is None else self._behind(last, etas, before)
            if before is None:
                break
            bound = max(0.0, self._patience_s - (now - (desk.waits_since or now))) + self._change_s
            begins = replace(before, s=min(before.s, bound), least_s=min(before.least_s, bound))
            own = desk.outlook.etas()
            etas |= {number: Eta(begins.s + eta.s, begins.least_s + eta.least_s, begins.most_s + eta.most_s) for number, eta in own.items()}
            last = desk
        return etas

    def _behind(self, desk: Desk, etas: Mapping[int, Eta], begins: Eta) -> Eta | None:
        """When all jobs of ``desk``, which begin then, are over and another model is loaded; None where nobody knows."""
        numbers = [answer.job.number for answer in desk.answers.in_turn()]
        if not all(number in etas for number in numbers):
            return None
        ends = [etas[number] for number in numbers] or [begins]
        s, least_s, most_s = (max(times) for times in ((e.s for e in ends), (e.least_s for e in ends), (e.most_s for e in ends)))
        return Eta(s + self._change_s, least_s + self._change_s, most_s + self._change_s)

    def _waiting_in_turn(self) -> list[Desk]:
        """Those that have jobs and not the engine."""
        known = self._demands(0.0)
        down = [desk for desk in self._all if desk is not self.current and desk.why and len(desk.answers)]
        return [*(self._all[at] for at in switching.in_turn(known)), *down]

    # which

    def choose(self, now: float) -> Desk | None:
        """The one whose model is to have the engine instead of the current one; None: nothing is to change. ``now``: seconds, monotonic."""
        if len(self._all) == 1:
            return None
        for desk in self._all:
            if desk is self.current or not len(desk.answers):
                desk.waits_since = None
            elif desk.waits_since is None:
                desk.waits_since = now
        rank = None if self.current.why else self.current.scheduler.rank
        at = switching.next_model(rank, self._demands(now), now - self._had_since, self._change_s, self._patience_s)
        return None if at is None else self._all[at]

    def change(self, desk: Desk, now: float) -> None:
        """The engine is on its way to its model."""
        if len(self.current.answers):
            self.current.waits_since = now
        self.current, self._had_since = desk, now
        desk.waits_since = None

    def changed(self, now: float) -> None:
        """The engine that was on its way is up."""
        self._change_s, self._had_since = now - self._had_since, now

    def _demands(self, now: float) -> list[Demand]:
        return [
            Demand(desk.at, rank, now - (now if desk.waits_since is None else desk.waits_since))
            for desk in self._all
            if desk is not self.current and not desk.why and (rank := desk.scheduler.rank) is not None
        ]
