"""What was found out about this machine and is kept for the next time: one small file for each answer, named by all that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from . import log

_LOGGER: Final = logging.getLogger("potatod.kept")


class Kept:
    """The answer to one question; ``depends_on`` is anything JSON can write. Other code of ours may find another one, so that counts too."""

    def __init__(self, kind: str, depends_on: object) -> None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        key = hashlib.sha256(json.dumps([_code(), depends_on]).encode()).hexdigest()[:32]
        self.path = base / "potato" / kind / f"{key}.json"

    def get(self, *fields: str) -> dict[str, Any] | None:
        """None where nobody has asked before, or what lies there is none of ours: it must have all of ``fields``."""
        try:
            page = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        return page if isinstance(page, dict) and page.keys() >= set(fields) else None

    def put(self, answer: Mapping[str, Any]) -> None:
        """Where it cannot be written that is told and costs the next one its time, nothing else."""
        partial = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(answer))
            partial.replace(self.path)
        except OSError as error:
            log.event(_LOGGER, "what was found cannot be kept: the next start tries it out again", why=f"{self.path}: {error.strerror}")
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def forget(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


@cache
def _code() -> str:
    """Of this package's own modules."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
