"""Jobs of a front as a process: they outlive clients, engines and the front itself, and are managed from anywhere."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from potato_client.protocol import (
    PROTOCOL_VERSION,
    Alive,
    Attach,
    Described,
    Detach,
    Hello,
    List,
    Listed,
    Manage,
    Managed,
    Progress,
    Refused,
    Show,
    Status,
    Welcome,
)
from potatod.messages import Failed, Reload
from potatod.stage import Boot

from .front_harness import Client, Front, Heard, front

StartFront = Callable[..., Front]


def submit(client: Client, prompt: str, **options: Any) -> str:
    """The job's id."""
    client.ask(prompt, follow=False, **options)
    job: str = client.hear(Heard(), "Accepted").last.job
    return job


def manage(client: Client, job: str, action: Any) -> Any:
    return client.request(lambda request: Manage(request, job, action))


def listed(client: Client, *states: Any, **page: int) -> Listed:
    found = client.request(lambda request: List(request, states, **page))
    assert isinstance(found, Listed)
    return found


def killed(begun: Front) -> None:
    begun.process.send_signal(signal.SIGKILL)
    begun.process.wait()
    begun.close()


def dies_in_a_sweep(begun: Front) -> None:
    worker = begun.engine_up(delay_s=0.2)
    while not worker.sweeps:
        time.sleep(0.01)
    begun.engine_dies()


# a front that is killed


COUNTED = {"frequency_penalty": 0.4, "presence_penalty": 0.3, "logit_bias": ((ord("q"), 2.0), (ord("z"), -100))}


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.9, "seed": 11, "repetition_penalty": 1.1}, COUNTED], ids=["greedy", "sampled", "counted"]
)
def test_an_answer_goes_on_where_it_was_when_the_front_is_killed(start: StartFront, options: dict[str, Any]) -> None:
    first = start(speculation=False)
    first.engine_up(delay_s=0.01)
    prompt = "?xyz|" if options else "abc|"
    whole = first.client().answer(prompt, max_tokens=60, **options)
    client = first.client()
    client.ask(prompt, max_tokens=60, **options)
    heard = client.hear(Heard(), "Piece", 7)
    job, before = heard.of("Accepted")[0].job, heard.text
    killed(first)
    second = start(speculation=False)
    second.engine_up()
    again = second.client().attach(job)
    assert again.text == whole.text
    assert again.token_ids == whole.token_ids
    assert again.text.startswith(before)
    assert again.of("Accepted")[0].seed == heard.of("Accepted")[0].seed
    rest = second.client().attach(job, tokens=len(heard.token_ids), text_chars=len(before))
    assert before + rest.text == whole.text


def test_jobs_that_wait_or_are_paused_are_there_after_a_kill(start: StartFront) -> None:
    first = start(max_sequences=1)
    client = first.client()
    jobs = [submit(client, f"{name}|", max_tokens=4) for name in ("ab", "cd", "ef")]
    manage(client, jobs[1], "pause")
    killed(first)
    second = start(max_sequences=1)
    client = second.client()
    assert [(report.job, report.state, report.place) for report in reversed(listed(client).reports)] == [
        (jobs[0], "queued", 0), (jobs[1], "paused", 0), (jobs[2], "queued", 1),
    ]  # fmt: skip
    second.engine_up()
    assert [client.attach(job).text for job in (jobs[0], jobs[2])] == ["abab", "efef"]
    assert manage(client, jobs[1], "resume").report.state in ("queued", "running")
    assert client.attach(jobs[1]).text == "cdcd"


def test_an_answer_that_is_over_is_there_after_a_kill_with_its_figures(start: StartFront) -> None:
    first = start()
    first.engine_up()
    done = first.client().answer("abc|", max_tokens=9)
    killed(first)
    again = start().client().attach(done.last.job)
    assert (again.text, again.token_ids, again.last.reason) == (done.text, done.token_ids, done.last.reason)
    assert (again.last.sweeps, again.last.disk_bytes, again.last.prompt_tokens) == (done.last.sweeps, done.last.disk_bytes, 4)
    assert again.last.decode_s == pytest.approx(done.last.decode_s)


