"""The tree of errors, and the exit code each branch ends a process with.

    PotatoError
    ├── UsageError            64  the command line is wrong
    ├── ModelDataError        65  a model's bytes are not what they claim to be
    │   └── UnsupportedModel  65  a model we cannot run exactly, or not yet
    ├── NoSuchModel           66  there is no model at that place
    ├── Unavailable           69  a daemon is not there, a device is gone
    ├── InternalError         70  our own fault
    ├── DoesNotFit            71  RAM, VRAM or disk is too small; says by how much
    ├── TryAgain              75  busy now, fine later
    └── ConfigError           78  a key or value of the configuration is wrong

A class exists here because somebody catches it or because a process exits by it. The message says what is wrong,
where, and what to do; it is a sentence for the person at the keyboard, never a traceback.
"""

from __future__ import annotations

from typing import ClassVar

from potato_client.exit_codes import EXIT_CONFIG as EXIT_CONFIG
from potato_client.exit_codes import EXIT_DATA as EXIT_DATA
from potato_client.exit_codes import EXIT_DOES_NOT_FIT as EXIT_DOES_NOT_FIT
from potato_client.exit_codes import EXIT_INTERNAL as EXIT_INTERNAL
from potato_client.exit_codes import EXIT_INTERRUPTED as EXIT_INTERRUPTED
from potato_client.exit_codes import EXIT_NO_INPUT as EXIT_NO_INPUT
from potato_client.exit_codes import EXIT_OK as EXIT_OK
from potato_client.exit_codes import EXIT_TRY_AGAIN as EXIT_TRY_AGAIN
from potato_client.exit_codes import EXIT_UNAVAILABLE as EXIT_UNAVAILABLE
from potato_client.exit_codes import EXIT_USAGE as EXIT_USAGE

#: Restarting cannot mend these: the unit file and the supervisor give up on them at once.
EXITS_THAT_STAY = frozenset({EXIT_USAGE, EXIT_DATA, EXIT_NO_INPUT, EXIT_DOES_NOT_FIT, EXIT_CONFIG})


class PotatoError(Exception):
    """Base of all errors that are told to a person as one sentence."""

    exit_code: ClassVar[int] = EXIT_INTERNAL


class UsageError(PotatoError):
    exit_code = EXIT_USAGE


class ModelDataError(PotatoError):
    exit_code = EXIT_DATA


class UnsupportedModel(ModelDataError):
    pass


class NoSuchModel(PotatoError):
    exit_code = EXIT_NO_INPUT


class Unavailable(PotatoError):
    exit_code = EXIT_UNAVAILABLE


class InternalError(PotatoError):
    exit_code = EXIT_INTERNAL


class DoesNotFit(PotatoError):
    exit_code = EXIT_DOES_NOT_FIT


class TryAgain(PotatoError):
    exit_code = EXIT_TRY_AGAIN


class ConfigError(PotatoError):
    exit_code = EXIT_CONFIG


def by_exit_code(code: int) -> type[PotatoError]:
    """The class a dead child's exit code stands for (``InternalError`` where none does)."""
    for cls in (UsageError, ModelDataError, NoSuchModel, Unavailable, DoesNotFit, TryAgain, ConfigError):
        if cls.exit_code == code:
            return cls
    return InternalError


def first_line(error: BaseException) -> str:
    """What a library's exception says, for a sentence of ours; its type where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
