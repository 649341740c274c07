"""systemd in namespaces of its own, as a user's manager or as that of a whole system. It takes root."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar

import psutil
from daemons import BIN, PATIENCE_S

SYSTEMD = Path("/lib/systemd/systemd")
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = '[pool]\nsize = "560KiB"\n\n[worker]\nthreads = 1\n\n[front]\nmax_context = 320\n\n[speculation]\nenabled = false\n'
#: What a machine's own systemd has made long before: it takes the place of files that a service must not see.
OF_A_USER = """
mount --make-rprivate / && mkdir -p /run/systemd && mount -t tmpfs -o mode=755 tmpfs /run/systemd || exit 1
mkdir -p /run/systemd/system /run/systemd/inaccessible && cd /run/systemd/inaccessible || exit 1
mkdir -m 0 dir && touch reg && chmod 0 reg && mkfifo -m 0 fifo && mknod -m 0 chr c 0 0 && mknod -m 0 blk b 0 0 || exit 1
"$0" --user --unit=basic.target  # not the first process, which it takes for a machine's
exit $?
"""
#: With /etc, /run and /var, where Python, its packages and this checkout lie in nobody's home and not in /tmp, into which a user that was made for a
#: service does not see. The groups of processes are mounted anew for it.
OF_A_SYSTEM = """
mount --make-rprivate / && cd "$1" && mkdir -p up work var/python var/venv var/tree var/tmp var/log || exit 1
mount -t overlay overlay -o lowerdir=/etc,upperdir=up,workdir=work /etc && mount -t tmpfs -o mode=755 tmpfs /run || exit 1
mount --bind var /var && mount --bind "$2" /var/python && mount --bind "$3" /var/venv && mount --bind "$4" /var/tree || exit 1
chmod 1777 /var/tmp && mkdir /run/systemd || exit 1
for each in unified systemd; do mountpoint -q /sys/fs/cgroup/$each && umount -l /sys/fs/cgroup/$each; done
mount --make-rshared / || exit 1
exec "$0" --system --unit=basic.target
"""
#: They have nothing to do: the machine has been set up long ago.
TARGETS = ("sysinit", "local-fs", "sockets", "shutdown", "umount", "multi-user")


class Manager:
    """``place`` holds all that it writes. ``began`` is false where there is no systemd to be had here."""

    scope: ClassVar[str]
    namespaces: ClassVar[tuple[str, ...]] = ("mount", "pid")

    def __init__(self, place: Path, environment: dict[str, str], begin: str, *words: object) -> None:
        self.place = place
        self.environment = environment
        self.log = place / "log"
        command = ["unshare", *(f"--{each}" for each in self.namespaces), "--fork", "--kill-child", "--mount-proc", "bash", "-c", begin, SYSTEMD]
        with (place / "systemd.log").open("wb") as said:
            self.process = subprocess.Popen([*command, *map(str, words)], env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def inside(self, *words: object) -> list[str]:
        """systemd answers nobody whose process it cannot see."""
        begun = psutil.Process(self.process.pid).children()
        return ["nsenter", "--target", str(begun[0].pid if begun else 0), *(f"--{each}" for each in self.namespaces), *map(str, words)]

    def run(self, *command: object) -> str:
        done = subprocess.run([*map(str, command)], env=self.environment, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr, self.text()[-3000:])
        return done.stdout

    def systemctl(self, *words: str) -> str:
        return self.run(*self.inside("systemctl", self.scope, *words))

    def began(self) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            asked = subprocess.run(
                self.inside("systemctl", self.scope, "is-system-running"), env=self.environment, capture_output=True, text=True, check=False
            )
            if asked.stdout.strip() in ("running", "degraded"):
                return True
            time.sleep(0.1)
        return False

    def shown(self, name: str) -> str:
        return self.systemctl("show", "potatod", f"--property={name}", "--value").strip()

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else (self.place / "systemd.log").read_text()

    def until(self, true: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 2 * PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, f"waited for: {what}\n{self.text()[-3000:]}"
            time.sleep(0.1)

    def http(self, port: int, token: str, method: str, path: str, page: object = None) -> Any:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2 * PATIENCE_S)) as connection:
            body = None if page is None else json.dumps(page)
            connection.request(method, path, body, {"Authorization": f"Bearer {token.strip()}", "Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())

    def here(self, unit: Path, log: str, *more: str) -> None:
        """What is said comes into a file, as there is no journal here."""
        lines = ["[Service]", f"StandardOutput=append:{log}", f"StandardError=append:{log}", *more]
        unit.mkdir(parents=True, exist_ok=True)
        (unit / "here.conf").write_text("\n".join(lines) + "\n")
        self.systemctl("daemon-reload")

    def close(self) -> None:
        try:
            subprocess.run(self.inside("systemctl", self.scope, "exit"), env=self.environment, capture_output=True, check=False)
            self.process.wait(30)
        finally:
            self.process.kill()  # and everything in its namespace
            self.process.wait()


class UsersManager(Manager):
    """A home with a model and a configuration, and the systemd of its user."""

    scope = "--user"

    def __init__(self, home: Path, model: Path, cache: Path) -> None:
        self.unit = home / ".config" / "systemd" / "user" / "potatod.service"
        self.config = home / ".config" / "potato" / "potatod.toml"
        (home / "run").mkdir(mode=0o700)
        names = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "PATH": f"{BIN}:{os.defpath}"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "POTATO_", "DBUS_"))} | names
        shutil.copytree(model, home / "model")
        _knowing(cache, home / ".cache")
        self.config.parent.mkdir(parents=True)
        self.config.write_text(SETTINGS)
        super().__init__(home, environment, OF_A_USER)

    def install(self, *words: str) -> None:
        """As the README has it."""
        self.run("potatod", "install-service", "--user", "--model", self.place / "model", *words)
        of_a_checkout = ["PrivateTmp=no"] if ROOT.is_relative_to("/tmp") else []  # no service sees what lies there
        self.here(self.unit.with_name("potatod.service.d"), str(self.log), *of_a_checkout)

    def get(self, port: int, path: str) -> Any:
        """Over HTTP, with the token that `potatod token` prints."""
        return self.http(port, self.run("potatod", "token", "--config", self.config), "GET", path)


class SystemsManager(Manager):
    """A whole system's, where the machine has none: it keeps its groups of processes beside the machine's own."""

    scope = "--system"
    namespaces = ("mount", "pid", "uts", "ipc", "cgroup")

    def __init__(self, place: Path, model: Path, cache: Path) -> None:
        units, programs, packages = place / "units", place / "var" / "potato" / "bin", place / "var" / "potato" / "packages"
        units.mkdir()
        for target in TARGETS:
            (units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        (units / "basic.target").write_text("[Unit]\nDefaultDependencies=no\nRequires=sysinit.target\nAfter=sysinit.target\n")
        shutil.copytree(model, place / "var" / "model")
        _knowing(cache, place / "var" / "cache" / "private" / "potato")
        (place / "var" / "cache" / "private").chmod(0o700)
        programs.mkdir(parents=True)
        (programs / "python").symlink_to(f"/var/python/bin/{Path(sys.executable).resolve().name}")
        (programs.parent / "lib").symlink_to("/var/venv/lib")
        packages.mkdir()
        (packages / "potatod").symlink_to("/var/tree/potatod")
        (packages / "potato_client").symlink_to("/var/tree/client")
        settings = (BIN.parent / "pyvenv.cfg").read_text()
        (programs.parent / "pyvenv.cfg").write_text(re.sub(r"^home = .*", "home = /var/python/bin", settings, flags=re.MULTILINE))
        for program in ("potatod", "potato-client"):
            (programs / program).write_text("#!/var/potato/bin/python\n" + (BIN / program).read_text().partition("\n")[2])
            (programs / program).chmod(0o755)
        self.python = {"LD_LIBRARY_PATH": "/var/python/lib", "PYTHONPATH": "/var/potato/packages"}
        names = {"PATH": f"/var/potato/bin:{os.defpath}", "SYSTEMD_UNIT_PATH": f"{units}:/etc/systemd/system", "container": "other"}
        super().__init__(place, self.python | names, OF_A_SYSTEM, place, sys.base_prefix, BIN.parent, ROOT)
        self.log = place / "var" / "log" / "potato"

    def install(self, *words: str) -> None:
        self.run(*self.inside("potatod", "install-service", "--model", "/var/model", *words))
        (self.place / "up" / "potato" / "potatod.toml").write_text(SETTINGS)
        unit = self.place / "up" / "systemd" / "system" / "potatod.service.d"
        self.here(unit, "/var/log/potato", "DynamicUser=yes", *(f"Environment={name}={value}" for name, value in self.python.items()))

    def close(self) -> None:
        all_of_it = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()  # it would end the machine where it could
        self.process.wait()
        psutil.wait_procs(all_of_it, PATIENCE_S)
        for groups in Path("/sys/fs/cgroup").glob("*/"):
            for path in sorted([*groups.glob("init.scope/**/"), *groups.glob("system.slice/**/")], reverse=True):
                with suppress(OSError):
                    path.rmdir()


def _knowing(cache: Path, place: Path) -> None:
    """What other tests have found out about this machine."""
    for page in cache.rglob("*.json"):
        kept = place / page.relative_to(cache)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, kept)
