"""A daemon that is measured, and the client that asks it."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil
from limited import Limits

from potato_client import Client, NoDaemon

BIN = Path(sys.executable).parent
#: The prompt has a few tokens, the answer so many: the middle ones are measured.
TOKENS = 24
#: One text of a few tokens: what is left of the RAM is for weights.
ONE = ("--front-max-context", "512", "--front-max-sequences", "1")


@dataclass(frozen=True)
class Serving:
    """A running daemon, a client of it, its process, its run directory, and when it was started (time.monotonic())."""

    client: Client
    process: subprocess.Popen[bytes]
    directory: Path
    began: float

    @property
    def socket(self) -> str:
        """Where clients connect, as a path."""
        return f"{self.directory.parent}/s"


@contextmanager
def daemon(model: Path, *flags: str, limits: Limits | None = None, log: Path | None = None) -> Iterator[Serving]:
    """Until the block is left. Its errors are seen, or all that it says goes into ``log``. Nothing is guessed where no flag says how: who asks the same
    again would be answered at once."""
    if not any(flag.startswith("--speculation-") for flag in flags):
        flags = (*flags, "--speculation-enabled", "false")
    with tempfile.TemporaryDirectory(prefix="pb-") as place:
        command = [str(BIN / "potatod"), "start", str(model), "--run-directory", f"{place}/run", "--front-socket", f"ipc://{place}/s",
                   "--jobs-path", f"{place}/jobs.db", "--log-level", "info" if log else "error", *flags]  # fmt: skip
        began = time.monotonic()
        with log.open("wb") if log else nullcontext() as said:
            process = (limits.popen if limits else subprocess.Popen)(command, stderr=said)
        try:
            while True:
                try:
                    client = Client(f"ipc://{place}/s")
                    client.status()
                    break
                except NoDaemon:
                    if process.poll() is not None:
                        raise SystemExit(f"the daemon ended with exit code {process.returncode}") from None
                    time.sleep(0.1)
            with client:
                yield Serving(client, process, Path(place) / "run", began)
        finally:
            process.terminate()
            process.wait(30)


def answer(client: Client, tokens: int = TOKENS, prompt: str = "benchmark") -> list[float]:
    """Arrival of each token, time.monotonic()."""
    return [time.monotonic() for piece in client.generate(prompt, raw=True, max_tokens=tokens, temperature=0) if piece.token_ids]


def gaps(arrivals: list[float]) -> list[float]:
    """Seconds per token, the first few left out."""
    return [b - a for a, b in itertools.pairwise(arrivals[4:])]


def s_per_token(client: Client, tokens: int = TOKENS, prompt: str = "benchmark") -> float:
    """The median."""
    return statistics.median(gaps(answer(client, tokens, prompt)))


def beside_the_pool(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Summed PSS of all processes, and of it what is not the pool's own pages."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    total = pooled = 0
    for one in family:
        for region in one.memory_maps(grouped=False):
            total += region.pss
            pooled += region.pss if "memfd:potato-pool" in region.path else 0
    return {"pss_bytes": total, "pss_beside_pool_bytes": total - pooled}
