"""A file system for SQLite that tests can watch and break: apsw's VFS, behind as much of sqlite3 as our database uses.

constraints.txt has apsw of the release of SQLite that Python 3.11 comes with.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from potatod.jobs import database as database_module


@dataclass(frozen=True)
class Done:
    """What was asked of the file system: a write, a truncation ("size"), a sync, a removal ("gone")."""

    what: str
    file: str
    offset: int = 0
    data: bytes = b""


class Disk(apsw.VFS):
    """The usual file system, a list of what was done to it, and errors when the test wants them."""

    def __init__(self, name: str = "potato-test") -> None:
        self.log: list[Done] = []
        #: may raise apsw's errors before something is done
        self.before: Callable[[Done], None] = lambda done: None
        self.name = name
        super().__init__(name, "unix")

    def do(self, done: Done) -> None:
        self.before(done)
        self.log.append(done)

    def xOpen(self, name: Any, flags: list[int]) -> _File:
        return _File(self, name, flags)

    def xDelete(self, name: str, syncdir: bool) -> None:
        self.do(Done("gone", Path(name).name))
        super().xDelete(name, syncdir)

    @contextmanager
    def under(self) -> Iterator[None]:
        """Databases that are opened meanwhile lie on it."""
        before = database_module.sqlite3.connect
        database_module.sqlite3.connect = lambda path, **_: _Connection(str(path), vfs=self.name)  # type: ignore[assignment, attr-defined]
        try:
            yield
        finally:
            database_module.sqlite3.connect = before  # type: ignore[attr-defined]


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._name = Path(name.filename() if isinstance(name, apsw.URIFilename) else name or "temporary").name
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.do(Done("write", self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        self._disk.do(Done("size", self._name, size))
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        self._disk.do(Done("sync", self._name))
        super().xSync(flags)


@contextmanager
def _as_sqlite3() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        ours = sqlite3.OperationalError(str(error))
        code = getattr(error, "extendedresult", None) or error.result
        names = {**apsw.mapping_extended_result_codes, **apsw.mapping_result_codes}
        ours.sqlite_errorname = names.get(code, "SQLITE_ERROR")
        raise ours from None


class _Connection(apsw.Connection):
    @property
    def in_transaction(self) -> bool:
        return not self.getautocommit()

    def execute(self, query: str, values: tuple[object, ...] = ()) -> Any:
        with _as_sqlite3():
            return _Rows(self.cursor().execute(query, values))

    def executescript(self, script: str) -> None:
        with _as_sqlite3():
            for _ in self.cursor().execute(script):
                pass


class _Rows:
    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def fetchone(self) -> Any:
        return next(iter(self), None)

    def fetchall(self) -> list[Any]:
        return list(self)

    def __iter__(self) -> Iterator[Any]:
        with _as_sqlite3():
            yield from self._cursor

    def close(self) -> None:
        self._cursor.close()
