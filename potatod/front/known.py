"""Which jobs there are: by id, by the beginning of an id, by the key that a client gave. Pure; what they are is in the database."""

from __future__ import annotations

import collections
from dataclasses import dataclass

from potatod.jobs.job import Job

from .refusal import Refusal

#: Of the ids that a beginning could mean, so many are named.
_NAMED = 3


@dataclass(slots=True)
class Entry:
    number: int
    id: str
    owner: str
    key: str
    #: whether it is not over
    open: bool


def sees_all(owner: str) -> bool:
    """Whoever is on this machine runs as the daemon's user or root; others see what is theirs."""
    return owner.startswith("uid:")


class Known:
    def __init__(self) -> None:
        self._by_id: dict[str, Entry] = {}
        self._by_key: dict[tuple[str, str], Entry] = {}
        self._by_number: dict[int, Entry] = {}
        self._open: collections.Counter[str] = collections.Counter()
        self._last = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def next_number(self) -> int:
        """Each once."""
        self._last += 1
        return self._last

    def add(self, job: Job) -> None:
        entry = Entry(job.number, job.id, job.owner, job.key, not job.state.over)
        self._by_id[job.id] = self._by_number[job.number] = entry
        if job.key:
            self._by_key[job.owner, job.key] = entry
        self._open[job.owner] += entry.open
        self._last = max(self._last, job.number)

    def changed(self, job: Job) -> None:
        """Its state has."""
        entry = self._by_number.get(job.number)
        if entry is not None:
            self._open[entry.owner] += (not job.state.over) - entry.open
            entry.open = not job.state.over

    def forget(self, number: int) -> None:
        entry = self._by_number.pop(number, None)
        if entry is not None:
            del self._by_id[entry.id]
            self._open[entry.owner] -= entry.open
            self._by_key.pop((entry.owner, entry.key), None)

    def find(self, id: str, owner: str) -> int:
        """The number of the job with this id, or with the only one that begins so, among those that ``owner`` may see. Raises :class:`Refusal`."""
        whole = self._by_id.get(id)
        if whole is not None and (sees_all(owner) or whole.owner == owner):
            return whole.number
        every = sees_all(owner)
        found = [each for each, entry in self._by_id.items() if each.startswith(id) and (every or entry.owner == owner)] if id else []
        if not found:
            raise Refusal("unknown_job", f"there is no job {id[:40]!r}: `potato-client jobs` lists what there is")
        if len(found) > 1:
            some = ", ".join(found[:_NAMED]) + (", …" if len(found) > _NAMED else "")
            raise Refusal("ambiguous_job", f"{id!r} begins the ids of {len(found)} jobs: {some}")
        return self._by_id[found[0]].number

    def is_open(self, number: int) -> bool:
        """Whether it is there and not over."""
        return number in self._by_number and self._by_number[number].open

    def id_of(self, number: int) -> str:
        return self._by_number[number].id if number in self._by_number else ""

    def by_key(self, owner: str, key: str) -> int | None:
        entry = self._by_key.get((owner, key)) if key else None
        return None if entry is None else entry.number

    def open_of(self, owner: str) -> int:
        """How many of that owner's are not over."""
        return self._open[owner]
