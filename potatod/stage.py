"""What every stage does besides its work: its boot page, signals, title, logging, the control wire, watching its parent.

A stage is a program: ``python -m potatod.reader --boot FILE --fd NAME=N``. Everything it needs is complete in the boot page (a JSON file in
the runtime directory) before it starts, so any stage can be started by hand under a debugger with the same line that ``ps`` shows.

NOTE [ how a stage ends ]
- The supervisor says Stop, or SIGTERM arrives: recorded in ``stopping``; the stage's loop sees it and returns. Exit 0.
- A PotatoError: the stage says Failed with the sentence and exits by its code. Anything else: Failed with the last line, a
  traceback in the log, exit 70.
- The supervisor dies: the kernel kills the stage (PR_SET_PDEATHSIG). Nothing is left to clean: no stage owns anything named.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import setproctitle
import zmq

from . import log, priority, wire
from .config import Settings
from .errors import EXIT_INTERNAL, EXIT_OK, PotatoError, first_line
from .messages import Counted, Failed, Ready, Reload, Span, Stop, Trace, Traced
from .plan import Placed, Plan
from .process import PARENT_VARIABLE
from .spans import Spans

_PR_SET_PDEATHSIG: Final = 1
#: Spans in a message.
_SPANS: Final = 2000


@dataclass(frozen=True, slots=True)
class BootModel:
    """A model that is served."""

    folder: str
    #: of a daemon that serves it alone
    settings: Settings
    #: what the probe found, and what is planned
    verdict: dict[str, Any]

    @property
    def name(self) -> str:
        return Path(self.folder).name

    @property
    def checksum(self) -> str:
        return str(self.verdict["checksum"])

    def to_json(self) -> dict[str, Any]:
        return {"folder": self.folder, "settings": json.loads(self.settings.to_json()), "verdict": self.verdict}

    @classmethod
    def of_json(cls, page: dict[str, Any]) -> BootModel:
        return cls(page["folder"], Settings.from_json(json.dumps(page["settings"])), page["verdict"])


@dataclass(frozen=True, slots=True)
class Boot:
    """All that a stage is told before it starts."""

    epoch: int
    #: the runtime directory, 0700, where the sockets lie
    directory: str
    #: the model folder
    model: str
    settings: Settings
    #: None for stages that outlive an engine
    plan: Plan | None
    #: what the probe found: device, row groups, … (see worker/probe.py)
    verdict: dict[str, Any]
    #: for stages that outlive an engine: which are served besides
    others: tuple[BootModel, ...] = ()

    @property
    def models(self) -> tuple[BootModel, ...]:
        """All that are served, the one that is meant where nobody says which first."""
        return (BootModel(self.model, self.settings.each()[0], self.verdict), *self.others)

    def write(self, path: Path) -> None:
        page = {
            "epoch": self.epoch,
            "directory": self.directory,
            "model": self.model,
            "settings": json.loads(self.settings.to_json()),
            "plan": None if self.plan is None else dataclasses.asdict(self.plan),
            "verdict": self.verdict,
            "others": [other.to_json() for other in self.others],
        }
        path.write_text(json.dumps(page, indent=1))

    @classmethod
    def read(cls, path: Path) -> Boot:
        page = json.loads(path.read_text())
        plan = page["plan"]
        if plan is not None:
            plan = Plan(**{**plan, "parts": tuple(Placed(**part) for part in plan["parts"])})
        return cls(
            page["epoch"], page["directory"], page["model"], Settings.from_json(json.dumps(page["settings"])), plan,
            page["verdict"], tuple(map(BootModel.of_json, page["others"])),
        )  # fmt: skip


class Stage:
    """A running stage's ties to the supervisor."""

    def __init__(self, name: str, boot: Boot, fds: dict[str, int]) -> None:
        self.name = name
        self.boot = boot
        self.fds = fds
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.logger = logging.getLogger(f"potatod.{name}")
        self.stopping = False
        self._beaten, self._has_swept = 0.0, False
        self.control = wire.control_wire(self.context, Path(boot.directory), name)
        self.spans = Spans()

    @property
    def directory(self) -> Path:
        return Path(self.boot.directory)

    def log(self, message: str, **fields: object) -> None:
        log.event(self.logger, message, **fields)

    def ready(self, note: str) -> None:
        self.control.send(Ready(self.name, os.getpid(), note))

    def beat(self, *, sweeps: int = 0, read_bytes: int = 0, layers: int = 0) -> bool:
        """Called wherever the stage's loop comes by: says about once a second that it lives, and how far it is, and the first sweep at once: what ends
        an engine before that is another thing than what ends it later. True where it has been said."""
        now = time.monotonic()
        if now - self._beaten < 1 and (self._has_swept or not sweeps):
            return False
        self._beaten, self._has_swept = now, self._has_swept or sweeps > 0
        self.control.send(Counted(self.name, os.getpid(), sweeps, read_bytes, layers))
        if (spans := self.spans.over(now)) is not None:
            self._traced(spans)
        return True

    def stop_signalled(self, _signum: int, _frame: object) -> None:
        self.stopping = True

    def orders(self) -> list[Any]:
        """What the supervisor has said since the last call, without waiting; ``Stop`` is recorded here, and ``boot`` has the settings of ``Reload``."""
        said = []
        while (message := self.control.receive()) is not None:
            if isinstance(message, Stop):
                self.stopping = True
            elif isinstance(message, Reload):
                settings = Settings.from_json(message.settings)
                self.boot = dataclasses.replace(self.boot, settings=settings)
                log.configure(self.name, settings.log.level, settings.log.format)
            elif isinstance(message, Trace):
                self.spans.begin(time.monotonic() + message.seconds)
            said.append(message)
        return said

    def _traced(self, spans: list[Span]) -> None:
        pieces = [tuple(spans[at : at + _SPANS]) for at in range(0, len(spans), _SPANS)] or [()]
        for piece in pieces:
            self.control.send(Traced(self.name, os.getpid(), piece, piece is pieces[-1]))