def test_a_front_that_stops_in_order_leaves_its_jobs(start: StartFront) -> None:
    first = start()
    worker = first.engine_up()
    worker.hold.set()
    client = first.client()
    client.ask("abc|", max_tokens=4)
    heard = client.hear(Heard(), "Accepted")
    assert first.stop() == 0
    refused = client.hear(heard, "Refused").last
    assert (refused.code, refused.exit_code) == ("stopping", 75)
    assert f"potato-client attach {refused.job}" in refused.message
    first.close()
    second = start()
    second.engine_up()
    assert second.client().attach(refused.job).text == "abca"


def test_a_job_of_another_model_waits_until_that_is_served_again(start: StartFront) -> None:
    first = start()
    job = submit(first.client(), "abc|", max_tokens=3)
    killed(first)
    other = start(checksum="another")
    other.engine_up()
    client = other.client()
    (report,) = listed(client).reports
    assert (report.state, report.served) == ("queued", False)
    assert client.answer("xy|", max_tokens=2).text == "xy"
    paused = manage(client, job, "pause")
    assert paused.report.state == "paused"
    refused = manage(client, job, "resume")
    assert isinstance(refused, Refused)
    assert (refused.code, refused.exit_code) == ("other_model", 66)
    other.close()
    again = start()
    again.engine_up()
    client = again.client()
    assert isinstance(manage(client, job, "resume"), Managed)
    assert client.attach(job).text == "abc"


# keys


def test_what_is_asked_twice_with_one_key_is_one_job(start: StartFront) -> None:
    begun = start()
    begun.engine_up()
    client = begun.client()
    first = client.answer("abc|", max_tokens=4, key="k")
    again = client.answer("abc|", max_tokens=4, key="k")
    assert (again.last.job, again.text) == (first.last.job, "abca")
    assert (first.of("Accepted")[0].known, again.of("Accepted")[0].known) == (False, True)
    assert len(listed(client).reports) == 1
    client.ask("another|", key="k")
    refused = client.hear(Heard(), "Refused").last
    assert (refused.code, refused.exit_code) == ("key_used", 64)


def test_what_is_asked_again_before_it_is_on_disk_is_one_job(start: StartFront) -> None:
    begun = start()
    begun.engine_up()
    client = begun.client()
    for _ in range(20):
        client.ask("abc|", max_tokens=4, key="k", follow=False)
    accepted = client.hear(Heard(), "Accepted", 20).of("Accepted")
    assert len({each.job for each in accepted}) == 1
    assert [each.known for each in accepted].count(False) == 1


def test_a_key_is_known_after_a_kill(start: StartFront) -> None:
    first = start()
    client = first.client()
    client.ask("abc|", max_tokens=4, key="k", follow=False)
    job = client.hear(Heard(), "Accepted").last.job
    killed(first)
    second = start()
    second.engine_up()
    answer = second.client().answer("abc|", max_tokens=4, key="k")
    assert (answer.last.job, answer.text) == (job, "abca")


# following


def test_a_job_is_followed_from_several_places(start: StartFront) -> None:
    begun = start(speculation=False)
    begun.engine_up(delay_s=0.01)
    one, two = begun.client(), begun.client()
    one.ask("abc|", max_tokens=50)
    heard = one.hear(Heard(), "Piece", 5)
    other = two.attach(heard.of("Accepted")[0].job[:6])
    one.hear(heard, "Finished")
    assert heard.text == other.text == ("abc" * 17)[:50]


