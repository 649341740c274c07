"""Whole daemons for tests: a tiny model with a real tokenizer, `potatod start` as a person would, and looks inside."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from families import VOCABULARY, by_name

from potatod import rates
from potatod.config import Settings

BIN = Path(sys.executable).parent
#: An answer comes within this on a machine that does other things too.
PATIENCE_S = 60.0


def make_source(place: Path, family: str = "Llama 3", seed: int = 0, **overrides: Any) -> Path:
    """A checkpoint with a byte-level tokenizer and a chat template, as a person would have it from a hub."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    source = place / "source"
    config = by_name(family).config()
    for name, value in overrides.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(source)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<s>", "</s>"]
    words = [*specials, *alphabet]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        chat_template="{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:",
    )  # fmt: skip
    assert len(words) <= VOCABULARY
    fast.save_pretrained(source)
    return source


def make_model(place: Path, **arguments: Any) -> Path:
    from potatod.store.prepare import prepare

    prepare(make_source(place, **arguments), place / "model", band_bytes=1 << 13)
    return place / "model"


def know_rates(cache: Path, device: str = "auto") -> None:
    """What tests' daemons would try out at their first start, which is no matter of theirs: as if it had been."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    try:
        where, upload = ("cpu", None) if device == "auto" else (device, 2e9)
        computing = {"device": where, "layer_s": 0.001, "compute": [[1, 10e9], [64, 1e9]], "upload": upload, "overlaps": True}
        stored = ("float32", "bfloat16", "float16", "int8 of float32", "int4 of float32")
        for kernels, dtype in itertools.product(("reference", "invariant", "fast"), stored):
            settings = dataclasses.replace(Settings(), worker=dataclasses.replace(Settings().worker, kernels=kernels, threads=1, device=device))
            rates.kept_compute(settings, dtype).put(computing)
        for io in ("auto", "direct", "buffered"):
            settings = dataclasses.replace(Settings(), reader=dataclasses.replace(Settings().reader, io=io))
            rates.kept_disk(cache, settings).put({"bytes_per_s": 1e9, "checksum_bytes_per_s": 5e9})
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


class Daemon:
    """``with Daemon(model, …) as daemon``: a running `potatod start`; stopped, and looked over for leaks, at the end."""

    def __init__(
        self, model: Path | None, cache: Path, *flags: str, config: str = "", env: dict[str, str] | None = None, program: str = "",
        until: str = "serving",
    ) -> None:  # fmt: skip
        """``model``: None where ``config`` names them; ``program``: Python that is run instead of `potatod` itself; ``until``: entered when the log
        says this."""
        self._until = until
        self._place = tempfile.TemporaryDirectory(prefix="pt-")
        self.place = Path(self._place.name)
        self.directory = self.place / "run"
        self.socket = f"ipc://{self.place}/front.sock"
        self.log = self.place / "log"
        (self.place / "potatod.toml").write_text(config)
        homes = {"XDG_CACHE_HOME": str(cache), "XDG_STATE_HOME": str(self.place / "state")}
        self._environment = {**os.environ, **homes, "OMP_NUM_THREADS": "1", **(env or {})}
        self._command = [
            *([sys.executable, "-c", program] if program else [str(BIN / "potatod")]),
            "start", *([] if model is None else [str(model)]), "--config", str(self.place / "potatod.toml"), "--run-directory",
            str(self.directory), "--front-socket", self.socket, "--worker-threads", "1", *flags,
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Daemon:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return self

    def __enter__(self) -> Daemon:
        self.start()
        try:
            self.until(lambda: self._until in self.text() or not self.alive, self._until)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
            if kind is None:
                left = leaks(self.place, killed=self.process is not None and self.process.returncode == -signal.SIGKILL)
                assert left == [], left
        finally:
            if kind is not None:
                sys.stderr.write(f"--- the daemon's log\n{self.text()[-6000:]}\n---\n")
            self._place.cleanup()

    @property
    def alive(self) -> bool:
        assert self.process is not None
        return self.process.poll() is None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code after that signal; kills it where it does not end."""
        assert self.process is not None
        if self.alive:
            self.process.send_signal(number)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"the daemon did not end after signal {number}\n{self.text()[-3000:]}") from None

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def until(self, true: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := true()):
            assert time.monotonic() < deadline, f"waited {timeout_s} s for: {what}\n{self.text()[-3000:]}"
            time.sleep(0.05)
        return found

    def stages(self) -> dict[str, psutil.Process]:
        """The daemon's processes by what their titles say they are."""
        assert self.process is not None
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                words = " ".join(child.cmdline())
            except psutil.NoSuchProcess:  # it has just ended
                continue
            for name in ("reader", "worker", "front", "gateway"):
                if words.startswith(f"potatod: {name}"):
                    found[name] = child
        return found

    def client(self, *arguments: str, stdin: str | None = None, timeout: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """`potato-client …` with no terminal around it."""
        return subprocess.run(
            [str(BIN / "potato-client"), *arguments], input=stdin if stdin is not None else "", capture_output=True, text=True,
            timeout=timeout, env={**self._environment, "POTATO_SOCKET": self.socket}, check=False,
        )  # fmt: skip

    def ask(self, *arguments: str) -> dict[str, Any]:
        """The answer as ``--json`` gives it; the exit code must be 0."""
        done = self.client(*arguments, "--json")
        assert done.returncode == 0, done.stderr + self.text()[-3000:]
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def leaks(place: Path, *, killed: bool = False) -> list[str]:
    """What a dead daemon must not leave: processes, shared memory, and in its directories anything but locks.

    One that was ``killed`` with SIGKILL cannot clean up; its sockets and pages are the next daemon's to sweep.
    """
    left = [f"process {p.pid}: {' '.join(p.cmdline())}" for p in psutil.process_iter() if _belongs(p, place)]
    left += [f"/dev/shm/{name}" for name in os.listdir("/dev/shm")]
    if not killed:
        left += [str(path) for path in place.rglob("*") if path.is_socket() or path.name.startswith("boot.")]
    return left


def _belongs(process: psutil.Process, place: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and str(place) in " ".join([*process.cmdline(), *process.environ().values()])
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
