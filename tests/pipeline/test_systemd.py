"""A user's service under systemd itself: the lines of the README, a kill, a reload, an error that no restart mends, a socket that systemd holds.

systemd runs as a user's manager in namespaces of its own, where the machine's init is another; that takes root.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from daemons import BIN, PATIENCE_S

SYSTEMD = Path("/lib/systemd/systemd")
ROOT = Path(__file__).resolve().parents[2]
#: What a machine's own systemd has made long before: it takes the place of files that a service must not see.
BEGIN = """
mount --make-rprivate / && mkdir -p /run/systemd/system /run/systemd/inaccessible && cd /run/systemd/inaccessible || exit 1
[ -e dir ] || (mkdir -m 0 dir && touch reg && chmod 0 reg && mkfifo -m 0 fifo && mknod -m 0 chr c 0 0 && mknod -m 0 blk b 0 0) || exit 1
"$0" --user --unit=basic.target  # not the first process, which it takes for a machine's
exit $?
"""

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not SYSTEMD.exists() or shutil.which("nsenter") is None, reason="a systemd of our own takes root, nsenter and systemd"
    ),
    pytest.mark.timeout(600),
]


class Manager:
    """A home with a model and a configuration, and the systemd of its user."""

    def __init__(self, home: Path, model: Path, cache: Path) -> None:
        self.home = home
        self.unit = home / ".config" / "systemd" / "user" / "potatod.service"
        self.config = home / ".config" / "potato" / "potatod.toml"
        self.log = home / ".local" / "state" / "potato" / "log"
        (home / "run").mkdir(mode=0o700)
        names = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "PATH": f"{BIN}:{os.defpath}"}
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "POTATO_", "DBUS_"))} | names
        shutil.copytree(model, home / "model")
        for page in cache.rglob("*.json"):  # what other tests have found out about this machine
            kept = home / ".cache" / page.relative_to(cache)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(page, kept)
        self.config.parent.mkdir(parents=True)
        self.config.write_text('[pool]\nsize = "560KiB"\n\n[worker]\nthreads = 1\n\n[front]\nmax_context = 320\n\n[speculation]\nenabled = false\n')
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", BEGIN, SYSTEMD]
        with (home / "systemd.log").open("wb") as said:
            self.process = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def run(self, *command: object) -> str:
        done = subprocess.run([*map(str, command)], env=self.environment, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr, self.text()[-3000:])
        return done.stdout

    def inside(self, *words: str) -> list[str]:
        """`systemctl`, as systemd answers nobody whose process it cannot see."""
        begun = psutil.Process(self.process.pid).children()
        return ["nsenter", "--target", str(begun[0].pid if begun else 0), "--mount", "--pid", "systemctl", "--user", *words]

    def systemctl(self, *words: str) -> str:
        return self.run(*self.inside(*words))

    def began(self) -> bool:
        asked = subprocess.run(self.inside("is-system-running"), env=self.environment, capture_output=True, text=True, check=False)
        return asked.stdout.strip() in ("running", "degraded")

    def shown(self, name: str) -> str:
        return self.systemctl("show", "potatod", f"--property={name}", "--value").strip()

    def install(self, *words: str) -> None:
        """As the README has it; and what is said comes into a file, as there is no journal here."""
        self.run("potatod", "install-service", "--user", "--model", self.home / "model", *words)
        lines = ["[Service]", f"StandardOutput=append:{self.log}", f"StandardError=append:{self.log}"]
        if ROOT.is_relative_to("/tmp"):  # no service sees what lies there
            lines.append("PrivateTmp=no")
        more = self.unit.with_name("potatod.service.d")
        more.mkdir(exist_ok=True)
        (more / "here.conf").write_text("\n".join(lines))
        self.systemctl("daemon-reload")

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else (self.home / "systemd.log").read_text()

    def until(self, true: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 2 * PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, f"waited for: {what}\n{self.text()[-3000:]}"
            time.sleep(0.1)

    def get(self, port: int, path: str) -> object:
        """Over HTTP, with the token that `potatod token` prints."""
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2 * PATIENCE_S)) as connection:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.run('potatod', 'token', '--config', self.config).strip()}"})
            return json.loads(connection.getresponse().read())

    def close(self) -> None:
        subprocess.run(self.inside("exit"), env=self.environment, capture_output=True, check=False)
        try:
            self.process.wait(30)
        finally:
            self.process.kill()  # and everything in its namespace


@pytest.fixture
def manager(tiny_model: Path, probe_cache: Path) -> Iterator[Manager]:
    with tempfile.TemporaryDirectory(prefix="pt-", dir=Path.home()) as place:
        made = Manager(Path(place), tiny_model, probe_cache)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not made.began():
                if made.process.poll() is not None or time.monotonic() > deadline:
                    pytest.skip(f"systemd does not begin here: {made.text()[-500:]}")
                time.sleep(0.1)
            yield made
        finally:
            made.close()


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def test_the_service_of_the_readme_answers_and_its_jobs_outlive_it(manager: Manager) -> None:
    port, ask = _port(), ("potato-client", "Once upon a time", "--max-tokens", "150", "--temperature", "0", "--json")
    manager.install("--gateway-listen", f"127.0.0.1:{port}")
    manager.systemctl("enable", "--now", "potatod")
    assert manager.shown("StatusText") == "serving model: nothing to do"
    whole = json.loads(manager.run(*ask))["text"]
    assert [model["id"] for model in manager.get(port, "/v1/models")["data"]] == ["model"]  # type: ignore[index]
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
    assert subprocess.run(manager.inside("restart", "potatod"), env=manager.environment, capture_output=True, check=False).returncode != 0
    time.sleep(7)  # RestartSec=5s
    assert (manager.shown("ActiveState"), manager.shown("ExecMainStatus"), manager.shown("NRestarts")) == ("failed", "78", "0"), manager.text()[-500:]
    assert 'did you mean "size"?' in manager.text()


def test_whoever_connects_to_the_socket_that_systemd_holds_starts_the_daemon_and_is_answered(manager: Manager) -> None:
    port = _port()
    manager.install("--gateway-listen", f"127.0.0.1:{port}", "--socket-activation")
    manager.systemctl("start", "potatod.socket")
    assert manager.shown("ActiveState") == "inactive"
    assert [model["id"] for model in manager.get(port, "/v1/models")["data"]] == ["model"]  # type: ignore[index]
    manager.until(lambda: manager.shown("ActiveState") == "active", "the daemon is ready")
    manager.systemctl("stop", "potatod.socket", "potatod")
    assert manager.shown("Result") == "success"