def test_who_detaches_hears_nothing_and_the_job_goes_on(start: StartFront) -> None:
    begun = start(speculation=False)
    begun.engine_up(delay_s=0.01)
    client = begun.client()
    client.ask("abc|", max_tokens=50)
    job = client.hear(Heard(), "Piece", 3).of("Accepted")[0].job
    client.send(Detach(job))
    client.send(Status(99))
    while getattr(client.receive(), "request", None) != 99:
        pass
    time.sleep(0.1)
    assert list(client.waiting()) == []
    assert client.attach(job).text == ("abc" * 17)[:50]


@pytest.mark.parametrize(("id", "code"), [("f" * 16, "unknown_job"), ("", "unknown_job"), ("../x", "unknown_job")])
def test_a_job_that_nobody_knows(start: StartFront, id: str, code: str) -> None:
    client = start().client()
    for message in (lambda n: Attach(n, id), lambda n: Show(n, id), lambda n: Manage(n, id, "cancel")):
        refused = client.request(message)
        assert (refused.code, refused.exit_code) == (code, 66)


def test_the_beginning_of_an_id_is_enough_while_it_is_no_other_s(start: StartFront) -> None:
    client = start().client()
    jobs = [submit(client, "abc|") for _ in range(17)]
    shared = next(digit for digit in "0123456789abcdef" if sum(job.startswith(digit) for job in jobs) > 1)
    refused = client.request(lambda n: Show(n, shared))
    assert refused.code == "ambiguous_job"
    assert str(sum(job.startswith(shared) for job in jobs)) in refused.message
    assert client.request(lambda n: Show(n, jobs[3][:12])).report.job == jobs[3]


# managing


def test_a_running_job_is_paused_and_resumed_with_the_same_text(start: StartFront) -> None:
    begun = start(speculation=False)
    worker = begun.engine_up(delay_s=0.005)
    client = begun.client()
    whole = client.answer("?pq|", max_tokens=40, temperature=0.8, seed=3)
    client.ask("?pq|", max_tokens=40, temperature=0.8, seed=3)
    heard = client.hear(Heard(), "Piece", 5)
    job = heard.of("Accepted")[0].job
    client.send(Manage(0, job, "pause"))
    client.hear(heard, "Progress", len(heard.of("Progress")) + 1)
    while heard.of("Progress")[-1].state != "paused":
        client.hear(heard, "Progress", len(heard.of("Progress")) + 1)
    swept = len(worker.sweeps)
    time.sleep(0.1)
    assert len(worker.sweeps) <= swept + 1, "the sweep under way ends, no other begins"
    client.send(Manage(0, job, "resume"))
    client.hear(heard, "Finished")
    assert (heard.text, heard.token_ids) == (whole.text, whole.token_ids)
    assert worker.wrong is None


def test_a_cancelled_job_keeps_what_it_said_and_can_be_tried_again(start: StartFront) -> None:
    begun = start(speculation=False)
    begun.engine_up(delay_s=0.01)
    client = begun.client()
    client.ask("abc|", max_tokens=40)
    heard = client.hear(Heard(), "Piece", 4)
    job = heard.of("Accepted")[0].job
    client.send(Manage(0, job, "cancel"))
    assert client.hear(heard, "Finished").last.reason == "cancelled"
    cancelled = client.attach(job)
    assert (cancelled.text, cancelled.last.reason) == (heard.text, "cancelled")
    assert manage(client, job, "retry").report.reason == ""
    assert client.attach(job).text == ("abc" * 14)[:40]


def test_what_cannot_be_done_to_a_job_is_refused_with_its_state(start: StartFront) -> None:
    begun = start()
    client = begun.client()
    job = submit(client, "abc|", max_tokens=2)
    for action in ("resume", "retry", "delete"):
        refused = manage(client, job, action)
        assert (refused.code, refused.exit_code) == ("not_now", 64), action
        assert job in refused.message
        assert "queued" in refused.message
    begun.engine_up()
    client.attach(job)
    for action in ("cancel", "pause", "resume", "retry"):
        refused = manage(client, job, action)
        assert refused.code == "not_now", action
        assert "finished" in refused.message


