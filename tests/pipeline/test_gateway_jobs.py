"""/jobs: what a plain program does with `curl`."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .gateway_harness import House, until


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path, speculation=False)
    yield made
    made.close()


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Without an engine, for what is refused anyway."""
    made = House(tmp_path_factory.mktemp("idle"))
    yield made
    made.close()


def test_a_job_is_asked_for_shown_listed_paused_resumed_and_deleted(house: House) -> None:
    request = house.gateway.request
    status, headers, page = request("POST", "/jobs", {"model": "model", "prompt": "abc|", "max_tokens": 6, "seed": 5})
    assert (status, headers["location"]) == (201, f"/jobs/{page['jobs'][0]}")
    where = headers["location"]
    assert request("POST", f"{where}/pause")[2]["state"] == "paused"
    assert [job["state"] for job in request("GET", "/jobs?state=paused")[2]["jobs"]] == ["paused"]
    assert request("GET", "/jobs?state=running&state=queued")[2]["jobs"] == []
    assert request("POST", f"{where}/resume")[2]["state"] == "queued"
    assert request("DELETE", where)[0] == 409
    house.front.engine_up()
    until(lambda: request("GET", where)[2]["state"] == "finished")
    shown = request("GET", where)[2]
    assert (shown["text"], shown["prompt"], shown["seed"], shown["completion_tokens"]) == ("abcabc", "abc|", 5, 6)
    assert request("POST", f"{where}/cancel")[2]["error"]["code"] == "not_now"
    assert request("DELETE", where)[0] == 200
    assert request("GET", where)[0] == 404


def test_however_many_jobs_there_are_all_can_be_listed(house: House) -> None:
    request = house.gateway.request
    asked = [request("POST", "/jobs", {"model": "model", "prompt": f"{n}|", "max_tokens": 1})[2]["jobs"][0] for n in range(5)]
    found, before, more = [], 0, True
    while more:
        page = request("GET", f"/jobs?limit=2&before={before}")[2]
        found, before, more = found + [job["job"] for job in page["jobs"]], page["jobs"][-1]["number"], page["more"]
    assert found == asked[::-1]


def test_a_job_of_a_conversation_has_its_messages_and_as_many_answers_as_are_asked_for(house: House) -> None:
    house.front.engine_up()
    asked = {"model": "model", "messages": [{"role": "user", "content": "ab|"}], "n": 2, "max_tokens": 3}
    jobs = house.gateway.request("POST", "/jobs", asked, Idempotency_Key="mine")[2]["jobs"]
    assert house.gateway.request("POST", "/jobs", asked, Idempotency_Key="mine")[2]["jobs"] == jobs
    assert len(jobs) == 2
    for job in jobs:
        until(lambda job=job: house.gateway.request("GET", f"/jobs/{job}")[2]["state"] == "finished")
        shown = house.gateway.request("GET", f"/jobs/{job}")[2]
        assert (shown["text"], shown["messages"][0]["content"]) == ("aba", "ab|")


def test_events_go_on_after_the_last_that_came(house: House) -> None:
    house.front.engine_up(delay_s=0.03)
    where = house.gateway.request("POST", "/jobs", {"model": "model", "prompt": "hello|", "max_tokens": 20})[1]["location"]
    whole = events(house, where, "")
    assert "".join(page.get("text", "") for _, _, page in whole) == "hello" * 4
    assert whole[-1][0] == "finished"
    for cut in range(len(whole) - 1):
        before = "".join(page["text"] for _, _, page in whole[: cut + 1])
        rest = "".join(page.get("text", "") for _, _, page in events(house, where, whole[cut][1]))
        assert before + rest == "hello" * 4


def test_a_job_is_followed_by_many_at_once_and_shown_meanwhile(house: House) -> None:
    house.front.engine_up(delay_s=0.05)
    where = house.gateway.request("POST", "/jobs", {"model": "model", "prompt": "hello|", "max_tokens": 30})[1]["location"]
    with ThreadPoolExecutor(4) as pool:
        followed = [pool.submit(events, house, where, "") for _ in range(4)]
        time.sleep(0.5)
        assert house.gateway.request("HEAD", f"{where}/events")[0] == 405
        shown = house.gateway.request("GET", where)
        assert shown[0] == 200
        assert ("hello" * 6).startswith(shown[2]["text"])
        for each in followed:
            assert "".join(page.get("text", "") for _, _, page in each.result()) == "hello" * 6


@pytest.mark.parametrize(
    ("method", "path", "page", "status"),
    [
        ("GET", "/jobs/none", None, 404), ("POST", "/jobs/none/cancel", None, 404), ("POST", "/jobs/none/explode", None, 404),
        ("GET", "/jobs?state=lost", None, 400), ("GET", "/jobs?limit=0", None, 400), ("GET", "/jobs?limit=many", None, 400),
        ("GET", "/jobs?before=-1", None, 400),
        ("POST", "/jobs", {"model": "model"}, 400), ("POST", "/jobs", {"model": "other", "prompt": "a"}, 404),
        ("POST", "/jobs", {"model": "model", "prompt": "a|", "stream": True}, 400),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(idle: House, method: str, path: str, page: Any, status: int) -> None:
    got, _, answer = idle.gateway.request(method, path, page)
    assert got == status
    assert answer["error"]["message"]


def events(house: House, where: str, last: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, id and page of each."""
    host, port = house.gateway.url.removeprefix("http://").rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    headers = {"Authorization": f"Bearer {house.gateway.token}"} | ({"Last-Event-ID": last} if last else {})
    connection.request("GET", f"{where}/events", headers=headers)
    text = connection.getresponse().read().decode()
    connection.close()
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if fields:
            found.append((fields.get("event", ""), fields.get("id", ""), json.loads(fields["data"])))
    return found
