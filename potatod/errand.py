"""A short process that finds something out, says it as one line of JSON, and ends: both of its sides.

    run("worker.probe", …) ──▶ python -m potatod.worker.probe … ──answer()──▶ its last line, its exit code ──▶ what it found

So whoever asks need not carry what finding out takes (torch), and what goes wrong there is told here in the same words.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from . import process
from .errors import EXIT_INTERNAL, EXIT_OK, InternalError, PotatoError, by_exit_code, first_line
from .stage import die_with_parent


class Cancelled(Exception):
    """Somebody wants to end before it has been found out."""


def run(
    module: str, *arguments: str, limit_s: float, cancelled: Callable[[], bool] = lambda: False, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:  # fmt: skip
    """What ``potatod.<module>`` found. Raises what it raised, :class:`InternalError` where it takes longer than ``limit_s`` or says nothing,
    and :class:`Cancelled` soon after ``cancelled()`` has become true."""
    child = subprocess.Popen(
        [sys.executable, "-m", f"potatod.{module}", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment or process.environment(), process_group=0,
    )  # fmt: skip
    name = f"the {module.rpartition('.')[2]}"
    deadline = time.monotonic() + limit_s
    try:
        while True:
            try:
                out, _ = child.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if cancelled():
                    raise Cancelled from None
                if time.monotonic() > deadline:
                    raise InternalError(f"{name} did not end within {limit_s:.0f} s") from None
    finally:
        child.kill()  # nothing where it has ended
        with suppress(subprocess.TimeoutExpired):  # it stands in a read that does not come back: the kernel ends it when that does
            child.wait(process.LOST_S)
        assert child.stdout is not None
        child.stdout.close()
    if cancelled():
        raise Cancelled
    try:
        said: dict[str, Any] = json.loads(out.splitlines()[-1])  # what a library may print stands before it
    except (ValueError, IndexError):
        raise InternalError(process.describe_end(name, child.returncode)) from None
    if child.returncode:
        raise by_exit_code(child.returncode)(said.get("error") or process.describe_end(name, child.returncode))
    return said


def answer(find: Callable[[], dict[str, Any]]) -> int:
    """The process's own side: says what ``find`` gives; returns the exit code."""
    die_with_parent()
    try:
        said, code = find(), EXIT_OK
    except PotatoError as error:
        said, code = {"error": str(error)}, error.exit_code
    except Exception as error:  # the process's top: whatever it is, say it and end
        said, code = {"error": f"{type(error).__name__}: {first_line(error)}"}, EXIT_INTERNAL
        traceback.print_exc()
    sys.stdout.write(json.dumps(said) + "\n")
    return code
