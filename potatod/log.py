"""One event, one line on stderr: text for people, JSON for machines. Standard library's logging, nothing beside it.

    12:03:04 reader      first pass read  read_bytes=1.2GB busy_s=2.1
    {"time": "2026-11-24T12:03:04.120Z", "level": "info", "stage": "reader", "event": "first pass read", "busy_s": 2.1}

What fields say can come from outside, so it is escaped: nobody writes a line of our log but we. A traceback's lines
follow their event indented, with a bar.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any, Final, Literal

from .sizes import human_size

_FIELDS: Final = "potato_fields"
#: Written as it is; anything else is quoted.
_BARE: Final = re.compile(r"[\w./:+,@%-]+")
#: Wide enough for "supervisor", so that events stand in one column.
_STAGE_WIDTH: Final = 10
_LOUD: Final = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.CRITICAL: "error: "}
#: Control characters, and those that end a line to some reader.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure(stage: str, level: str = "info", format: Literal["text", "json"] = "text") -> None:
    """Sends this process' log to stderr with ``stage`` on every line. Other packages are heard from "warning" up."""
    handler = _Stderr()
    handler.setFormatter(_Json(stage) if format == "json" else _Text(stage))
    ours = getattr(logging, level.upper())
    logging.basicConfig(handlers=[handler], level=max(ours, logging.WARNING), force=True)
    logging.getLogger("potatod").setLevel(ours)
    logging.captureWarnings(True)


# `level` is an int; typed Any so that callers may hand on fields of their own as **dict[str, object].
def event(logger: logging.Logger, message: str, /, *, level: Any = logging.INFO, **fields: object) -> None:
    """Logs ``message`` with ``fields`` behind it. In text, fields called ``bytes`` or ``…_bytes`` read as MB, GB, …"""
    logger.log(level, "%s", message, extra={_FIELDS: fields}, stacklevel=2)


class _Stderr(logging.Handler):
    """Whole lines to whatever stderr is now. Where it is closed or full the event is lost and the stage goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record) + "\n"
        try:
            if sys.stderr is not None:
                sys.stderr.write(line)
                sys.stderr.flush()
        except (OSError, ValueError):
            pass  # ValueError: a closed file


class _Text(logging.Formatter):
    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        first, *rest = _lines(record)
        fields = " ".join(f"{name}={_shown(name, value)}" for name, value in _fields(record).items())
        said = f"{_LOUD.get(record.levelno, '')}{first}{'  ' if fields else ''}{fields}"
        indent = " " * (len(clock) + 1 + _STAGE_WIDTH)
        return "\n".join([f"{clock} {self._stage:<{_STAGE_WIDTH}}  {said}", *(f"{indent}  | {more}" for more in rest)])


class _Json(logging.Formatter):
    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        head = {"time": clock, "level": record.levelname.lower(), "stage": self._stage, "event": _whole(record)}
        fields = {name if name not in head else f"{name}_": value for name, value in _fields(record).items()}
        return json.dumps({**head, **fields}, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, _FIELDS, {})
    return fields


def _whole(record: logging.LogRecord) -> str:
    text = record.getMessage()
    return f"{text}\n{logging.Formatter().formatException(record.exc_info)}" if record.exc_info else text


def _lines(record: logging.LogRecord) -> list[str]:
    """The event's text, cut at newlines; no other control character gets through."""
    return [_CONTROL.sub(lambda c: f"\\x{ord(c[0]):02x}", line) for line in _whole(record).strip("\n").split("\n")]


def _shown(name: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and (name == "bytes" or name.endswith("_bytes")):
        return human_size(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=not text.isprintable())