def test_a_deleted_job_is_gone_and_stays_gone(start: StartFront) -> None:
    begun = start()
    begun.engine_up()
    client = begun.client()
    job = client.answer("abc|", max_tokens=2).last.job
    assert manage(client, job, "delete").report.job == job
    assert client.request(lambda n: Attach(n, job)).code == "unknown_job"
    killed(begun)
    assert listed(start().client()).reports == ()


def test_jobs_are_listed_by_state_and_page_by_page(start: StartFront) -> None:
    begun = start(max_sequences=1)
    client = begun.client()
    jobs = [submit(client, f"{n}|", max_tokens=3) for n in range(5)]
    manage(client, jobs[1], "pause")
    manage(client, jobs[2], "cancel")
    assert [report.job for report in listed(client).reports] == jobs[::-1]
    assert [report.job for report in listed(client, "paused").reports] == [jobs[1]]
    assert [report.job for report in listed(client, "cancelled", "paused").reports] == [jobs[2], jobs[1]]
    first = listed(client, limit=2)
    assert ([report.job for report in first.reports], first.more) == ([jobs[4], jobs[3]], True)
    rest = listed(client, limit=3, before=first.reports[-1].number)
    assert ([report.job for report in rest.reports], rest.more) == ([jobs[2], jobs[1], jobs[0]], False)
    assert [report.place for report in listed(client).reports] == [2, 1, 0, 0, 0]


def test_a_job_shows_what_was_asked(start: StartFront) -> None:
    client = start().client()
    job = submit(client, "why is it so?|", max_tokens=3, temperature=0.5, stop=("x",))
    described = client.request(lambda n: Show(n, job))
    assert isinstance(described, Described)
    assert (described.prompt, described.messages) == ("why is it so?|", ())
    assert (described.options.max_tokens, described.options.temperature, described.options.stop) == (3, 0.5, ("x",))
    assert (described.report.title, described.report.state, described.report.limit_tokens) == ("why is it so?|", "queued", 3)


# the engine and the disk


def test_a_job_of_which_the_engine_dies_three_times_fails_and_can_be_tried_again(start: StartFront) -> None:
    begun = start()
    client = begun.client()
    job = submit(client, "abc|", max_tokens=3)
    for _ in range(3):
        dies_in_a_sweep(begun)
    client.send(Attach(5, job))
    refused = client.hear(Heard(), "Refused")
    assert (refused.last.code, refused.last.job) == ("poisoned", job)
    begun.engine_up()
    assert client.answer("xy|", max_tokens=2).text == "xy", "the daemon is well"
    assert isinstance(manage(client, job, "retry"), Managed)
    assert client.attach(job).text == "abc"


def test_deaths_are_remembered_by_the_next_front(start: StartFront) -> None:
    first = start()
    job = submit(first.client(), "abc|", max_tokens=3)
    for _ in range(2):
        dies_in_a_sweep(first)
    first.client().request(lambda n: Show(n, job))  # what came before it has been written
    killed(first)
    second = start()
    dies_in_a_sweep(second)
    client = second.client()
    client.send(Attach(5, job))
    assert client.hear(Heard(), "Refused").last.code == "poisoned"


def test_a_database_that_is_damaged_keeps_the_front_from_starting(start: StartFront, tmp_path: Path) -> None:
    first = start()
    jobs = [submit(first.client(), f"{'x' * 200}|") for _ in range(40)]
    first.stop()
    first.close()
    path = tmp_path / "jobs.db"
    damaged = bytearray(path.read_bytes())
    damaged[4096 : 4096 * 5] = os.urandom(4096 * 4)
    path.write_bytes(damaged)
    begun = front(tmp_path)
    try:
        failed = begun.wait_for(lambda message: isinstance(message, Failed))
    finally:
        begun.close()
    assert (failed.exit_code, len(jobs)) == (65, 40)
    assert str(path) in failed.why
    assert "potatod jobs repair" in failed.why


