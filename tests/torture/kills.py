"""A whole daemon whose processes are killed at any moment, supervisor and gateway included, while eight jobs run and four clients come and go.

    python tests/torture/kills.py --kills 1000 --resume state.json             one model
    python tests/torture/kills.py --kills 100 --models 2 --resume other.json   every second job is another model's, whose turn comes every few seconds

Nothing that was accepted may be lost, no token that was seen may change, and every text is that of a daemon that nobody disturbs. Counts are summed in
the file of --resume, kill by kill, so that it can be ended with Ctrl-C, or by --minutes, and gone on with.

After a kill of an engine the next one waits until a sweep has been completed: three deaths at the same token are what a job that kills engines looks
like, and it is to fail then.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from daemons import Daemon, know_rates, leaks, make_model

from potato_client import Client, ClientError
from potato_client.protocol import Piece

JOBS, CLIENTS = 8, 4
TOKENS = 120
FLAGS = (
    "--pool-size", "560KiB", "--front-max-context", "320", "--front-max-sequences", "8", "--run-restarts", "100", "--gateway-listen", "127.0.0.1:0",
)  # fmt: skip
#: How often each is chosen. "group" is all processes at once, as a power cut is for them.
VICTIMS = {"reader": 4, "worker": 4, "front": 4, "gateway": 3, "supervisor": 2, "group": 1}
#: A client waits so long for a daemon that is on its way back.
_BACK_S = 90.0


#: Of the two models, where there are two; the first is called so in any case.
NAMES = ("model", "other")


def spec(number: int, models: int) -> dict[str, Any]:
    """What the job of that number asks: eight questions, half of them sampled."""
    number %= JOBS
    sampled = {"temperature": 0.9, "seed": 100 + number} if number % 2 else {"temperature": 0.0}
    return {"prompt": f"question {number}: once upon a time", "max_tokens": TOKENS - 10 * number, "model": NAMES[number // 2 % models], **sampled}


@dataclass
class Tally:
    """What has been tried, over all runs."""

    path: Path | None
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VICTIMS, 0))
    jobs: int = 0
    attached: int = 0
    #: jobs that failed by rule, since three engines died at their token, and were retried
    retried: int = 0
    faults: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path | None) -> Tally:
        return cls(path, **json.loads(path.read_text())) if path is not None and path.exists() else cls(path)

    def save(self) -> None:
        if self.path is not None:
            page = {"kills": self.kills, "jobs": self.jobs, "attached": self.attached, "retried": self.retried, "faults": self.faults}
            made = self.path.with_suffix(".new")
            made.write_text(json.dumps(page, indent=1))
            made.replace(self.path)

    def __str__(self) -> str:
        read = f"{self.jobs} jobs, {self.attached} times read, {self.retried} retried"
        return f"{self.count} kills ({self.kills}), {read}; {len(self.faults)} faults"

    @property
    def count(self) -> int:
        return sum(self.kills.values())


class Torture:
    def __init__(self, daemon: Daemon, models: int, expected: list[str], tally: Tally, chance: random.Random) -> None:
        self.daemon = daemon
        self.models = models
        self.expected = expected
        self.tally = tally
        self.chance = chance
        self.over = threading.Event()
        #: nothing new is asked for: what is under way comes to its end
        self.draining = False
        self.numbers = itertools.count()
        #: by job id: its number; of jobs that are not over
        self.jobs: dict[str, int] = {}
        #: those that were asked to be deleted, once their text had been held against what it should be
        self.deleted: set[str] = set()
        self.lock = threading.Lock()

    def fault(self, sentence: str) -> None:
        with self.lock:
            self.tally.faults.append(sentence)
        click.echo(f"FAULT: {sentence}", err=True)

    # the clients

    def feed(self) -> None:
        """Keeps eight jobs under way, and holds each that is over against what it should be."""
        while not self.over.is_set():
            try:
                with Client(self.daemon.socket) as client:
                    while not self.over.is_set():
                        self._look(client)
                        while len(self.jobs) < JOBS and not (self.over.is_set() or self.draining):
                            self._submit(client, next(self.numbers))
                        time.sleep(0.2)
            except ClientError:
                time.sleep(0.1)

    def _submit(self, client: Client, number: int) -> None:
        """However often it must be said, it is one job."""
        until = time.monotonic() + _BACK_S
        while not self.over.is_set():
            try:
                self.jobs[client.submit(key=f"{os.getpid()}-{number}", **spec(number, self.models))] = number
                return
            except ClientError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def _look(self, client: Client) -> None:
        """At all jobs that were accepted: each is there."""
        reports = {report.job: report for report in client.jobs(limit=1000)}
        for job, number in list(self.jobs.items()):
            if job not in reports and job in self.deleted:  # whoever was to say so was killed
                del self.jobs[job]
                self.tally.jobs += 1
            elif job not in reports:
                self.fault(f"job {job} is gone")
                del self.jobs[job]
            elif reports[job].state == "failed" and reports[job].code == "poisoned":
                client.manage(job, "retry")
                self.tally.retried += 1
            elif reports[job].state in ("failed", "cancelled", "paused"):
                self.fault(f"job {job} is {reports[job].state}: {reports[job].why}")
                del self.jobs[job]
            elif reports[job].state == "finished":
                text = "".join(piece.text for piece in client.attach(job))
                if text != self.expected[number % JOBS]:
                    self.fault(f"job {job} of question {number % JOBS} says {text!r} and not {self.expected[number % JOBS]!r}")
                self.deleted.add(job)
                client.manage(job, "delete")
                del self.jobs[job]
                self.tally.jobs += 1

    def come_and_go(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.over.is_set():
            jobs = list(self.jobs.items())
            if not jobs:
                time.sleep(0.05)
                continue
            job, number = chance.choice(jobs)
            with contextlib.suppress(ClientError, OSError, http.client.HTTPException):
                read = self._read_over_http if chance.random() < 0.4 else self._read
                said = read(job, chance.uniform(0.0, 2.0))
                if not self.expected[number % JOBS].startswith(said):
                    self.fault(f"of job {job} of question {number % JOBS} was seen {said!r}")
                self.tally.attached += 1

    def _read(self, job: str, seconds: float) -> str:
        until = time.monotonic() + seconds
        said = ""
        with Client(self.daemon.socket) as client:
            answer = client.attach(job)
            try:
                for message in answer.messages():
                    if isinstance(message, Piece):
                        said += message.text
                    if time.monotonic() > until or self.over.is_set():
                        break
            finally:
                answer.detach()
        return said

    def _read_over_http(self, job: str, seconds: float) -> str:
        until = time.monotonic() + seconds
        said = ""
        connection = http.client.HTTPConnection(*self.gateway(), timeout=5)
        try:
            connection.request("GET", f"/jobs/{job}/events", headers={"Authorization": f"Bearer {self.token()}"})
            answer = connection.getresponse()
            while answer.status == 200 and (line := answer.readline()) and time.monotonic() < until:
                if line.startswith(b"data: "):
                    said += json.loads(line[6:]).get("text", "")
        finally:
            connection.close()
        return said

    def gateway(self) -> tuple[str, int]:
        found = self.daemon.text().rsplit("listening at http://", 1)
        host, port = found[-1].split('"', 1)[0].split(":")
        return host, int(port)

    def token(self) -> str:
        return (self.daemon.place / "state" / "potato" / "gateway.token").read_text().strip()

    # the killer

    def kill(self, kills: int, until: float) -> None:
        while self.tally.count < kills and time.monotonic() < until and not self.tally.faults:
            time.sleep(self.chance.uniform(0.0, 0.8))
            victim = self.chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
            if self._killed(victim):
                self.tally.kills[victim] += 1
                self.tally.save()
                if self.tally.count % 20 == 0:
                    click.echo(str(self.tally))
                if victim in ("reader", "worker", "front"):
                    self._wait_for_a_sweep()

    def _killed(self, victim: str) -> bool:
        process = self.daemon.process
        assert process is not None
        if victim in ("supervisor", "group"):
            stages = list(self.daemon.stages().values())
            if victim == "group":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
            _, alive = psutil.wait_procs(stages, timeout=5)
            if alive:
                self.fault(f"{len(alive)} processes outlive their supervisor")
            served = self.daemon.text().count("serving")
            self.daemon.start()
            if self.chance.random() < 0.8:  # else the next one comes at any moment of the start
                self.daemon.until(lambda: self.daemon.text().count("serving") > served or not self.daemon.alive, "serving again", _BACK_S)
            if not self.daemon.alive:
                self.fault(f"the daemon does not start again: {self.daemon.text()[-500:]}")
            return True
        found = self.daemon.stages().get(victim)
        if found is None:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            found.kill()
            return True
        return False

    def _wait_for_a_sweep(self) -> None:
        until = time.monotonic() + _BACK_S
        swept: tuple[int, int] | None = None
        while time.monotonic() < until:
            with contextlib.suppress(ClientError), Client(self.daemon.socket) as client:
                engine = client.status().engine
                now = engine.epoch, engine.sweeps
                if swept is not None and now[0] == swept[0] and now[1] > swept[1] + 1:
                    return
                if swept is None or now[0] != swept[0]:
                    swept = now
            if not self.jobs:
                return
            time.sleep(0.05)
        self.fault("no sweep comes any more")


@contextlib.contextmanager
def running(torture: Torture) -> Iterator[None]:
    threads = [threading.Thread(target=torture.feed, daemon=True)]
    threads += [threading.Thread(target=torture.come_and_go, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        torture.over.set()
        for thread in threads:
            thread.join(30)


def undisturbed(daemon: Daemon, models: int) -> list[str]:
    with Client(daemon.socket) as client:
        texts = []
        for number in range(JOBS):
            asked = spec(number, models)
            texts.append("".join(piece.text for piece in client.generate(**asked)))
        return texts


@click.command()
@click.option("--kills", default=1000, show_default=True, help="Over all runs of the same --resume.")
@click.option("--minutes", default=600.0, help="Ends then, wherever it is.")
@click.option("--resume", type=click.Path(path_type=Path), help="A file where counts are summed.")
@click.option("--models", type=click.IntRange(1, 2), default=1, show_default=True, help="That one daemon serves.")
@click.option("--seed", type=int, help="Of what is killed when; drawn where there is none.")
def main(kills: int, minutes: float, resume: Path | None, models: int, seed: int | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in its background ignore it
    tally = Tally.load(resume)
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="potato-torture-") as place:
        model, cache = make_model(Path(place)), Path(place) / "cache"
        know_rates(cache)
        others = []
        if models == 2:
            (Path(place) / "2").mkdir()
            others = [str(make_model(Path(place) / "2", family="Qwen2", seed=1).rename(Path(place) / NAMES[1])), "--front-switch-after", "3s"]
        with Daemon(model, cache, *others, *FLAGS) as daemon:
            expected = undisturbed(daemon, models)
            torture = Torture(daemon, models, expected, tally, chance)
            with running(torture):
                with contextlib.suppress(KeyboardInterrupt):
                    torture.kill(kills, time.monotonic() + 60 * minutes)
                torture.draining = True
                until = time.monotonic() + _BACK_S
                while torture.jobs and time.monotonic() < until and not tally.faults:  # what is under way is to end as it should
                    time.sleep(0.2)
            daemon.stop()
            if left := leaks(daemon.place):
                torture.fault(f"left behind: {left}")
    tally.save()
    click.echo(f"{tally}")
    sys.exit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
