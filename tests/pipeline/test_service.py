"""The daemon under systemd: what its unit allows it, and what it tells."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemons import Daemon
from engine import Engine

from potato_client import Client
from potato_client.protocol import Piece, Progress
from potatod.messages import Counted

#: `potatod`, of the package that these tests are of.
PROGRAM = "import sys; from potatod.cli import main; sys.exit(main())"


def test_the_memory_that_a_unit_allows_is_more_than_all_processes_take_and_not_much_more(tiny_model: Path, probe_cache: Path, tmp_path: Path) -> None:
    config = tmp_path / "potatod.toml"
    config.write_text(f'[model]\npath = "{tiny_model}"\n[pool]\nsize = "560KiB"\n[gateway]\nlisten = "127.0.0.1:0"\ntoken = "token"\n')
    unit = subprocess.run(
        [sys.executable, "-c", PROGRAM, "install-service", "--print", "--user", "--config", str(config)],
        capture_output=True, text=True, check=True, env={**os.environ, "XDG_CACHE_HOME": str(probe_cache)},
    ).stdout  # fmt: skip
    found = re.search(r"^MemoryMax=(\d+)M$", unit, re.MULTILINE)
    assert found is not None, unit
    allowed = int(found[1]) << 20
    with Daemon(tiny_model, probe_cache, config=config.read_text().replace("token =", "path = 'gateway'\ntoken ="), program=PROGRAM) as daemon:
        daemon.ask("hello", "--max-tokens", "20")
        assert daemon.process is not None
        assert "gateway" in daemon.stages()
        processes = [psutil.Process(daemon.process.pid), *daemon.stages().values()]
        taken = sum(process.memory_full_info().pss for process in processes)
    assert taken < allowed < taken + (1 << 30)


def test_models_may_be_named_and_be_several(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny:int4").symlink_to(tiny_model)
    models = ("--model", "tiny:int4", "--model", str(tiny_model))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "install-service", "--print", "--user", "--config", os.devnull, *models],
        capture_output=True, text=True, check=True, env={**os.environ, "POTATO_HOME": str(tmp_path)},
    )  # fmt: skip
    assert f"start --config {os.devnull} {tmp_path}/models/tiny:int4 {tiny_model}\n" in done.stdout


def test_a_worker_tells_the_supervisor_of_each_layer(tiny_model: Path) -> None:
    """A sweep may take minutes: what of it is done is progress too."""
    with Engine(tiny_model, 1 << 20) as engine:
        for _ in range(3):
            engine.sweep({0: [5]}, want="nothing")
        said = []
        deadline = time.monotonic() + 10
        while (not said or said[-1].sweeps < 3) and time.monotonic() < deadline:
            time.sleep(0.1)
            engine.sweep({0: [5]}, want="nothing")
            said += [m for _, m in iter(engine._control.receive, None) if isinstance(m, Counted) and m.stage == "worker"]
    assert 6 * said[-1].sweeps <= said[-1].layers <= 6 * (said[-1].sweeps + 1)


# what it tells

#: WatchdogSec= of these tests, in seconds: a stage says once a second how far it is.
WATCHDOG_S = 6.0
#: Below the tiny model: about half of it streams.
SMALL = ("--pool-size", "560KiB", "--front-max-context", "256")
LONG = ("go on for long", "--max-tokens", "230", "--temperature", "1", "--seed", "5")


class Systemd:
    """Its end of $NOTIFY_SOCKET: what it was told, and when."""

    def __init__(self, place: Path) -> None:
        self.environment = {"NOTIFY_SOCKET": str(place / "notify"), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.environment["NOTIFY_SOCKET"])
        self._told: list[tuple[float, str]] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def told(self, text: str, since: float = 0.0) -> list[float]:
        """When a line that begins so was told."""
        return [at for at, line in list(self._told) if line.startswith(text) and at >= since]

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RD)
        self._thread.join(5)
        self._socket.close()

    def _listen(self) -> None:
        while data := self._socket.recv(4096):
            self._told += [(time.monotonic(), line) for line in data.decode().splitlines()]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(tmp_path)
    yield made
    made.close()


def test_it_is_ready_once_well_while_it_works_and_while_nobody_asks_and_says_its_end(
    systemd: Systemd, tiny_model: Path, probe_cache: Path
) -> None:  # fmt: skip
    with Daemon(tiny_model, probe_cache, *SMALL, env=systemd.environment, program=PROGRAM) as daemon:
        daemon.until(lambda: systemd.told("READY=1"), "READY")
        assert systemd.told("STATUS=starting: model")
        idle = time.monotonic()
        daemon.until(lambda: len(systemd.told("WATCHDOG=1", idle)) > 4, "WATCHDOG while nobody asks", 4 * WATCHDOG_S)
        told = [idle, *systemd.told("WATCHDOG=1", idle)]
        assert max(later - earlier for earlier, later in itertools.pairwise(told)) < WATCHDOG_S
        busy = time.monotonic()
        while time.monotonic() < busy + WATCHDOG_S:
            daemon.ask(*LONG)
        assert len(systemd.told("WATCHDOG=1", busy)) >= 2
        daemon.until(lambda: systemd.told("STATUS=serving model: nothing to do, ") or systemd.told("STATUS=serving model: 1 running"), "STATUS", 15)
        daemon.stages()["worker"].kill()
        daemon.until(lambda: systemd.told("STATUS=restarting: model, worker was killed by SIGKILL"), "STATUS of the restart")
        again = time.monotonic()
        daemon.until(lambda: systemd.told("STATUS=serving", again), "STATUS of the new engine")
        assert systemd.told("STOPPING=1") == []
        assert daemon.stop() == 0
    assert len(systemd.told("READY=1")) == len(systemd.told("STOPPING=1")) == 1


def test_it_is_not_well_while_a_sweep_stands_still_though_all_its_other_processes_live(
    systemd: Systemd, tiny_model: Path, probe_cache: Path
) -> None:  # fmt: skip
    with Daemon(tiny_model, probe_cache, *SMALL, env=systemd.environment, program=PROGRAM) as daemon:
        asked, worker = [], daemon.stages()["worker"]

        def stopped() -> bool:
            """Whether it stands while a job runs."""
            asked.append(daemon.client("submit", *LONG).stdout.strip())
            worker.send_signal(signal.SIGSTOP)
            if json.loads(daemon.client("status", "--json").stdout)["queue"]["running"]:
                return True
            worker.send_signal(signal.SIGCONT)
            return False

        daemon.until(stopped, "a worker that stands in a sweep")
        try:
            time.sleep(WATCHDOG_S / 2)  # what had come further before is told by then
            stopped = time.monotonic()
            time.sleep(2 * WATCHDOG_S)
            assert systemd.told("WATCHDOG=1", stopped) == []
            assert {name for name, stage in daemon.stages().items() if stage.status() != psutil.STATUS_STOPPED} == {"reader", "front"}
        finally:
            worker.send_signal(signal.SIGCONT)
        continued = time.monotonic()
        daemon.until(lambda: systemd.told("WATCHDOG=1", continued), "WATCHDOG after it went on", WATCHDOG_S)
        for job in asked:
            assert daemon.client("attach", job).returncode == 0


# what it is told

#: As systemd starts it where a .socket unit listens for the gateway; and a machine that runs on battery while a file is there.
HANDED = """
import os, socket, sys
from potatod import pausing
from potatod.cli import main
handed = socket.create_server(("127.0.0.1", 0)).detach()
os.dup2(handed, 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "gateway"}
pausing.EVERY_S = 0.2
pausing._supplies = lambda root: [pausing.Supply("Battery", status="Discharging")] if os.path.exists(os.environ["UNPLUGGED"]) else []
sys.exit(main())
"""


def test_it_stands_back_reads_its_configuration_again_pauses_and_keeps_the_socket_that_it_was_handed(
    systemd: Systemd, tiny_model: Path, probe_cache: Path, tmp_path: Path
) -> None:  # fmt: skip
    unplugged = tmp_path / "unplugged"
    environment = {**systemd.environment, "UNPLUGGED": str(unplugged)}
    flags = (*SMALL, "--gateway-listen", "127.0.0.1:1", "--run-nice", "1")
    with Daemon(tiny_model, probe_cache, *flags, env=environment, program=HANDED) as daemon:
        daemon.until(lambda: systemd.told("READY=1"), "READY")
        own = psutil.Process().nice()
        assert {name: stage.nice() for name, stage in daemon.stages().items()} == {
            "reader": max(own, 1), "worker": max(own, 1), "front": own, "gateway": own,
        }  # fmt: skip
        (port,) = map(int, re.findall(r"listening at http://127.0.0.1:(\d+)", daemon.text()))

        def health(host: str) -> str:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                return connection.recv(1 << 16).decode().split()[1]

        def reloaded(config: str, says: str) -> None:
            before = len(systemd.told("RELOADING=1"))
            (daemon.place / "potatod.toml").write_text(config)
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGHUP)
            daemon.until(lambda: says in daemon.text(), says)
            daemon.until(lambda: len(systemd.told("RELOADING=1")) == before + 1 and len(systemd.told("READY=1")) == before + 2, "READY again")

        daemon.stages()["gateway"].send_signal(signal.SIGKILL)
        assert health("localhost") == "200"
        assert health("potato.example.org") == "421"
        reloaded('[log]\nlevel = "loud"\n', "[log] level must be")
        changed = '[log]\nlevel = "debug"\n[gateway]\nhosts = ["potato.example.org"]\n[kv]\ndtype = "float8"\n'
        reloaded(changed, 'changed="[gateway] hosts, [log] level" waits_for_a_restart="[kv] dtype"')
        daemon.until(lambda: health("potato.example.org") == "200", "the new name")
        unplugged.touch()
        reloaded(changed + "[run]\npause_on_battery = true\n", 'changed="[run] pause_on_battery" waits_for_a_restart="[kv] dtype"')
        daemon.until(lambda: systemd.told("STATUS=paused: model, this machine runs on battery"), "STATUS of the pause")
        job = daemon.client("submit", "hello", "--max-tokens", "3").stdout.strip()
        assert "no job is computed now: this machine runs on battery" in daemon.client("status").stdout
        unplugged.unlink()
        assert daemon.client("attach", job).returncode == 0
        assert daemon.stop() == 0


#: A kernel that shows what lies in a folder of the test's, looked at often.
SHOWN = """
import os, sys
from pathlib import Path
from potatod import pausing
from potatod.cli import main
text = pausing._text
pausing.EVERY_S = 0.05
pausing._text = lambda file: text(Path(os.environ["SHOWN"], *file.parts[1:]))
sys.exit(main())
"""


def test_a_job_that_runs_waits_while_the_machine_is_short_of_memory_and_goes_on_with_the_same_text(
    tiny_model: Path, probe_cache: Path, tmp_path: Path
) -> None:  # fmt: skip
    page, why = tmp_path / "proc/pressure/memory", "this machine is short of memory"
    page.parent.mkdir(parents=True)
    asked: dict[str, Any] = {"prompt": LONG[0], "max_tokens": 200, "temperature": 0.0}
    flags = (*SMALL, "--run-pause-on-pressure", "20%", "--speculation-enabled", "false")

    def stands_still(percent: float) -> None:
        page.write_text(f"some avg10={percent:.2f} avg60=0.08 avg300=0.01 total=62385\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=51234\n")

    with Daemon(tiny_model, probe_cache, *flags, env={"SHOWN": str(tmp_path)}, program=SHOWN) as daemon, Client(daemon.socket) as client:
        answer = client.generate(**asked)
        text = ""
        for message in answer.messages():
            if isinstance(message, Piece):
                text += message.text
                if message.index == 3:
                    stands_still(50)
            elif isinstance(message, Progress) and message.state == "paused":
                assert message.why == why
                break
        assert f"no job is computed now: {why}" in daemon.client("status").stdout
        sweeps = client.status().engine.sweeps
        stands_still(12)  # less, and not yet less than half of what paused it
        time.sleep(0.5)
        report = client.status()
        assert (report.queue.paused, report.queue.running, report.engine.sweeps) == (why, 1, sweeps)
        stands_still(5)
        text += "".join(piece.text for piece in answer)
        assert text == "".join(piece.text for piece in client.generate(**asked))
        assert client.status().queue.paused == ""
        assert [daemon.text().count(line) for line in (f"paused: {why}", "sweeps go on")] == [1, 1]
