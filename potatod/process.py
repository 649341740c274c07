"""A stage as the supervisor sees it: a program with a pid, a pidfd that tells its end, and inherited descriptors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: What every stage's environment has beside the user's own.
_ENVIRONMENT = {
    # OpenMP threads that wait spin a little before they sleep: a layer has ten parallel regions a few dozen microseconds apart, and never spinning
    # cost 12 % of a resident sweep; spinning for long would burn the core that the reader needs.
    "GOMP_SPINCOUNT": "30000",
    "HF_HUB_OFFLINE": "1",  # no process of the daemon needs the internet
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",  # what it warns of is a matter of other ways to run a model
    "PYTHONUNBUFFERED": "1",
}


#: NOTE [ an orphan ]
#: A child asks the kernel to end with its parent when it has imported what it needs, which takes from tenths of a second to seconds. Where the parent
#: has ended by then it is another's child, and nothing would ever end it: it would hold the front's socket, and hear what the next daemon's front is
#: told. So it is told whose child it is, and ends at once where it is another's.
PARENT_VARIABLE: Final = "POTATO_PARENT"
#: A process that was killed is gone within this, or stands in the kernel.
LOST_S: Final = 5.0


@dataclass(slots=True)
class Process:
    """A running stage. The kernel kills it with us (stage.die_with_parent)."""

    name: str
    child: subprocess.Popen[bytes]
    #: -1 once it has been reaped
    pidfd: int
    #: time.time()
    started: float
    #: time.monotonic() of its last word, or of its start
    heard: float
    ready: bool = False
    #: its own words, where it said Failed before it ended
    why: str = ""
    failed: bool = False
    #: time.monotonic() of the SIGKILL we sent it
    killed: float | None = None

    @property
    def pid(self) -> int:
        return self.child.pid

    def signal(self, number: signal.Signals) -> None:
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        if self.killed is None:
            self.killed = time.monotonic()
        self.signal(signal.SIGKILL)

    def reap(self, timeout_s: float) -> int:
        """Waits for its end, kills it after ``timeout_s``; the exit code (negative: the signal that ended it). May be asked again.

        One that is :attr:`lost` is waited for no longer.
        """
        code = -signal.SIGKILL
        if not self.lost:
            try:
                code = self.child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
                with suppress(subprocess.TimeoutExpired):
                    code = self.child.wait(LOST_S)
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        return code

    @property
    def lost(self) -> bool:
        """Killed and still there: it stands in a read that does not come back. The kernel ends it when that does."""
        return self.killed is not None and time.monotonic() - self.killed > LOST_S and self.child.poll() is None

    @property
    def alive(self) -> bool:
        return self.child.poll() is None and not self.lost


def start(name: str, boot: Path, fds: Mapping[str, int], *, alone: bool = False) -> Process:
    """``python -m potatod.<name> --boot FILE --fd NAME=N``. In a process group of its own: a terminal's Ctrl-C is the supervisor's to hear. ``alone``:
    in a session of its own too, NOTE [ sessions ] in priority.py."""
    arguments = [word for key, fd in fds.items() for word in ("--fd", f"{key}={fd}")]
    child = subprocess.Popen(
        [sys.executable, "-m", f"potatod.{name}", "--boot", str(boot), *arguments],
        pass_fds=tuple(fds.values()), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment(),
        process_group=None if alone else 0, start_new_session=alone,
    )  # fmt: skip
    return Process(name, child, os.pidfd_open(child.pid), time.time(), time.monotonic())


def environment() -> dict[str, str]:
    """Of a child of ours; it is told whose child it is: NOTE [ an orphan ]."""
    return {**_ENVIRONMENT, **os.environ, PARENT_VARIABLE: str(os.getpid())}


def describe_end(name: str, code: int) -> str:
    """What to say of a stage that ended without a word."""
    if code < 0:
        try:
            what = signal.Signals(-code).name
        except ValueError:
            what = f"signal {-code}"
        hint = " (the kernel's out-of-memory killer, or a hand)" if code == -signal.SIGKILL else ""
        return f"{name} was killed by {what}{hint}"
    return f"{name} ended with exit code {code}"