def test_two_fronts_do_not_share_a_database(start: StartFront, tmp_path: Path) -> None:
    start()
    (tmp_path / "two").mkdir()
    second = front(tmp_path / "two", jobs={"path": str(tmp_path / "jobs.db")})
    try:
        failed = second.wait_for(lambda message: isinstance(message, Failed))
    finally:
        second.close()
    assert failed.exit_code == 69
    assert "in use" in failed.why


def test_what_was_read_again_holds_for_who_asks_from_then_on(start: StartFront) -> None:
    front = start()
    worker = front.engine_up()
    client = front.client()
    old = client.answer("abc|", max_tokens=5).of("Accepted")[0].job
    time.sleep(1.1)
    holding = Boot.read(front.directory / "boot.front.json").settings
    jobs, sampling = replace(holding.jobs, keep_s=1.0, per_user=1), replace(holding.sampling, max_tokens=2)
    read = replace(holding, jobs=jobs, sampling=sampling, log=replace(holding.log, format="json"))
    front.control.send(b"front", Reload(read.to_json()))
    deadline = time.monotonic() + 10
    while old in [report.job for report in listed(client).reports]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(client.answer("abc|").token_ids) == 2
    worker.hold.set()
    for _ in range(2):
        client.ask("abc|", max_tokens=5)
    refused = client.hear(Heard(), "Refused").last
    assert (refused.code, "[jobs] per_user" in refused.message) == ("queue_full", True)
    assert json.loads(front.log.splitlines()[-1])["event"] == "refused"


def test_old_jobs_are_deleted(start: StartFront) -> None:
    first = start()
    first.engine_up()
    client = first.client()
    client.answer("abc|", max_tokens=2)
    waiting = submit(client, "zz|")
    manage(client, waiting, "pause")
    killed(first)
    time.sleep(1.1)
    second = start(jobs={"keep": 1.0})
    client = second.client()
    deadline = time.monotonic() + 10
    while len(listed(client).reports) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [report.job for report in listed(client).reports] == [waiting], "what is not over is nobody's to delete"


def test_progress_of_a_job_that_is_attached_to_is_said_at_once(start: StartFront) -> None:
    begun = start(max_sequences=1)
    client = begun.client()
    submit(client, "ab|")
    second = submit(client, "cd|")
    client.send(Attach(77, second))
    said = [client.receive() for _ in range(2)]
    assert isinstance(said[1], Progress)
    assert (said[1].state, said[1].place) == ("queued", 1)


# what was wrong once


def test_jobs_that_are_over_do_not_count_against_their_owner(start: StartFront) -> None:
    begun = start(jobs={"per_user": 2})
    begun.engine_up()
    client = begun.client()
    for _ in range(5):
        assert client.answer("abc|", max_tokens=3).text == "abc"
    begun.engine_dies()
    jobs = [submit(client, "x|") for _ in range(2)]
    client.ask("y|")
    assert client.hear(Heard(), "Refused").last.code == "queue_full"
    manage(client, jobs[0], "cancel")
    submit(client, "y|")


def test_a_job_that_is_too_long_for_a_smaller_context_waits_and_says_so(start: StartFront) -> None:
    first = start(max_context=256, speculation=False)
    first.engine_up(delay_s=0.01)
    client = first.client()
    client.ask("abc|", max_tokens=200)
    job = client.hear(Heard(), "Piece", 70).of("Accepted")[0].job
    killed(first)
    small = start(max_context=64)
    small.engine_up()
    client = small.client()
    assert client.answer("xy|", max_tokens=2).text == "xy", "the daemon is well"
    report = listed(client, "paused").reports[0]
    assert (report.job, "context" in report.why) == (job, True)
    refused = manage(client, job, "resume")
    assert (refused.code, refused.exit_code) == ("prompt_too_long", 64)
    small.close()
    large = start(max_context=256)
    large.engine_up()
    client = large.client()
    assert manage(client, job, "resume").report.why == ""
    assert client.attach(job).text == ("abc" * 67)[:200]


