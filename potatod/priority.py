"""How far a process stands back for others, on the processor and on the disk: [run] nice and io_priority, for reader and worker."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .config import Run


def lower(run: Run) -> Iterator[str]:
    """Of this process; threads to come have the priorities of the one that starts them. A sentence for what the system does not let it do, as in a
    service, whose unit says both for all of its processes."""
    if run.nice:
        try:
            for thread in map(int, os.listdir("/proc/self/task")):
                if os.getpriority(os.PRIO_PROCESS, thread) < run.nice:
                    os.setpriority(os.PRIO_PROCESS, thread, run.nice)
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
