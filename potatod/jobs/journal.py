"""The thread that writes jobs down: what was written together becomes durable together, and only then is anybody told.

    loop: write(…), then(…), flush() ──▶ thread: one commit ──▶ eventfd ──▶ loop: settle() runs what waited for it

NOTE [ a disk that takes nothing ]
Where a commit fails, what may be refused is (``otherwise`` says so to whoever asked), and the rest is tried again until the disk takes it.
``trouble`` says why meanwhile; whoever owns the journal computes nothing more until that is over, so what waits is one sweep's tokens.
"""

from __future__ import annotations

import collections
import itertools
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from potatod.errors import InternalError, PotatoError, first_line

from .database import Damaged, Database, Unwritable, Write

_T = TypeVar("_T")

#: Between two tries.
_AGAIN_S: Final = 1.0
#: When everything ends, a commit may take so long.
_LAST_S: Final = 10.0


@dataclass(slots=True)
class _Entry:
    writes: tuple[Write, ...]
    then: Callable[[], None] | None = None
    #: where it may be left out
    otherwise: Callable[[str], None] | None = None


@dataclass(slots=True)
class _Batch:
    entries: list[_Entry] = field(default_factory=list)
    #: reads what is there after them, and returns what is to be done with it
    query: Callable[[Database], Callable[[], None]] | None = None
    #: where that cannot be read
    failed: Callable[[str], None] | None = None


class Journal:
    """Everything but the thread's own work belongs to the loop that made it."""

    def __init__(self, path: Path, again_s: float = _AGAIN_S) -> None:
        """Raises what :class:`Database` raises."""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        #: why nothing can be written now; empty where all is well
        self.trouble = ""
        self._again_s = again_s
        self._open = _Batch()
        self._handed: collections.deque[_Batch] = collections.deque()
        self._done: collections.deque[Callable[[], None]] = collections.deque()
        self._under_way = 0
        self._work = threading.Event()
        self._closing = self._closed = False
        self._troubled = False
        self._broken: BaseException | None = None
        opened: collections.deque[Database | BaseException] = collections.deque()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(path, opened, ready), name="journal", daemon=True)
        self._thread.start()
        ready.wait()
        if isinstance(opened[0], BaseException):
            self._thread.join()
            os.close(self.fd)
            raise opened[0]

    # the loop's side

    def write(self, *writes: Write, then: Callable[[], None] | None = None, otherwise: Callable[[str], None] | None = None) -> None:
        """With what else is written until ``flush``. ``then`` is called once it is durable. With ``otherwise`` it is left out where the disk does not
        take it, and that is called with the reason."""
        self._open.entries.append(_Entry(writes, then, otherwise))

    def then(self, do: Callable[[], None]) -> None:
        """Once all that has been written so far is durable; at once where it is."""
        if not self._open.entries and not self._under_way:
            do()
        else:
            self._open.entries.append(_Entry((), do))

    def ask(self, query: Callable[[Database], _T], then: Callable[[_T], None], otherwise: Callable[[str], None]) -> None:
        """What the database says after all that has been written so far, or, while there is ``trouble``, before it. ``otherwise``: it cannot be
        read."""
        self.flush()

        def read(database: Database) -> Callable[[], None]:
            found = query(database)
            return lambda: then(found)

        self._hand(_Batch(query=read, failed=otherwise))

    def flush(self) -> None:
        """Hands over what has been written; never waits."""
        if self._open.entries:
            batch, self._open = self._open, _Batch()
            self._hand(batch)

    def settle(self) -> None:
        """Does what waited for what is durable by now. Raises what ended the thread: nothing is durable any more then."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        while self._done:
            self._done.popleft()()
        if self._broken is not None:
            raise self._broken

    def wait(self) -> None:
        """Until all that has been written is durable, and settled."""
        done = threading.Event()
        self.ask(lambda _: done.set(), lambda _: None, lambda why: None)
        while not done.wait(_AGAIN_S) and self._thread.is_alive():
            pass
        self.settle()

    def close(self) -> None:
        """Writes what is left, as far as the disk takes it, and gives the database back. A second time does nothing."""
        if self._closed:
            return
        self.flush()
        self._closing = True
        self._work.set()
        self._thread.join(_LAST_S)
        with suppress(BaseException):
            self.settle()
        if not self._closed and not self._thread.is_alive():
            self._closed = True
            os.close(self.fd)

    def _hand(self, batch: _Batch) -> None:
        self._under_way += 1
        self._handed.append(batch)
        self._work.set()

    def _settled(self) -> None:
        self._under_way -= 1

    def _is_in_trouble(self, why: str) -> None:
        self.trouble = why

    # the thread's side

    def _run(self, path: Path, opened: collections.deque[Any], ready: threading.Event) -> None:
        try:
            database = Database(path)
        except BaseException as error:
            opened.append(error)
            return
        else:
            opened.append(database)
        finally:
            ready.set()
        try:
            self._serve(database)
        except BaseException as error:  # the thread's top: the loop hears of it
            ours = isinstance(error, PotatoError)
            self._broken = error if ours else InternalError(f"the journal has failed: {type(error).__name__}: {first_line(error)}")
            os.eventfd_write(self.fd, 1)
        finally:
            with suppress(PotatoError):
                database.close()

    def _serve(self, database: Database) -> None:
        self._troubled = False
        waiting: collections.deque[_Batch] = collections.deque()
        while True:
            self._work.wait(self._again_s if waiting else None)
            self._work.clear()
            closing = self._closing
            while self._handed:
                waiting.append(self._handed.popleft())
            while waiting and self._commit(database, waiting):
                pass
            if closing:
                return
            for batch in [batch for batch in waiting if batch.query is not None]:  # who asks does not wait for the disk
                self._answer(database, batch)
                waiting.remove(batch)

    def _commit(self, database: Database, waiting: collections.deque[_Batch]) -> bool:
        """Whether the first of those that wait are done: one that asks, or all that write before it."""
        if waiting[0].query is not None:
            self._answer(database, waiting.popleft())
            return True
        together = list(itertools.takewhile(lambda batch: batch.query is None, waiting))
        entries = [entry for batch in together for entry in batch.entries]
        try:
            if entries:
                database.commit(write for entry in entries for write in entry.writes)
        except Unwritable as error:
            self._refuse(together, str(error))
            return not any(batch.entries for batch in together)
        self._trouble("")
        for batch in together:
            waiting.popleft()
            for entry in batch.entries:
                if entry.then is not None:
                    self._tell(entry.then)
            self._tell(self._settled)
        return True

    def _answer(self, database: Database, batch: _Batch) -> None:
        assert batch.query is not None
        try:
            self._tell(batch.query(database))
        except (Unwritable, Damaged) as error:
            if batch.failed is None:
                raise
            self._tell(partial(batch.failed, str(error)))
        self._tell(self._settled)

    def _refuse(self, batches: list[_Batch], why: str) -> None:
        """What can be left out is."""
        for batch in batches:
            for entry in batch.entries:
                if entry.otherwise is not None:
                    self._tell(partial(entry.otherwise, why))
            batch.entries = [entry for entry in batch.entries if entry.otherwise is None]
        self._trouble(why if any(batch.entries for batch in batches) else "")

    def _trouble(self, why: str) -> None:
        """Tells when there is some, and when it is over: what the loop knows of it may be older."""
        if why or self._troubled:
            self._tell(partial(self._is_in_trouble, why))
        self._troubled = bool(why)

    def _tell(self, do: Callable[[], None]) -> None:
        self._done.append(do)
        os.eventfd_write(self.fd, 1)
