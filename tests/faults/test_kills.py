"""SIGKILL at random moments while answers are being made: every answer equals the undisturbed one, or is a clear refusal."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from daemons import Daemon, leaks

SMALL = ("--pool-size", "560KiB", "--front-max-context", "320", "--run-restarts", "100")
#: Of the reader or the worker, at least.
KILLS = int(os.environ.get("POTATO_ENGINE_KILLS", "8"))
#: (prompt, seed, temperature): greedy and sampled ones.
ASKED = [("tell me", 1, 0.0), ("once upon a time", 2, 0.8), ("potato", 3, 1.2)]


def _ask(daemon: Daemon, prompt: str, seed: int, temperature: float):
    arguments = [prompt, "--max-tokens", "100", "--seed", str(seed), "--temperature", str(temperature), "--json"]
    return daemon.client(*arguments, timeout=120)


@pytest.fixture(scope="module")
def daemon(tiny_model: Path, probe_cache: Path) -> Iterator[Daemon]:
    """What happens to it in one test must not matter to the next; ends in order for all that. Nothing is guessed: the same text again would be over
    before anything can happen to it."""
    with Daemon(tiny_model, probe_cache, *SMALL, "--speculation-enabled", "false") as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def texts(daemon: Daemon) -> list[list[int]]:
    """Undisturbed."""
    return [_tokens(_ask(daemon, *ask).stdout) for ask in ASKED]


@pytest.mark.timeout(900)
def test_kills_of_the_engine_change_no_token(tiny_model: Path, probe_cache: Path, texts: list[list[int]]):
    """The client sees a pause, not an error: same seed, same text, through every restart, and whatever is guessed."""
    shuffled = random.Random(int(os.environ.get("POTATO_SEED", "1")))
    with Daemon(tiny_model, probe_cache, *SMALL) as daemon, ThreadPoolExecutor(len(ASKED)) as pool:
        kills = 0
        while kills < KILLS:
            asked = [pool.submit(_ask, daemon, *ask) for ask in ASKED]
            for _ in range(shuffled.choice([2, 4, 5])):
                time.sleep(shuffled.uniform(0.0, 1.2))
                victim = daemon.stages().get(shuffled.choice(["reader", "worker"]))
                if victim is not None:
                    victim.kill()
                    kills += 1
            for answer, expected in zip(asked, texts, strict=True):
                done = answer.result()
                assert done.returncode == 0, done.stderr
                assert _tokens(done.stdout) == expected
        assert daemon.stop() == 0


def _tokens(answer: str) -> list[int]:
    return json.loads(answer)["token_ids"]


@pytest.mark.timeout(300)
def test_an_answer_goes_on_when_the_front_is_killed(daemon: Daemon, texts: list[list[int]]):
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            asked = pool.submit(_ask, daemon, *ASKED[1])
            accepted = daemon.text().count("accepted")
            daemon.until(lambda n=accepted: daemon.text().count("accepted") > n, "the job in the log")
            served = daemon.text().count("serving")
            daemon.stages()["front"].kill()
            done = asked.result()
            assert done.returncode == 0, (done.returncode, done.stderr, done.stdout)
            assert _tokens(done.stdout) == texts[1]
            daemon.until(lambda n=served: daemon.text().count("serving") > n, "serving again")


def test_a_killed_supervisor_takes_its_stages_with_it_and_a_killed_process_group_leaves_nothing(tiny_model: Path, probe_cache: Path):
    with Daemon(tiny_model, probe_cache, *SMALL) as daemon:
        stages = list(daemon.stages().values())
        assert len(stages) == 3
        daemon.process.kill()
        _, alive = psutil.wait_procs(stages, timeout=2)
        assert not alive, "the children end within two seconds"
        daemon.process.wait()
        assert leaks(daemon.place, killed=True) == []
        # what a dead daemon left in its directory does not stand in the next one's way
        before = daemon.text().count("serving")
        daemon.start()
        daemon.until(lambda: daemon.text().count("serving") > before, "serving again")
        assert _ask(daemon, *ASKED[0]).returncode == 0
        stages = list(daemon.stages().values())
        os.killpg(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait()
        psutil.wait_procs(stages, timeout=2)
        assert leaks(daemon.place, killed=True) == []


@pytest.mark.parametrize("name", ["reader", "worker", "front"])
def test_a_stage_that_stands_still_for_ten_seconds_only_delays(daemon: Daemon, texts: list[list[int]], name: str):
    with ThreadPoolExecutor(1) as pool:
        accepted = daemon.text().count("accepted")
        asked = pool.submit(_ask, daemon, *ASKED[1])
        daemon.until(lambda: daemon.text().count("accepted") > accepted, "the job in the log")
        stage = daemon.stages()[name]
        stage.suspend()
        time.sleep(10)
        assert name == "front" or not asked.done(), "without it nothing can have gone on"
        stage.resume()
        done = asked.result()
        if name == "front" and done.returncode:  # a client gives a silent front ten seconds, too: either of them may be first
            assert done.returncode == 75 and "Traceback" not in done.stderr, done.stderr
            done = _ask(daemon, *ASKED[1])
        assert done.returncode == 0, done.stderr
        assert _tokens(done.stdout) == texts[1]


def test_an_engine_that_stands_still_for_ever_is_restarted(tiny_model: Path, probe_cache: Path):
    """The deadline is minutes, so it is shortened in the daemon's own process. Nothing is guessed: the same text again would be over at once."""
    still = "import potatod.stages as s; s.SILENT_S = 6.0; from potatod.cli import main; main()"
    with Daemon(tiny_model, probe_cache, *SMALL, "--speculation-enabled", "false", program=still) as daemon, ThreadPoolExecutor(1) as pool:
        expected = _tokens(_ask(daemon, *ASKED[1]).stdout)
        for name in ("worker", "reader"):
            accepted = daemon.text().count("accepted")
            asked = pool.submit(_ask, daemon, *ASKED[1])
            daemon.until(lambda n=accepted: daemon.text().count("accepted") > n, "the job in the log")
            daemon.stages()[name].suspend()
            done = asked.result()
            assert done.returncode == 0, done.stderr
            assert _tokens(done.stdout) == expected
            assert f"{name} has said nothing for 6 s" in daemon.text()


@pytest.mark.timeout(300)
def test_an_engine_that_dies_again_and_again_degrades_and_says_so(tiny_model: Path, probe_cache: Path):
    """Still answers status, refuses work with 75, does not exit."""
    with Daemon(tiny_model, probe_cache, *SMALL[:-1], "3") as daemon:
        for death in (1, 2, 3):  # as many as the configuration allows; the front dies twice below
            daemon.until(lambda: "worker" in daemon.stages(), "a worker")
            assert "degraded" not in daemon.text()
            daemon.stages()["worker"].kill()
            daemon.until(lambda n=death: daemon.text().count("a stage ended") == n, "the death")
        daemon.until(lambda: "degraded" in daemon.text(), "degraded in the log")
        done = daemon.client("hello")
        assert done.returncode == 75 and "SIGKILL" in done.stderr, done.stderr
        for _ in range(2):
            report = json.loads(daemon.client("status", "--json").stdout)
            assert report["engine"]["state"] == "degraded"
            assert set(daemon.stages()) == {"front"}
            front = daemon.stages()["front"]
            front.kill()  # a front that dies then comes back alone
            daemon.until(lambda pid=front.pid: getattr(daemon.stages().get("front"), "pid", pid) != pid, "another front")
            daemon.until(lambda: daemon.client("status", "--json").returncode == 0, "a front that answers")
        assert daemon.alive
        assert daemon.stop() == 0
