"""`potatod` run again and again, without the seconds of imports that each start of it would cost: a mother loads once what commands need, and a child
of hers runs each command line. What is tried of a start itself, or on a terminal, is started as a person does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

_MOTHER = """
import json, os, sys
from potatod.store.lean import import_transformers
import_transformers()
import potatod.store.commands, potatod.store.prepare, potatod.store.pull, potatod.store.pull_commands
from potatod import cli
for line in sys.stdin:
    said = json.loads(line)
    pid = os.fork()
    if not pid:
        code = 70
        try:
            for number, (path, flags) in enumerate(said["files"]):
                os.dup2(os.open(path, flags), number)
            os.environ.clear()
            os.environ.update(said["environment"])
            code = cli.main(said["arguments"])
            sys.stdout.flush(), sys.stderr.flush()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Potatod:
    """``with Potatod() as potatod: potatod("verify", folder)``."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        """``environment``: of the mother too, for what is looked up there when it is imported."""
        self._environment = environment
        own = {**(environment or os.environ), "OMP_NUM_THREADS": "1"}  # a thread would not come along into a child
        self._mother = subprocess.Popen([sys.executable, "-c", _MOTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own)
        self._place = tempfile.TemporaryDirectory(prefix="pt-")

    def __call__(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """What it said and its exit code; ``environment``: variables besides. Nothing can be read from its standard input."""
        out, err = (Path(self._place.name) / name for name in ("out", "err"))
        writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        said = {
            "arguments": [str(each) for each in arguments],
            "environment": {**(self._environment or os.environ), **environment},
            "files": [("/dev/null", os.O_RDONLY), (str(out), writing), (str(err), writing)],
        }
        assert self._mother.stdin is not None and self._mother.stdout is not None
        self._mother.stdin.write(json.dumps(said) + "\n")
        self._mother.stdin.flush()
        code = int(self._mother.stdout.readline())
        return subprocess.CompletedProcess(said["arguments"], code, out.read_text(), err.read_text())

    def __enter__(self) -> Potatod:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        with self._mother:
            assert self._mother.stdin is not None
            self._mother.stdin.close()
        self._place.cleanup()
