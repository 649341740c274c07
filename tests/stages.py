"""Stages of a daemon as processes of their own, without the half second of imports that each start of one would cost: a mother for each kind loads them
once, and children of hers are the stages. (What `potatod start` itself starts is started by it: tests of whole daemons.)"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from functools import cache

#: Starts what is asked for as a child of a child, which waits for it and says its process id and how it ended.
_MOTHER = """
import ctypes, importlib, json, os, signal, socket, sys, traceback
importlib.import_module(f"potatod.{sys.argv[2]}.{sys.argv[2]}"), importlib.import_module("potatod.stage")

def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)

def child(said, log, given):
    os.dup2(log, 2)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.environ.clear(), os.environ.update(said["environment"])
    sys.argv = ["-c", *said["arguments"], *(word for name, fd in given for word in ("--fd", f"{name}={fd}"))]
    try:
        exec(said["program"], {"__name__": "__main__"})
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

asked = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who wait are not waited for
die_with_parent()
while True:
    data, fds, _, _ = socket.recv_fds(asked, 1 << 20, 8)
    if not data:
        break
    if not os.fork():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent()
        asked.close()
        said, (log, end, *others) = json.loads(data), fds
        pid = os.fork()
        if not pid:
            os.close(end)
            code = 1
            try:
                code = child(said, log, list(zip(said["fds"], others, strict=True)))
                sys.stdout.flush(), sys.stderr.flush()
            finally:
                os._exit(code)
        for fd in (log, *others):
            os.close(fd)
        os.write(end, f"{pid}\\n".encode())
        os.write(end, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\\n".encode())
        os._exit(0)
    for fd in fds:
        os.close(fd)
"""


@cache
def _mother(kind: str) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-c", _MOTHER, str(theirs.fileno()), kind]
        mother = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)

    def end() -> None:
        ours.close()
        mother.wait()

    atexit.register(end)
    return ours


class Started:
    """As much of subprocess.Popen as tests use."""

    def __init__(self, kind: str, program: str, *arguments: str, log: int, **fds: int) -> None:
        """``kind``: whose imports are loaded already; ``program``: Python; ``log``: its standard error; ``fds`` are told to it as ``--fd NAME=N``."""
        self.returncode: int | None = None
        self._end, theirs = os.pipe()
        self._poll = select.poll()  # select() knows no descriptor beyond 1023
        self._poll.register(self._end, select.POLLIN)
        said = {"program": program, "arguments": arguments, "fds": list(fds), "environment": dict(os.environ)}
        try:
            socket.send_fds(_mother(kind), [json.dumps(said).encode()], [log, theirs, *fds.values()])
        finally:
            os.close(theirs)
        self._said = b""
        while b"\n" not in self._said:
            more = os.read(self._end, 100)
            assert more, "the mother is gone"
            self._said += more
        self.pid = int(self._said.partition(b"\n")[0])

    def poll(self) -> int | None:
        """Its exit code, where it has ended."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        while self.returncode is None:
            if self._said.count(b"\n") < 2:
                if not self._poll.poll(None if timeout is None else 1000 * timeout):
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
                if more := os.read(self._end, 100):
                    self._said += more
                    continue
                self._said += b"-9\n"  # who waited for it was killed, and it with them
            self.returncode = int(self._said.split(b"\n")[1])
            os.close(self._end)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
