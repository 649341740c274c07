"""The service under systemd itself: the lines of the README, kills, a reload, an error that no restart mends, a socket that systemd holds."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from .systemd_harness import SYSTEMD, Manager, SystemsManager, UsersManager

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not SYSTEMD.exists() or shutil.which("nsenter") is None, reason="a systemd of our own takes root, nsenter and systemd"
    ),
    pytest.mark.timeout(600),
]


def _begun(manager: type[Manager], model: Path, cache: Path) -> Iterator[Manager]:
    with tempfile.TemporaryDirectory(prefix="pt-", dir=Path.home()) as place:
        made = manager(Path(place), model, cache)
        try:
            if not made.began():
                pytest.skip(f"systemd does not begin here: {made.text()[-500:]}")
            yield made
        finally:
            made.close()


@pytest.fixture
def manager(tiny_model: Path, probe_cache: Path) -> Iterator[Manager]:
    yield from _begun(UsersManager, tiny_model, probe_cache)


@pytest.fixture
def system(tiny_model: Path, probe_cache: Path) -> Iterator[Manager]:
    if Path("/proc/1/comm").read_text().strip() == "systemd":
        pytest.skip("the machine's own systemd has the groups of processes that another one would take")
    yield from _begun(SystemsManager, tiny_model, probe_cache)


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def test_the_service_of_the_readme_answers_and_its_jobs_outlive_it(manager: UsersManager) -> None:
    port, ask = _port(), ("potato-client", "Once upon a time", "--max-tokens", "150", "--temperature", "0", "--json")
    manager.install("--gateway-listen", f"127.0.0.1:{port}")
    manager.systemctl("enable", "--now", "potatod")
    assert manager.shown("StatusText") == "serving model: nothing to do"
    whole = json.loads(manager.run(*ask))["text"]
    assert [model["id"] for model in manager.get(port, "/v1/models")["data"]] == ["model"]
    job = manager.run("potato-client", "submit", *ask[1:-1]).strip()
    served = manager.text().count("serving ")
    manager.systemctl("kill", "--signal=KILL", "potatod")
    manager.until(lambda: manager.text().count("serving ") > served, "systemd has started it again")
    assert manager.run("potato-client", "attach", job).strip() == whole.strip()
    assert manager.shown("NRestarts") == "1"

    manager.config.write_text(manager.config.read_text() + '\n[log]\nformat = "json"\n')
    manager.systemctl("reload", "potatod")
    manager.until(lambda: "the configuration was read again" in manager.text(), "it has read its settings again")

    manager.config.write_text('[pool]\nsise = "560KiB"\n')
    again = manager.inside("systemctl", "--user", "restart", "potatod")
    assert subprocess.run(again, env=manager.environment, capture_output=True, check=False).returncode != 0
    time.sleep(7)  # RestartSec=5s
    assert (manager.shown("ActiveState"), manager.shown("ExecMainStatus"), manager.shown("NRestarts")) == ("failed", "78", "0"), manager.text()[-500:]
    assert 'did you mean "size"?' in manager.text()


def test_whoever_connects_to_the_socket_that_systemd_holds_starts_the_daemon_and_is_answered(manager: UsersManager) -> None:
    port = _port()
    manager.install("--gateway-listen", f"127.0.0.1:{port}", "--socket-activation")
    manager.systemctl("start", "potatod.socket")
    assert manager.shown("ActiveState") == "inactive"
    assert [model["id"] for model in manager.get(port, "/v1/models")["data"]] == ["model"]
    manager.until(lambda: manager.shown("ActiveState") == "active", "the daemon is ready")
    manager.systemctl("stop", "potatod.socket", "potatod")
    assert manager.shown("Result") == "success"


def test_a_systems_service_of_a_user_made_for_it_reads_roots_token_and_its_jobs_outlive_it(system: SystemsManager) -> None:
    port = _port()
    question = {"model": "model", "prompt": "Once upon a time", "max_tokens": 150, "temperature": 0}
    system.install("--gateway-listen", f"127.0.0.1:{port}")
    token = system.run(*system.inside("cat", "/etc/potato/gateway.token"))
    system.systemctl("start", "potatod")
    assert system.shown("StatusText") == "serving model: nothing to do"
    whole = system.http(port, token, "POST", "/v1/completions", question)["choices"][0]["text"]
    (job,) = system.http(port, token, "POST", "/jobs", question)["jobs"]
    system.systemctl("kill", "--signal=KILL", "potatod")
    system.until(lambda: system.shown("NRestarts") == "1" and system.shown("ActiveState") == "active", "systemd has started it again")
    system.until(lambda: system.http(port, token, "GET", f"/jobs/{job}")["state"] == "finished", "the job's end")
    assert system.http(port, token, "GET", f"/jobs/{job}")["text"] == whole

    uid = int(system.shown("UID"))
    assert uid >= 61184, "one of systemd's own"
    service = [each.uids() for each in psutil.Process(system.process.pid).children(recursive=True) if "potatod: " in "".join(each.cmdline())]
    assert len(service) == 5 and {each for uids in service for each in uids} == {uid}, "five programs, and none is root's"
    assert {path.stat().st_uid for path in (system.place / "var" / "lib" / "private").rglob("*")} == {uid}
