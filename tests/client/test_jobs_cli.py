"""The commands about jobs as programs, against a front that says what a test wants."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potato_client.protocol import Accepted, Attach, Detach, Generate, List, Manage, Show
from potato_client.question import ChatMessage

from .conftest import StartFront
from .fake_front import Said, job_report, pieces, refused
from .test_cli import PROGRAM, Run, asked, environment, run, sentence

__all__ = ["environment", "run"]


def test_submit_prints_the_id_and_returns(run: Run, start: StartFront) -> None:
    front = start()
    done = run("submit", "Why?", "--max-tokens", "5", "--key", "mine")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"job-1\n", b"")
    generate = asked(front)
    assert (generate.follow, generate.key, generate.options.max_tokens) == (False, "mine", 5)
    time.sleep(0.1)
    assert front.of(Manage) == [], "nobody cancels it"


def test_a_file_of_questions(run: Run, start: StartFront, place: Path) -> None:
    front = start()
    lines: list[dict[str, Any]] = [
        {"prompt": "one", "max_tokens": 3}, {"messages": [{"role": "user", "content": "two"}], "priority": "interactive"},
        {"prompt": "three", "raw": True, "custom_id": "c"},
    ]  # fmt: skip
    file = place / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    done = run("submit", "--batch", str(file), "--temperature", "0.5")
    assert (done.returncode, done.stdout) == (0, b"job-1\njob-2\njob-3\n"), done.stderr
    one, two, three = front.of(Generate)
    assert [each.options.temperature for each in (one, two, three)] == [0.5, 0.5, 0.5]
    assert (one.options.max_tokens, one.options.priority, two.options.priority) == (3, "batch", "interactive")
    assert (two.messages, three.prompt, three.key) == ((ChatMessage("user", "two"),), "three", "c")
    assert one.key
    assert one.key != two.key
    run("submit", "--batch", str(file), "--temperature", "0.5")
    assert [each.key for each in front.of(Generate)[3:]] == [one.key, two.key, "c"], "the same file is the same jobs"
    run("submit", "--batch", str(file), "--temperature", "0.5", "--anew")
    assert front.of(Generate)[6].key not in (one.key, "")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2: is no JSON object"),
        ("{}", 'line 2: needs either "prompt" or "messages"'),
        ('{"prompt": "x", "messages": []}', 'line 2: needs either'),
        ('{"prompt": "x", "max_token": 3}', "did you mean 'max_tokens'"),
        ('{"prompt": "x", "temperature": -1}', "temperature must be"),
        ('{"prompt": 3}', "line 2"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "line 2: "),
        ('{"prompt": "x", "raw": "false"}', "line 2: raw must be true or false"),
        ('{"prompt": "x", "key": 5}', "line 2: key must be a text"),
        ('{"prompt": "x", "key": "k"}\n{"prompt": "y", "key": "k"}', "lines 2 and 3 have the same key"),
    ],
)
def test_a_file_with_a_wrong_line_asks_nothing(run: Run, start: StartFront, line: str, why: str) -> None:
    front = start()
    done = run("submit", "--batch", "-", stdin=f'{{"prompt": "fine"}}\n{line}\n'.encode())
    assert why in sentence(done, 64)
    assert front.of(Generate) == []


def test_a_file_that_the_daemon_takes_in_part(run: Run, start: StartFront) -> None:
    def script(generate: Generate, job: str) -> Iterator[Said]:
        if job == "job-2":
            yield refused("queue_full", "the queue is full", request=generate.request)
        else:
            yield Accepted(generate.request, job, 42, 7, 0)

    start(script)
    done = run("submit", "--batch", "-", stdin=b'{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    assert (done.returncode, done.stdout) == (75, b"job-1\n")
    assert b"line 2: the queue is full (1 of 3 were accepted)" in done.stderr


def test_what_unicode_calls_the_end_of_a_line_may_stand_in_a_question(run: Run, start: StartFront) -> None:
    front = start()
    line = json.dumps({"prompt": "one\u2028two\x85three", "key": None}, ensure_ascii=False)
    assert run("submit", "--batch", "-", stdin=f"\ufeff{line}\r\n".encode()).returncode == 0
    assert asked(front).messages[0].content == "one\u2028two\x85three"
    assert len(asked(front).key) > 20
    run("submit", "--batch", "-", "--max-tokens", "5", stdin=f"\ufeff{line}\r\n".encode())
    assert front.of(Generate)[1].key != front.of(Generate)[0].key, "with other options it is another request"


def test_attach_shows_what_there_is_and_what_comes(run: Run, start: StartFront) -> None:
    front = start()
    done = run("attach", "3f2a")
    assert (done.returncode, done.stdout) == (0, b"The capital is Paris.\n")
    assert front.of(Attach)[0].job == "3f2a"


def goes_on(attach: Attach, job: str) -> Iterator[Said]:
    yield Accepted(attach.request, job, 42, 7, 0, known=True)
    yield from pieces(job, *["word "] * 10_000, every_s=0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["Ctrl-C", "Ctrl-\\"])
def test_who_is_attached_leaves_and_the_job_goes_on(environment: dict[str, str], start: StartFront, number: int) -> None:
    front = start()
    front.attach_script = goes_on
    with subprocess.Popen([PROGRAM, "attach", "3f2a"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as program:
        front.wait_for(Attach)
        time.sleep(0.5)
        program.send_signal(number)
        out, err = program.communicate(timeout=20)
    assert program.returncode == 0
    assert b"word" in out
    assert b"job 3f2a goes on: potato-client attach 3f2a" in err
    assert front.wait_for(Detach).job == "3f2a"
    assert front.of(Manage) == []


def silent(attach: Attach, job: str) -> Iterator[Said]:
    yield 1.5
    yield from goes_on(attach, job)


def test_who_leaves_before_the_daemon_has_answered_cancels_nothing(environment: dict[str, str], start: StartFront) -> None:
    front = start()
    front.attach_script = silent
    with subprocess.Popen([PROGRAM, "attach", "3f2a"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as program:
        front.wait_for(Attach)
        time.sleep(0.3)
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=20)
    time.sleep(1.5)
    assert (program.returncode, front.of(Manage)) == (0, [])


def endless(generate: Generate, job: str) -> Iterator[Said]:
    yield Accepted(generate.request, job, 42, 7, 0)
    yield from pieces(job, *["word "] * 10_000, every_s=0.01)


def heard() -> None:
    """Whoever started us may have had them ignored, as nohup does."""
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_but_ctrl_c_cancels_what_was_asked(environment: dict[str, str], start: StartFront, number: int) -> None:
    front = start(endless)
    command: Any = {"args": [PROGRAM, "x"], "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    with subprocess.Popen(**command, preexec_fn=heard) as program:
        front.wait_for(Generate)
        time.sleep(0.5)
        program.send_signal(number)
        program.communicate(timeout=20)
    time.sleep(0.2)
    assert front.of(Manage) == []
    assert program.returncode == (0 if number == signal.SIGQUIT else -number)


def test_jobs_are_a_table_and_lines_of_json(run: Run, start: StartFront) -> None:
    front = start()
    front.reports = [
        job_report(3, "queued", place=1, title="a\x1b[2J question"),
        job_report(2, "running", s_per_token=2.5, eta_s=125.0, eta_least_s=100.0, eta_most_s=200.0),
        job_report(1, "failed", code="poisoned", why="three times"),
    ]  # fmt: skip
    lines = run("jobs").stdout.decode().splitlines()
    assert lines[0].split() == ["JOB", "STATE", "PLACE", "TOKENS", "S/TOKEN", "ENDS", "AGE", "QUESTION"]
    assert lines[1].split()[:4] == ["00000000", "queued", "1", "3/100"]
    assert "\x1b" not in lines[1]
    assert "2.5" in lines[2]
    assert "in 2 min 5 s (1-4 min)" in lines[2]
    assert "poisoned" in lines[3]
    done = run("jobs", "--json", "--state", "running", "--state", "failed")
    assert [json.loads(line)["number"] for line in done.stdout.splitlines()] == [2, 1]
    assert front.of(List)[-1].states == ("running", "failed")
    front.reports = []
    assert run("jobs").stdout == b"there are no jobs\n"


def test_many_jobs_come_page_by_page(run: Run, start: StartFront) -> None:
    front = start()
    front.reports = [job_report(number, "finished") for number in range(2500, 0, -1)]
    assert len(run("jobs", "--json", "--all").stdout.splitlines()) == 2500
    assert [message.before for message in front.of(List)] == [0, 1501, 501]
    assert len(run("jobs", "--json", "--limit", "7").stdout.splitlines()) == 7


def test_a_job_is_shown_to_people_and_programs(run: Run, start: StartFront) -> None:
    front = start()
    shown = run("show", "3f2a").stdout.decode()
    assert "state     running" in shown
    assert "[user]\nWhy?" in shown
    assert "[answer]\nThe capital is Paris." in shown
    page = json.loads(run("show", "3f2a", "--json").stdout)
    assert (page["text"], page["token_ids"], page["messages"][0]["content"]) == ("The capital is Paris.", [100, 101, 102], "Why?")
    assert front.of(Show)[0].job == "3f2a"
    assert front.of(Manage) == [], "who looks cancels nothing"


def test_an_export_is_the_oldest_first(run: Run, start: StartFront) -> None:
    start()
    lines = [json.loads(line) for line in run("export").stdout.splitlines()]
    assert len(lines) == 2
    assert all((line["text"], line["tools"]) == ("The capital is Paris.", [{"name": "look"}]) for line in lines)
    assert len(run("export", "3f2a").stdout.splitlines()) == 1


@pytest.mark.parametrize("action", ["cancel", "pause", "resume", "retry", "delete"])
def test_jobs_are_managed_by_their_ids(run: Run, start: StartFront, action: str) -> None:
    front = start()
    done = run(action, "3f2a", "77")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"deleted" if action == "delete" else b"running") == 2
    assert [(message.job, message.action) for message in front.of(Manage)] == [("3f2a", action), ("77", action)]
    assert b"Missing argument" in run(action).stderr


def test_a_batch_on_stdin_that_is_empty(run: Run, start: StartFront) -> None:
    start()
    assert "the file has no lines" in sentence(run("submit", "--batch", "-"), 64)
    assert "there is no prompt" in sentence(run("submit", "--batch", "-", "x"), 64)
    assert "cannot read" in sentence(run("submit", "--batch", "/nowhere/at/all"), 64)
