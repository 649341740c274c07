"""The whole daemon as processes, used as a person uses it."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from daemons import BIN, Daemon, leaks

#: Below the tiny model: about half of it streams.
SMALL = ("--pool-size", "560KiB", "--front-max-context", "256")


@pytest.fixture(scope="module")
def daemon(tiny_model: Path, probe_cache: Path):
    with Daemon(tiny_model, probe_cache, *SMALL) as running:
        yield running


def test_an_answer_streams_and_ends_with_its_reason(daemon):
    answer = daemon.ask("hello", "--max-tokens", "20")
    assert answer["completion_tokens"] == len(answer["token_ids"]) == 20
    assert answer["finish_reason"] == "length"
    assert set(answer) >= {"id", "text", "token_ids", "finish_reason", "prompt_tokens", "completion_tokens", "s_per_token", "timings"}
    assert set(answer["timings"]) == {"queued_s", "prefill_s", "decode_s"}


def test_the_tokens_are_transformers_own(daemon, tiny_model):
    """Through processes, sockets, pool and template: the same greedy tokens as transformers gives for the same text."""
    import torch
    import transformers

    answer = daemon.ask("What is a potato?", "--max-tokens", "24")
    source = tiny_model.parent / "source"
    model = transformers.AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "What is a potato?"}], add_generation_prompt=True)["input_ids"]
    out = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=0)[0, len(ids) :].tolist()
    assert answer["prompt_tokens"] == len(ids)
    assert answer["token_ids"] == out[: out.index(2)] if 2 in out else answer["token_ids"] == out


def test_a_seed_gives_the_same_text_alone_and_in_company(daemon):
    ask = ("Once upon", "--max-tokens", "30", "--temperature", "0.9", "--seed", "7")
    alone = daemon.ask(*ask)
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(daemon.ask, f"other {n}", "--max-tokens", "25", "--temperature", "1.1", "--seed", f"{n}") for n in range(3)]
        together = pool.submit(daemon.ask, *ask).result()
        assert all(other.result()["completion_tokens"] for other in others)
    assert together["token_ids"] == alone["token_ids"]
    assert daemon.ask(*ask[:-1], "8")["token_ids"] != alone["token_ids"]


def test_without_a_seed_one_is_drawn_and_reported_and_gives_the_text_again(daemon):
    drawn = daemon.ask("x", "--max-tokens", "12", "--temperature", "1")
    again = daemon.ask("x", "--max-tokens", "12", "--temperature", "1", "--seed", str(drawn["seed"]))
    assert again["token_ids"] == drawn["token_ids"]


def test_more_answers_than_places_wait_and_all_come(daemon):
    with ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(daemon.ask, f"number {n}", "--max-tokens", "10") for n in range(9)]
        assert [one.result()["completion_tokens"] for one in asked] == [10] * 9


def test_a_prompt_that_nearly_fills_the_context_is_answered(daemon):
    answer = daemon.ask("potato " * 30, "--max-tokens", "5")
    assert answer["prompt_tokens"] > 200
    assert answer["completion_tokens"] == 5


def test_stdin_is_the_prompt_or_joins_it(daemon):
    from_stdin = daemon.client("--json", "--max-tokens", "8", stdin="hello")
    assert json.loads(from_stdin.stdout)["token_ids"] == daemon.ask("hello", "--max-tokens", "8")["token_ids"]
    joined = daemon.client("explain this", "--json", "--max-tokens", "4", stdin="some code")
    assert json.loads(joined.stdout)["prompt_tokens"] > len("explain this") + len("some code")


def test_a_raw_prompt_skips_the_template(daemon):
    assert daemon.ask("abc", "--raw", "--max-tokens", "4")["prompt_tokens"] <= 4


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["x" * 5000], 64, "context"),
        (["--max-tokens", "0", "x"], 64, "max"),
        (["--temperatur", "1", "x"], 64, "--temperature"),
        (["--socket", "tcp://127.0.0.1:9", "x"], 64, "tcp"),
        (["--socket", "ipc:///nowhere/at/all.sock", "x"], 69, "potatod start"),
        (["  "], 64, "nothing to ask"),
    ],
)
def test_a_bad_request_is_one_sentence_and_an_exit_code(daemon, arguments, code, says):
    done = daemon.client(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3


def test_status_says_what_runs(daemon):
    daemon.ask("x", "--max-tokens", "3")
    done = subprocess.run([BIN / "potatod", "status", "--socket", daemon.socket, "--json"], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["engine"]["state"] == "up" and report["engine"]["sweeps"] > 0
    assert {stage["name"] for stage in report["stages"]} == {"supervisor", "front", "reader", "worker"}
    assert all(stage["rss_bytes"] > 1 << 20 for stage in report["stages"])
    assert report["model"]["streamed_bytes_per_sweep"] > 0
    assert daemon.client("status").stdout.startswith("potatod ")


def test_a_trace_shows_what_every_stage_did(daemon, tmp_path):
    out = tmp_path / "out.json"
    command = [BIN / "potatod", "trace", str(out), "--seconds", "3", "--config", str(daemon.place / "potatod.toml")]
    environment = {**os.environ, "POTATO_RUN__DIRECTORY": str(daemon.directory)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as watching:
        while watching.poll() is None:
            daemon.ask("x", "--max-tokens", "8")
        said, errors = watching.communicate()
    assert watching.returncode == 0, errors
    assert "computing" in said and "reading" in said
    events = json.loads(out.read_text())["traceEvents"]
    threads = {e["args"]["name"] for e in events if e["ph"] == "M"}
    assert {"reader", "worker", "front", "compute", "wait", "ring", "request 0", "sweep", "sample"} <= threads
    assert {"layer 0", "layer 5", "head"} <= {e["name"] for e in events if e["ph"] == "X"}


def test_processes_say_in_their_titles_what_they_are(daemon):
    assert set(daemon.stages()) == {"reader", "worker", "front"}
    title = " ".join(psutil.Process(daemon.process.pid).cmdline())
    assert title.startswith("potatod: supervisor")


def test_torch_is_only_in_the_worker(daemon):
    """By what the live processes have mapped, not by what the sources say."""
    loaded = {name: "libtorch" in Path(f"/proc/{stage.pid}/maps").read_text() for name, stage in daemon.stages().items()}
    loaded["supervisor"] = "libtorch" in Path(f"/proc/{daemon.process.pid}/maps").read_text()
    assert loaded == {"worker": True, "reader": False, "front": False, "supervisor": False}


def test_ctrl_c_cancels_in_the_daemon(daemon):
    client = subprocess.Popen(
        [BIN / "potato-client", "--socket", daemon.socket, "go on for long", "--max-tokens", "200"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert client.stdout.read(1)
    client.send_signal(signal.SIGINT)
    assert client.wait(20) == 130
    client.stdout.close(), client.stderr.close()
    daemon.until(lambda: "reason=cancelled" in daemon.text(), "the cancelled job in the log", 20)


def test_the_job_of_a_client_that_is_killed_goes_on_and_can_be_attached_to(daemon):
    asked = ["go on for long", "--max-tokens", "200", "--seed", "5", "--temperature", "1"]
    whole = daemon.client(*asked).stdout
    client = subprocess.Popen([BIN / "potato-client", "--socket", daemon.socket, *asked], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        assert client.stdout.read(1)
    finally:
        client.kill()
        client.stdout.close()
        client.wait(10)
    job = json.loads(daemon.client("jobs", "--json", "--limit", "1").stdout)["job"]
    attached = daemon.client("attach", job[:8])
    assert (attached.returncode, attached.stdout) == (0, whole)


def test_jobs_wait_while_the_disk_takes_nothing_and_go_on_with_the_same_tokens(daemon):
    """As a quota that is used up: the front's files may not become longer."""
    ask = ("Once upon a disk", "--max-tokens", "200", "--temperature", "0")
    front, unlimited = daemon.stages()["front"].pid, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with ThreadPoolExecutor(1) as pool:
        accepted = daemon.text().count("accepted")
        asked = pool.submit(daemon.ask, *ask)
        daemon.until(lambda: daemon.text().count("accepted") > accepted, "the job in the log")
        resource.prlimit(front, resource.RLIMIT_FSIZE, (len(daemon.text()) + (32 << 10), resource.RLIM_INFINITY))
        try:
            daemon.until(lambda: "nothing is accepted or computed now: the job database" in daemon.client("status").stdout, "trouble in the status")
            refused = daemon.client("x")
            assert refused.returncode == 75 and "nothing can be accepted now: the job database" in refused.stderr, refused.stderr
            assert not asked.done()
        finally:
            resource.prlimit(front, resource.RLIMIT_FSIZE, unlimited)
        answer = asked.result()
    assert answer["token_ids"] == daemon.ask(*ask)["token_ids"]
    assert "nothing is accepted or computed now" not in daemon.client("status").stdout


