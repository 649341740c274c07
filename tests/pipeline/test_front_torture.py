"""The front killed at any moment while jobs run and clients come and go: nothing that was accepted is lost, no token that was seen changes.

``POTATO_KILLS`` says how often (make torture); texts are those of jobs that nobody disturbed.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from potato_client.protocol import Attach

from .front_harness import Client, Front, Heard, start_front

KILLS = int(os.environ.get("POTATO_KILLS", "40"))
JOBS = 8
TOKENS = 200


def prompt(number: int) -> str:
    return f"?{'xyz'[number % 3]}{number}|" if number % 2 else f"{'abcdefgh'[: 2 + number % 5]}|"


def options(number: int) -> dict[str, object]:
    return {"max_tokens": TOKENS, "temperature": 0.9 if number % 4 == 1 else 0.0, "seed": number}


def undisturbed(place: Path) -> list[tuple[str, list[int]]]:
    front = start_front(place)
    try:
        front.engine_up()
        answers = [front.client().answer(prompt(number), **options(number)) for number in range(JOBS)]
        return [(answer.text, answer.token_ids) for answer in answers]
    finally:
        front.close()


class Watcher:
    """A client that follows one job until its front is gone, and keeps what it saw."""

    def __init__(self, client: Client, job: str) -> None:
        self._client = client
        self.heard = Heard()
        client.send(Attach(1, job))

    def look(self) -> None:
        self.heard.messages += self._client.waiting()


def test_whatever_moment_the_front_is_killed_at_no_job_is_lost_and_no_token_changes(tmp_path: Path) -> None:
    chance = random.Random(int(os.environ.get("POTATO_SEED", "1")))
    (tmp_path / "alone").mkdir()
    expected = undisturbed(tmp_path / "alone")
    jobs: dict[str, int] = {}
    numbers, kills = 0, 0
    while kills < KILLS or jobs:
        front = start_front(tmp_path)
        try:
            front.engine_up(delay_s=0.002)
            client = front.client()
            while len(jobs) < JOBS and kills < KILLS:
                number = numbers % JOBS
                client.ask(prompt(number), key=f"key {numbers}", follow=False, **options(number))
                jobs[client.hear(Heard(), "Accepted").last.job] = number
                numbers += 1
            watchers = {job: Watcher(front.client(), job) for job in chance.sample(sorted(jobs), min(4, len(jobs)))}
            if kills < KILLS:
                kill_somewhen(front, chance, list(watchers.values()))
                kills += 1
            else:
                for job in jobs:
                    front.client().attach(job)
            for job, watcher in watchers.items():
                watcher.look()
                text, ids = expected[jobs[job]]
                assert text.startswith(watcher.heard.text)
                assert ids[: len(watcher.heard.token_ids)] == watcher.heard.token_ids
            seen = {job: watcher.heard for job, watcher in watchers.items()}
        finally:
            front.close()
        jobs = whole_answers(tmp_path, jobs, expected, seen)


def kill_somewhen(front: Front, chance: random.Random, watchers: list[Watcher]) -> None:
    until = time.monotonic() + chance.random() * 0.15
    if chance.random() < 0.3:
        front.engine_dies()
        front.engine_up(delay_s=0.002)
    while time.monotonic() < until:
        for watcher in watchers:
            watcher.look()
        time.sleep(0.002)
    front.process.send_signal(signal.SIGKILL)
    front.process.wait()


def whole_answers(place: Path, jobs: dict[str, int], expected: list[tuple[str, list[int]]], seen: dict[str, Heard]) -> dict[str, int]:
    """Looks into the database that the dead front left: all jobs are there, with what was seen of them; returns those that are not over."""
    from potatod.jobs.database import Database

    database = Database(place / "jobs.db")
    try:
        there = {job.id: job for job in database.all()}
        left = {}
        for id, number in jobs.items():
            job = there[id]
            answered = database.answered(job.number)
            text, ids = expected[number]
            assert list(answered.ids) == ids[: len(answered.ids)]
            assert text.startswith(answered.text)
            if id in seen:
                assert answered.text.startswith(seen[id].text), "what was seen was on disk"
            if job.state.over:
                assert (job.reason, answered.text) == ("length", text), job
            else:
                left[id] = number
        return left
    finally:
        database.close()
