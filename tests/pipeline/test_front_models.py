"""Several models and one engine: jobs of all are taken, one model's are computed at a time, and none is lost or kept waiting for ever."""

from __future__ import annotations

import time

import pytest

from potato_client.protocol import Attach, List, Listed, Manage, Managed, Refused, Status
from potatod.messages import Queued, Switch

from .front_harness import PATIENCE_S, Client, Front, Heard, Worker, front, start_front

OTHERS = ("second", "third")


@pytest.fixture
def ours(tmp_path):
    begun = start_front(tmp_path, others=OTHERS)
    yield begun
    begun.close()


def asked(client: Client, prompt: str, model: str, **options: object) -> str:
    """The id of a job that nobody follows."""
    return accepted(client, prompt, model, **options).job


def accepted(client: Client, prompt: str, model: str, **options: object):
    client.ask(prompt, model=model, follow=False, **options)
    return client.receive()


def until(found, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_jobs_of_every_model_are_taken_and_each_is_computed_by_its_own(ours: Front):
    first = ours.engine_up()
    client = ours.client()
    first.hold.set()
    jobs = [asked(client, f"{text}|", model, max_tokens=6) for model, text in (("", "ab"), ("second", "cd"), ("third", "ef"), ("model", "gh"))]
    first.hold.clear()
    second = ours.switches()
    third = ours.switches()
    texts = [client.attach(job).text for job in jobs]
    assert texts == ["ababab", "cdcdcd", "efefef", "ghghgh"]
    for worker, prompts in ((first, 2), (second, 1), (third, 1)):
        assert worker.wrong is None
        assert len(worker.kv) == prompts


def test_who_waits_for_another_model_knows_its_place_and_nothing_of_it_is_computed(ours: Front):
    worker = ours.engine_up()
    worker.hold.set()
    client = ours.client()
    asked(client, "ab|", "", max_tokens=3)
    answer = accepted(client, "cd|", "second", max_tokens=3)
    assert answer.place == 2
    client.ask("ef|", model="second", max_tokens=3)
    heard = client.hear(Heard(), "Progress")
    assert (heard.last.state, heard.last.place) == ("queued", 3)
    assert {step.sequence for sweep in worker.sweeps for step in sweep.steps} == {1}
    listed: Listed = client.request(lambda number: List(number))
    assert [(report.model, report.served) for report in listed.reports] == [("second", True), ("second", True), ("model", True)]
    worker.hold.clear()
    ours.switches()
    assert client.hear(heard, "Finished").text == "efe"


def test_a_name_that_no_model_has_is_refused_with_those_that_are_there(ours: Front):
    ours.engine_up()
    client = ours.client()
    client.ask("ab|", model="fourth")
    refused: Refused = client.receive()
    assert refused.code == "other_model"
    assert "'fourth'" in refused.message and "model and second and third are served" in refused.message


@pytest.mark.parametrize("places", [1, 4])
def test_jobs_do_not_wait_for_ever_and_those_that_are_set_aside_say_what_they_would_have_said(tmp_path, places):
    ours = start_front(tmp_path, others=OTHERS, switch_after=1.0, max_sequences=places)
    try:
        first = ours.engine_up(delay_s=0.02)
        client = ours.client()
        long = [asked(client, f"?{n}|", "", max_tokens=200, temperature=1.0, seed=n) for n in range(2)]
        until(lambda: len(first.sweeps) > 5, "the first model begins")
        short = asked(client, "cd|", "second", max_tokens=4)
        second = ours.switches()
        assert client.attach(short).text == "cdcd"
        third = ours.switches()
        texts = [client.attach(job).text for job in long]
        assert [worker.wrong for worker in (first, second, third)] == [None, None, None]
        alone = [client.answer(f"?{n}|", max_tokens=200, temperature=1.0, seed=n).text for n in range(2)]
        assert texts == alone
    finally:
        ours.close()


def test_what_goes_first_is_not_kept_waiting_by_what_goes_last(ours: Front):
    first = ours.engine_up(delay_s=0.02)
    client = ours.client()
    long = asked(client, "ab|", "", max_tokens=200, priority="batch")
    until(lambda: len(first.sweeps) > 3, "the first model begins")
    short = asked(client, "cd|", "second", max_tokens=4)
    ours.switches()
    assert client.attach(short).text == "cdcd"
    ours.switches()
    assert len(client.attach(long).text) == 200


def test_a_model_whose_engine_stays_down_is_refused_while_the_others_go_on(ours: Front):
    ours.engine_up()
    client = ours.client()
    kept = asked(client, "cd|", "second", max_tokens=4)
    ours.switch_fails("a part of it is damaged")
    refused = []

    def is_refused() -> bool:
        client.ask("cd|", model="second")
        refused.append(client.receive())
        return isinstance(refused[-1], Refused)

    until(is_refused, "the second model is refused")
    assert refused[-1].code == "degraded"
    assert "second stays down" in refused[-1].message and "a part of it is damaged" in refused[-1].message
    other = asked(client, "ab|", "", max_tokens=4)
    ours.switches()
    assert client.attach(other).text == "abab"
    report = client.request(lambda number: Status(number))
    assert [(model.name, model.state) for model in report.models] == [("model", "up"), ("second", "down"), ("third", "waiting")]
    assert report.models[1].why == "a part of it is damaged"
    client.send(Attach(99, kept))
    said = Heard([client.receive(), client.receive()])
    assert said.last.code == "degraded" and kept in said.last.message


def test_jobs_of_every_model_go_on_after_a_restart_and_those_of_one_that_is_gone_wait(tmp_path):
    before = start_front(tmp_path, others=OTHERS)
    client = before.client()
    jobs = [asked(client, f"{text}|", model, max_tokens=4) for model, text in (("", "ab"), ("second", "cd"), ("third", "ef"))]
    before.stop()
    before.close()
    ours = start_front(tmp_path, others=("second",))
    try:
        ours.engine_up()
        ours.switches()
        client = ours.client()
        assert [client.attach(job).text for job in jobs[:2]] == ["abab", "cdcd"]
        report = client.request(lambda number: List(number)).reports[0]
        assert (report.job, report.state, report.served) == (jobs[2], "queued", False)
    finally:
        ours.close()


def test_a_start_with_jobs_of_another_model_alone_loads_that_one(tmp_path):
    before = start_front(tmp_path, others=OTHERS)
    job = asked(before.client(), "cd|", "second", max_tokens=4)
    before.stop()
    before.close()
    ours = front(tmp_path, others=OTHERS)
    try:
        ours.epoch = 1
        ours.wait_ready()
        ours.switches()
        assert ours.client().attach(job).text == "cdcd"
    finally:
        ours.close()


def test_the_same_key_for_another_model_is_another_request(ours: Front):
    ours.engine_up()
    client = ours.client()
    job = asked(client, "ab|", "", max_tokens=2, key="k")
    assert asked(client, "ab|", "model", max_tokens=2, key="k") == job
    assert accepted(client, "ab|", "second", max_tokens=2, key="k").code == "key_used"


def test_jobs_of_a_model_that_waits_can_be_paused_cancelled_and_resumed(ours: Front):
    worker = ours.engine_up()
    worker.hold.set()
    client = ours.client()
    asked(client, "ab|", "", max_tokens=2)
    paused, cancelled = (asked(client, "cd|", "second", max_tokens=4) for _ in range(2))
    assert client.request(lambda number: Manage(number, paused, "pause")).report.state == "paused"
    assert client.request(lambda number: Manage(number, cancelled, "cancel")).report.state == "cancelled"
    worker.hold.clear()
    until(lambda: client.request(lambda number: Status(number)).queue.running == 0, "the first model has nothing to do")
    assert not [message for message in drained(ours) if isinstance(message, Switch)]
    managed: Managed = client.request(lambda number: Manage(number, paused, "resume"))
    assert managed.report.state == "queued"
    ours.switches()
    assert client.attach(paused).text == "cdcd"


def drained(ours: Front) -> list[object]:
    said = []
    while ours.control.socket.poll(100) and (found := ours.control.receive()) is not None:
        said.append(found[1])
        if len(said) > 50:
            break
    return said


def test_an_engine_that_dies_while_another_model_is_wanted_costs_no_job(ours: Front):
    worker: Worker = ours.engine_up(delay_s=0.02)
    client = ours.client()
    long = asked(client, "ab|", "", max_tokens=60)
    until(lambda: len(worker.sweeps) > 3, "the first model begins")
    other = asked(client, "cd|", "second", max_tokens=4)
    ours.engine_dies()
    ours.engine_up()
    ours.switches()
    assert client.attach(long).text == "ab" * 30
    assert client.attach(other).text == "cdcd"


def test_a_job_that_waits_for_a_model_that_is_down_does_not_count_as_work_that_stands_still(ours: Front) -> None:
    ours.engine_up()
    client = ours.client()
    asked(client, "cd|", "second", max_tokens=4)
    ours.switch_fails("a part of it is damaged")
    ours.switches()  # nothing waits for the first, and it could serve
    queued = ours.wait_for(lambda message: isinstance(message, Queued) and message.waiting == 0)
    assert queued.running == 0
    report = client.request(lambda number: Status(number))
    assert [(model.name, model.state, model.waiting) for model in report.models][:2] == [("model", "up", 0), ("second", "down", 1)]
    listed = client.request(lambda number: List(number)).reports[0]
    assert listed.eta_s is None, "nobody knows when that will be"


def test_who_follows_a_job_that_is_paused_hears_nothing_of_another_model_s_fault(ours: Front) -> None:
    ours.engine_up()
    client = ours.client()
    job = asked(client, "ab|", "", max_tokens=200)
    client.request(lambda number: Manage(number, job, "pause"))
    client.send(Attach(77, job))
    heard = client.hear(Heard(), "Progress")
    assert heard.last.state == "paused"
    asked(client, "cd|", "second", max_tokens=4)
    ours.switch_fails("a part of it is damaged")
    ours.switches()
    assert not [message for message in client.waiting() if isinstance(message, Refused)]
