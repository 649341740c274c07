"""HTTP of a whole daemon: begun with it, asked by its token, replaced alone when it dies."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from pathlib import Path

import openai
import pytest
from daemons import BIN, Daemon

FLAGS = ("--pool-size", "560KiB", "--front-max-context", "256", "--gateway-listen", "127.0.0.1:0")


def url(daemon: Daemon, number: int = 1) -> str:
    """Of its gateway, the so manieth."""

    def found() -> list[str]:
        return re.findall(r"listening at (http://[0-9.:]+)", daemon.text())

    daemon.until(lambda: len(found()) >= number, "a gateway")
    return found()[number - 1]


def token(daemon: Daemon) -> str:
    done = subprocess.run(
        [str(BIN / "potatod"), "token", "--config", str(daemon.place / "potatod.toml")], capture_output=True, text=True, check=True,
        env={"XDG_STATE_HOME": str(daemon.place / "state")},
    )  # fmt: skip
    return done.stdout.strip()


def test_the_answer_over_http_is_that_of_the_command_line_and_a_gateway_that_dies_is_replaced(tiny_model: Path, probe_cache: Path) -> None:
    with Daemon(tiny_model, probe_cache, *FLAGS) as daemon:
        key = token(daemon)
        expected = daemon.ask("What is a potato?", "--max-tokens", "24")["text"]

        def ask(number: int) -> str | None:
            with openai.OpenAI(base_url=f"{url(daemon, number)}/v1", api_key=key, max_retries=0) as client:
                question = [{"role": "user", "content": "What is a potato?"}]
                answer = client.chat.completions.create(model="model", messages=question, max_tokens=24)  # type: ignore[arg-type]
                return answer.choices[0].message.content

        assert ask(1) == expected
        before = daemon.stages()
        before["gateway"].send_signal(signal.SIGKILL)
        assert ask(2) == expected
        after = daemon.stages()
        assert {name for name in before if before[name].pid != after[name].pid} == {"gateway"}
        assert "gateway" in daemon.client("status").stdout
        after["front"].send_signal(signal.SIGKILL)
        daemon.until(lambda: daemon.text().count("serving") == 2, "serving again")
        assert ask(2) == expected


def test_a_gateway_that_dies_again_and_again_stays_down_and_all_else_goes_on(tiny_model: Path, probe_cache: Path) -> None:
    with Daemon(tiny_model, probe_cache, *FLAGS, "--run-restarts", "2") as daemon:
        for number in (1, 2):
            url(daemon, number)
            daemon.stages()["gateway"].send_signal(signal.SIGKILL)
        daemon.until(lambda: "the gateway stays down" in daemon.text(), "giving up")
        assert daemon.ask("hello", "--max-tokens", "2")["completion_tokens"] == 2
        assert "gateway" not in daemon.stages()


def test_a_port_that_is_taken_ends_the_start_with_a_sentence(tiny_model: Path, probe_cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with Daemon(tiny_model, probe_cache, *FLAGS[:-1], listen, until=f"cannot listen at [gateway] listen {listen}") as daemon:
            assert daemon.process is not None
            assert daemon.process.wait(30) == 78
            assert daemon.text().rstrip().splitlines()[-1] == f"potatod: cannot listen at [gateway] listen {listen}: Address already in use"


@pytest.mark.parametrize("new", [False, True])
def test_the_token_is_the_same_until_a_new_one_is_asked_for(tmp_path: Path, new: bool) -> None:
    def run(*more: str) -> str:
        done = subprocess.run([str(BIN / "potatod"), "token", *more], capture_output=True, text=True, check=True, env={"XDG_STATE_HOME": str(tmp_path)})
        return done.stdout

    first = run()
    assert (run(*(["--new"] if new else [])) == first) is not new
    assert run() == (tmp_path / "potato" / "gateway.token").read_text()