def test_a_job_outlives_the_daemon_that_is_killed_with_all_its_processes(tiny_model, probe_cache):
    with Daemon(tiny_model, probe_cache) as daemon:
        asked = ["go on for long", "--max-tokens", "300", "--seed", "5", "--temperature", "1"]
        whole = daemon.client(*asked).stdout
        jobs = [daemon.client("submit", *asked).stdout.strip() for _ in range(2)]
        for _ in range(2):
            served = daemon.text().count("serving")
            os.killpg(daemon.process.pid, signal.SIGKILL)
            daemon.process.wait()
            daemon.start()
            daemon.until(lambda n=served: daemon.text().count("serving") > n, "serving again")
        for job in jobs:
            attached = daemon.client("attach", job)
            assert (attached.returncode, attached.stdout) == (0, whole), attached.stderr
        states = [json.loads(line)["state"] for line in daemon.client("jobs", "--json").stdout.splitlines()]
        assert states == ["finished"] * 3


def test_a_second_daemon_in_the_same_place_is_refused_with_the_pid_of_the_first(daemon, tiny_model):
    done = subprocess.run(
        [BIN / "potatod", "start", tiny_model, "--run-directory", daemon.directory, "--front-socket", daemon.socket],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 69
    assert str(daemon.process.pid) in done.stderr and "Traceback" not in done.stderr
    assert daemon.alive


class Ended(NamedTuple):
    """What was seen of a daemon that was stopped while a client waited."""

    code: int
    stages_alive: bool
    leaks: list[str]
    left: list[str]
    log: str
    client: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def ended(tiny_model: Path, probe_cache: Path) -> Ended:
    with Daemon(tiny_model, probe_cache, *SMALL, "--log-format", "json") as running, ThreadPoolExecutor(1) as pool:
        running.ask("x", "--max-tokens", "2")
        stages, accepted = running.stages(), running.text().count("accepted")
        waiting = pool.submit(running.client, "x", "--max-tokens", "240")
        running.until(lambda: running.text().count("accepted") > accepted, "the job in the log")
        code = running.stop()
        alive = any(stage.is_running() for stage in stages.values())
        left = sorted(path.name for path in running.directory.iterdir())
        client = waiting.result()  # it has the place in its environment, as what leaks has
        return Ended(code, alive, leaks(running.place), left, running.text(), client)


def test_sigterm_ends_everything_in_order_and_leaves_nothing(ended):
    assert (ended.code, ended.stages_alive, ended.leaks, ended.left) == (0, False, [], ["lock"])


def test_json_logs_are_one_object_a_line(ended):
    assert {json.loads(line)["stage"] for line in ended.log.splitlines()} >= {"supervisor", "front", "reader"}


def test_a_client_that_waits_while_the_daemon_stops_gets_75(ended):
    assert ended.client.returncode == 75, ended.client.stderr
    assert "Traceback" not in ended.client.stderr


@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_the_other_kernels_serve_too(tiny_model, probe_cache, daemon, kernels):
    with Daemon(tiny_model, probe_cache, *SMALL, "--worker-kernels", kernels) as running:
        assert running.ask("hello", "--max-tokens", "20")["token_ids"] == daemon.ask("hello", "--max-tokens", "20")["token_ids"]


def test_the_first_start_of_all_tries_out_disk_and_processor_and_says_what_it_expects(tiny_model, tmp_path):
    with Daemon(tiny_model, tmp_path) as daemon:
        said = daemon.text()
        assert "trying out how fast this machine computes in float32" in said and "trying out how fast this disk is" in said
        assert "s_per_token=" in said and "waits_for=" in said
        daemon.ask("x", "--max-tokens", "6")
        status = subprocess.run([BIN / "potatod", "status", "--socket", daemon.socket], capture_output=True, text=True, check=True).stdout
        assert "planned)" in status
    assert {path.parent.name for path in (tmp_path / "potato").glob("*/*.json")} == {"probe", "compute", "disk"}


def test_everything_resident_reads_the_disk_once(tiny_model, probe_cache):
    with Daemon(tiny_model, probe_cache, "--pool-size", "64MiB", "--front-max-context", "256") as running:
        running.ask("x", "--max-tokens", "20")
        report = json.loads(running.client("status", "--json").stdout)
        assert report["model"]["streamed_bytes_per_sweep"] == 0
        reader = running.stages()["reader"]
        before = reader.io_counters().read_bytes
        running.ask("y", "--max-tokens", "20")
        assert reader.io_counters().read_bytes == before


def test_start_to_first_token_is_told_step_by_step(daemon):
    text = daemon.text()
    assert re.search(r"probe_s=\d", text) and "built in" in text and "first pass read" in text


def test_the_pool_too_small_says_the_smallest_that_works_and_that_one_works(tiny_model, probe_cache):
    refused = subprocess.run(
        [BIN / "potatod", "start", tiny_model, "--pool-size", "64KiB", "--worker-threads", "1", "--run-directory", "/tmp/pt-none", "--front-socket",
         "ipc:///tmp/pt-none/s"], capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "XDG_CACHE_HOME": str(probe_cache)},
    )  # fmt: skip
    assert refused.returncode == 71, refused.stderr
    least = re.search(r"smallest that works is (\d+KiB)", refused.stderr)[1]
    with Daemon(tiny_model, probe_cache, "--pool-size", least, "--front-max-context", "256") as running:
        assert running.ask("hello", "--max-tokens", "5")["completion_tokens"] == 5