def run(name: str, work: Callable[[Stage], None], argv: list[str] | None = None) -> int:
    """The body of every stage's ``__main__``: set up, do ``work``, end as NOTE [ how a stage ends ] says; returns the exit code."""
    boot_file, fds = _arguments(name, sys.argv[1:] if argv is None else argv)
    die_with_parent()
    boot = Boot.read(boot_file)
    setproctitle.setproctitle(f"potatod: {name} ({Path(boot.model).name}, epoch {boot.epoch})")
    log.configure(name, boot.settings.log.level, boot.settings.log.format)
    stage = Stage(name, boot, fds)
    signal.signal(signal.SIGTERM, stage.stop_signalled)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to the supervisor, which says Stop
    if boot.plan is not None:
        for sentence in priority.lower(boot.settings.run):
            stage.log(sentence, level=logging.WARNING)
    gc.freeze()
    code, why = EXIT_OK, ""
    try:
        work(stage)
    except PotatoError as error:
        code, why = error.exit_code, str(error)
    except Exception as error:  # the stage's top: whatever it is, say it and end
        code, why = EXIT_INTERNAL, f"{type(error).__name__}: {first_line(error)}"
        stage.logger.error(traceback.format_exc())
    if code != EXIT_OK:
        stage.control.send(Failed(name, os.getpid(), code, why[:2000]))
        stage.control.socket.close(linger=500)
    stage.context.destroy(linger=500)
    return code


def die_with_parent() -> None:
    """The kernel kills this process when its parent ends; checks that it has not ended already: NOTE [ an orphan ] in process.py."""
    parent = int(os.environ.get(PARENT_VARIABLE, os.getppid()))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_INTERNAL)


def _arguments(name: str, argv: list[str]) -> tuple[Path, dict[str, int]]:
    """``--boot FILE --fd NAME=N …``; written by the supervisor, so a mistake here is ours."""
    boot: Path | None = None
    fds: dict[str, int] = {}
    words = iter(argv)
    for word in words:
        if word == "--boot":
            boot = Path(next(words))
        elif word == "--fd":
            key, number = next(words).split("=")
            fds[key] = int(number)
        else:
            raise SystemExit(f"potatod.{name}: unknown argument {word}; stages are started by `potatod start`")
    if boot is None:
        raise SystemExit(f"potatod.{name} is a stage of the daemon and is started by `potatod start`")
    return boot, fds
