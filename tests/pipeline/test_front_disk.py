"""A front whose disk is full: nothing is accepted or computed meanwhile, everybody is told why, and with room again all goes on by itself."""

from __future__ import annotations

import functools
import itertools
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from potato_client.protocol import Attach, List, Manage, Status

from .front_harness import Client, Front, Heard

StartFront = Callable[..., Front]
ASKED: dict[str, dict[str, Any]] = {"greedy": {}, "sampled": {"temperature": 0.9, "seed": 11, "repetition_penalty": 1.1}}
TOKENS = 120


class Quota:
    """No file of the front may become longer than the database's log is: SQLite calls it an input/output error, as it does where a quota is used up."""

    said = "disk I/O error"

    def __init__(self, place: Path) -> None:
        self.path = place / "jobs.db"

    def fill(self, front: Front) -> None:
        length = self.path.with_name("jobs.db-wal").stat().st_size
        resource.prlimit(front.process.pid, resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))

    def make_room(self, front: Front) -> None:
        if front.process.poll() is None:
            resource.prlimit(front.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self) -> None:
        """It went with the front."""


class SmallDisk:
    """A file system of its own, of a few megabytes, that something else has filled."""

    said = "the disk is full"

    def __init__(self, place: Path) -> None:
        self._place = place / "disk"
        self._place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "potato", self._place], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk of its own may be mounted here: {done.stderr.strip()}")
        self.path, self._other = self._place / "jobs.db", self._place / "somebody else's"

    def fill(self, front: Front) -> None:
        with self._other.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        assert os.statvfs(self._place).f_bavail == 0

    def make_room(self, front: Front) -> None:
        self._other.unlink()

    def close(self) -> None:
        subprocess.run(["umount", "-l", self._place], check=True)


Disk = Quota | SmallDisk


@pytest.fixture(params=[Quota, SmallDisk], ids=["quota", "full"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    made: Disk = request.param(tmp_path)
    yield made
    made.close()


@pytest.fixture
def start(disk: Disk, start: StartFront) -> StartFront:
    """In this order: fronts end before their disk does."""
    return functools.partial(start, speculation=False, jobs={"path": str(disk.path)})


def asked(client: Client, options: dict[str, Any]) -> Heard:
    """A job that has begun to say something."""
    client.ask("?abc|" if options else "abc|", max_tokens=TOKENS, **options)
    return client.hear(Heard(), "Piece", 5)


def hear_that_it_is_held(client: Client, heard: Heard) -> str:
    """Why."""
    while not any(said.why for said in heard.of("Progress")):
        client.hear(heard, "Progress", len(heard.of("Progress")) + 1)
    held = heard.of("Progress")[-1]
    assert held.state == "paused"
    why: str = held.why
    return why


def without_gaps(heard: Heard) -> bool:
    ends = itertools.accumulate((len(piece.token_ids) for piece in heard.of("Piece")), initial=0)
    return [piece.index for piece in heard.of("Piece")] == list(ends)[:-1]


@pytest.mark.parametrize("options", ASKED.values(), ids=ASKED.keys())
def test_jobs_wait_for_room_whoever_follows_is_told_and_the_text_is_that_of_an_undisturbed_one(
    start: StartFront, disk: Disk, options: dict[str, Any]
) -> None:
    front = start()
    worker = front.engine_up(delay_s=0.01)
    whole = front.client().answer("?abc|" if options else "abc|", max_tokens=TOKENS, **options)
    client, other = front.client(), front.client()
    heard = asked(client, options)
    job = heard.of("Accepted")[0].job
    disk.fill(front)
    why = hear_that_it_is_held(client, heard)
    assert f"the job database {disk.path} cannot be written: {disk.said}" in why

    other.ask("xy|", max_tokens=2)
    refused = other.hear(Heard(), "Refused").last
    assert (refused.code, refused.exit_code, refused.message) == ("storage", 75, f"nothing can be accepted now: {why}")
    assert other.request(lambda number: Manage(number, job, "cancel")).code == "storage"
    assert other.request(lambda number: List(number)).reports[0].job == job, "what is on the disk can be read"
    report = other.request(Status)
    assert (report.queue.trouble, report.queue.running, report.engine.state) == (why, 1, "up")
    sweeps = len(worker.sweeps)
    time.sleep(1.2)  # it is tried again meanwhile
    heard.messages += client.waiting()
    assert (len(worker.sweeps), heard.text) == (sweeps, whole.text[: len(heard.text)])

    disk.make_room(front)
    client.hear(heard, "Finished")
    assert (heard.text, heard.token_ids, heard.last.reason) == (whole.text, whole.token_ids, "length")
    assert without_gaps(heard)
    assert other.attach(job).text == whole.text
    assert other.answer("xy|", max_tokens=2).text == "xy"
    assert other.request(Status).queue.trouble == ""
    assert worker.wrong is None
    assert [front.log.count(line) for line in ("jobs wait: nothing is accepted", "jobs go on: they can be written")] == [1, 1]


def test_who_attaches_meanwhile_sees_what_is_on_the_disk_and_why_there_is_no_more(start: StartFront, disk: Disk) -> None:
    front = start()
    front.engine_up(delay_s=0.01)
    client, late = front.client(), front.client()
    heard = asked(client, {})
    job = heard.of("Accepted")[0].job
    disk.fill(front)
    why = hear_that_it_is_held(client, heard)
    late.send(Attach(1, job))
    seen = Heard()
    assert hear_that_it_is_held(late, seen) == why
    heard.messages += client.waiting()
    assert seen.text == heard.text, "nothing more than the others were shown, and nothing less"
    disk.make_room(front)
    for who, said in ((client, heard), (late, seen)):
        who.hear(said, "Finished")
        assert said.text == ("abc" * TOKENS)[:TOKENS]
        assert without_gaps(said)


@pytest.mark.parametrize("in_order", [False, True], ids=["killed", "stopped"])
def test_a_front_that_ends_while_its_disk_is_full_leaves_its_jobs_to_the_next_one(start: StartFront, disk: Disk, in_order: bool) -> None:
    front = start()
    front.engine_up(delay_s=0.01)
    whole = front.client().answer("?abc|", max_tokens=TOKENS, **ASKED["sampled"])
    client = front.client()
    heard = asked(client, ASKED["sampled"])
    job = heard.of("Accepted")[0].job
    disk.fill(front)
    hear_that_it_is_held(client, heard)
    if in_order:
        assert front.stop() == 0
        assert client.hear(heard, "Refused").last.code == "stopping"
    else:
        front.process.kill()
        front.process.wait()
    front.close()
    disk.make_room(front)
    again = start()
    again.engine_up()
    rest = again.client().attach(job, tokens=len(heard.token_ids), text_chars=len(heard.text))
    assert (heard.text + rest.text, heard.token_ids + rest.token_ids) == (whole.text, whole.token_ids)


def test_a_request_that_is_the_first_to_meet_the_full_disk_is_not_accepted_and_may_be_asked_again(start: StartFront, disk: Disk) -> None:
    front = start()
    front.engine_up()
    client = front.client()
    disk.fill(front)
    for _ in range(2):
        client.ask("abc|", max_tokens=4, key="k")
        refused = client.receive()
        assert (refused.code, refused.job) == ("storage", None)
        assert "this was not accepted" in refused.message and disk.said in refused.message
    assert client.request(lambda number: List(number)).reports == ()
    disk.make_room(front)
    answer = client.answer("abc|", max_tokens=4, key="k")
    assert (answer.of("Accepted")[0].known, answer.text) == (False, "abca")