def test_a_job_of_another_model_can_be_paused_and_cancelled_while_it_is_followed(start: StartFront) -> None:
    first = start()
    jobs = [submit(first.client(), "abc|", max_tokens=3) for _ in range(2)]
    killed(first)
    other = start(checksum="another")
    follower, client = other.client(), other.client()
    for number, job in enumerate(jobs):
        follower.send(Attach(50 + number, job))
    heard = follower.hear(Heard(), "Progress", 2)
    assert manage(client, jobs[0], "pause").report.state == "paused"
    assert follower.hear(heard, "Progress", 3).last.state == "paused"
    assert manage(client, jobs[1], "cancel").report.state == "cancelled"
    assert follower.hear(heard, "Finished").last.reason == "cancelled"
    assert manage(client, jobs[0], "cancel").report.state == "cancelled"


VANISH_SOON = [
    "-c",
    "import sys; from potatod import stage; from potatod.front.front import Front; "
    "sys.exit(stage.run('front', lambda s: Front(s, vanished_s=0.6).run()))",
]


def test_a_client_that_was_silent_is_asked_for_a_greeting_and_finds_its_job(start: StartFront) -> None:
    begun = start(program=VANISH_SOON, speculation=False)
    begun.engine_up(delay_s=0.05)
    client = begun.client()
    client.ask("abc|", max_tokens=60)
    heard = client.hear(Heard(), "Piece", 3)
    time.sleep(1.5)
    heard.messages += client.waiting()
    client.send(Alive())
    refused = client.receive()
    assert (refused.code, refused.request, refused.job) == ("hello_first", None, None)
    client.send(Hello(PROTOCOL_VERSION))
    assert isinstance(client.receive(), Welcome)
    client.send(Attach(9, heard.of("Accepted")[0].job, len(heard.token_ids), len(heard.text)))
    while not heard.of("Finished"):
        client.send(Alive())
        heard.messages.append(client.receive())
    assert heard.text == "abc" * 20


def test_who_wants_no_answer_gets_none(start: StartFront) -> None:
    begun = start()
    begun.engine_up()
    client = begun.client()
    job = client.answer("abc|", max_tokens=2).last.job
    client.send(Manage(0, job, "cancel"))
    client.send(Manage(0, "nobody's", "cancel"))
    time.sleep(0.3)
    assert list(client.waiting()) == []


def test_of_two_wishes_at_once_the_second_sees_what_the_first_has_done(start: StartFront) -> None:
    client = start().client()
    job = submit(client, "abc|")
    manage(client, job, "pause")
    client.send(Manage(901, job, "cancel"))
    client.send(Manage(902, job, "resume"))
    first, second = client.receive(), client.receive()
    assert (first.request, first.report.state) == (901, "cancelled")
    assert (second.request, second.code) == (902, "not_now")


def test_many_wishes_about_one_job_are_read_one_after_the_other_and_bounded(start: StartFront) -> None:
    client = start().client()
    job = submit(client, "abc|")
    manage(client, job, "cancel")
    for number in range(200):
        client.send(Manage(1000 + number, job, "pause"))
    codes = [client.receive().code for _ in range(200)]
    assert set(codes) <= {"not_now", "queue_full"}
    assert codes.count("not_now") >= 64
    assert manage(client, job, "delete").report.job == job


def test_whoever_follows_a_paused_job_is_told_when_the_daemon_stops(start: StartFront) -> None:
    begun = start()
    client = begun.client()
    client.ask("abc|")
    job = client.hear(Heard(), "Accepted").last.job
    client.send(Manage(0, job, "pause"))
    heard = client.hear(Heard(), "Progress")
    while heard.last.state != "paused":
        client.hear(heard, "Progress", len(heard.of("Progress")) + 1)
    begun.stop()
    assert client.hear(heard, "Refused").last.job == job
