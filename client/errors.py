"""What a client can meet, and what a command line ends with then.

    ClientError
    ├── BadRequest        64  what was asked cannot be asked; nothing was sent
    │   └── FollowedAlready   64  by this client: another one may follow the same job
    ├── BadSocket         64  the socket's address is no address of a daemon
    ├── BadKey            64  the file of a key for another machine's daemon is none, or open to others
    ├── NoDaemon          69  nobody answers there
    ├── DaemonLost        75  the daemon went away while an answer was expected; ask again
    ├── RequestRefused     *  the daemon said no; it says with which code
    └── NotUnderstood     70  the daemon said what this release cannot read

The message is a sentence for the person at the keyboard: what is wrong, where, what to do.
"""

from __future__ import annotations

from .exit_codes import EXIT_INTERNAL, EXIT_TRY_AGAIN, EXIT_UNAVAILABLE, EXIT_USAGE
from .protocol import REFUSAL_EXIT_CODES, RefusalCode, Refused


class ClientError(Exception):
    """Base of all that a client can meet."""

    exit_code: int = EXIT_INTERNAL


class BadRequest(ClientError, ValueError):
    exit_code = EXIT_USAGE


class FollowedAlready(BadRequest):
    pass


class BadSocket(ClientError, ValueError):
    exit_code = EXIT_USAGE


class BadKey(ClientError, ValueError):
    exit_code = EXIT_USAGE


class NoDaemon(ClientError):
    exit_code = EXIT_UNAVAILABLE


class DaemonLost(ClientError):
    exit_code = EXIT_TRY_AGAIN


class RequestRefused(ClientError):
    """``code`` is one of docs/PROTOCOL.md; ``exit_code`` what the daemon wants a command line to end with."""

    def __init__(self, code: RefusalCode, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = REFUSAL_EXIT_CODES[code] if exit_code is None else exit_code

    @classmethod
    def of(cls, refused: Refused) -> RequestRefused:
        honest = 0 < refused.exit_code < 126  # above lie the shell's own
        return cls(refused.code, refused.message, refused.exit_code if honest else None)


class NotUnderstood(ClientError):
    exit_code = EXIT_INTERNAL
