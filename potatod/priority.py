"""How far a process stands back for others, on the processor and on the disk: [run] nice and io_priority, for reader and worker.

NOTE [ sessions ]
Where the kernel groups processes by session (autogroup, as desktops' kernels do) a nice value only counts within the session: a browser and a daemon
that was started in a terminal share a processor equally, however nice one is. A session as a whole has a nice value too. So whoever is to stand back
gets a session of its own, with that value.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .sections import Run

_OF_SESSION: Final = Path("/proc/self/autogroup")
#: Nobody but root may say so ten times a second, all processes together.
_TRIES, _AGAIN_S = 10, 0.15


def lower(run: Run) -> Iterator[str]:
    """Of this process; threads to come have the priorities of the one that starts them. A sentence for what the system does not let it do, as in a
    service, whose unit says both for all of its processes."""
    if run.nice:
        try:
            for thread in map(int, os.listdir("/proc/self/task")):
                if os.getpriority(os.PRIO_PROCESS, thread) < run.nice:
                    os.setpriority(os.PRIO_PROCESS, thread, run.nice)
            if os.getsid(0) == os.getpid() and _OF_SESSION.exists():
                _lower_session(run.nice)
        except OSError as error:
            yield f"[run] nice has no effect: {error.strerror}; in a service `potatod install-service` has to write the unit anew"
    if run.io_priority == "idle":
        import psutil  # memory of a reader that hardly any has to spend

        try:
            process = psutil.Process()
            if process.ionice().ioclass != psutil.IOPRIO_CLASS_IDLE:
                process.ionice(psutil.IOPRIO_CLASS_IDLE)
        except (OSError, psutil.Error):
            yield "[run] io_priority has no effect: the system does not let it; in a service `potatod install-service` has to write the unit anew"


def _lower_session(nice: int) -> None:
    for last in (*[False] * (_TRIES - 1), True):
        try:
            _OF_SESSION.write_text(str(nice))
            return
        except BlockingIOError:
            if last:
                raise
            time.sleep(_AGAIN_S)
