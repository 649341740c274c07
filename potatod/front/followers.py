"""Which clients hear of which job. Pure."""

from __future__ import annotations

from collections.abc import Callable


class Followers:
    def __init__(self) -> None:
        #: by job number, in the order in which they came
        self._of: dict[int, dict[bytes, None]] = {}

    def of(self, number: int) -> tuple[bytes, ...]:
        return tuple(self._of.get(number, ()))

    def count(self, client: bytes) -> int:
        """Jobs that this client follows."""
        return sum(client in clients for clients in self._of.values())

    def add(self, number: int, client: bytes) -> None:
        self._of.setdefault(number, {})[client] = None

    def remove(self, number: int, client: bytes) -> None:
        clients = self._of.get(number, {})
        clients.pop(client, None)
        if not clients:
            self._of.pop(number, None)

    def forget(self, number: int) -> tuple[bytes, ...]:
        """The job is over, or nobody is to hear of it any more; returns who did."""
        return tuple(self._of.pop(number, ()))

    def drop(self, client: bytes) -> None:
        """It hears of nothing any more."""
        for number in list(self._of):
            self.remove(number, client)

    def drop_where(self, vanished: Callable[[bytes], bool]) -> set[bytes]:
        """Clients that do not listen any more; returns them."""
        gone = {client for clients in self._of.values() for client in clients if vanished(client)}
        for client in gone:
            self.drop(client)
        return gone

    def numbers(self) -> tuple[int, ...]:
        """Of the jobs that anybody follows."""
        return tuple(self._of)
