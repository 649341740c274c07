"""A program that is killed at random moments, again and again, without the seconds of imports that each start of it would cost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

#: Loads once what the program needs. For each line a child runs it, and is killed after so many seconds where the line says some; says how it ended.
_MOTHER = """
import os, signal, sys, time
from pathlib import Path
from potatod.store.lean import import_transformers
import_transformers()
{imports}
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        {call}
        os._exit(0)
    if line.strip():
        time.sleep(float(line))
        os.kill(pid, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def killed_at_random_moments(
    imports: str, call: str, *arguments: Path, chance: random.Random, longest_s: float, look: Callable[[], None], kills: int = 8
) -> int:  # fmt: skip
    """Runs ``call`` (Python; ``arguments`` are its sys.argv[1:]) until it has ended by itself, and calls ``look`` whenever it has been killed: up to
    ``kills`` times, then it is left alone. Returns how often it was."""
    command = [sys.executable, "-c", _MOTHER.format(imports=imports, call=call), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # a thread would not come along into a child
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as mother:
        assert mother.stdin is not None and mother.stdout is not None
        killed = 0
        while True:
            mother.stdin.write(f"{chance.uniform(0.02, longest_s)}\n" if killed < kills else "\n")
            mother.stdin.flush()
            code = int(mother.stdout.readline())
            if code == 0:
                break
            assert code == -signal.SIGKILL
            killed += 1
            look()
    assert mother.returncode == 0
    return killed
