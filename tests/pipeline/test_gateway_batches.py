"""/v1/files and /v1/batches with the `openai` package: nothing is asked twice, whoever dies in between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from potato_client import Client
from potatod.gateway.store import Store

from .gateway_harness import FULL, House, client_of, until

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Without an engine, for what is refused anyway."""
    made = House(tmp_path_factory.mktemp("idle"))
    yield made
    made.close()


def line(custom_id: str, prompt: str, **more: Any) -> dict[str, Any]:
    page = {"model": "model", "messages": [{"role": "user", "content": prompt}], "max_tokens": 8} | more
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": page}


def batch_of(client: openai.OpenAI, lines: list[Any], endpoint: Any = CHAT, **more: Any) -> Batch:
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines).encode()
    file = client.files.create(file=("questions.jsonl", text), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def ended(client: openai.OpenAI, batch: Batch, status: str = "completed") -> Batch:
    until(lambda: client.batches.retrieve(batch.id).status in ("completed", "failed", "cancelled"))
    found = client.batches.retrieve(batch.id)
    assert found.status == status, found
    return found


def answers(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    rows = [json.loads(row) for row in client.files.content(file_id).text.splitlines()]
    return {row["custom_id"]: row for row in rows}


def test_files_are_kept_listed_and_deleted(begin: Callable[..., House]) -> None:
    house = begin()
    with client_of(house) as client:
        kept = [client.files.create(file=(f"{n}.jsonl", b"x" * n), purpose="batch") for n in range(3)]
        assert [file.bytes for file in kept] == [0, 1, 2]
        house.gateway_dies()
    with client_of(house) as client:
        assert {file.id for file in client.files.list()} == {file.id for file in kept}
        assert len(list(client.files.list(limit=1))) == 3
        assert client.files.retrieve(kept[2].id).filename == "2.jsonl"
        assert client.files.content(kept[2].id).read() == b"xx"
        client.files.delete(kept[2].id)
        for gone in (kept[2].id, "file-none", "..%2F..%2Ftoken"):
            with pytest.raises(openai.NotFoundError):
                client.files.retrieve(gone)
        with pytest.raises(openai.BadRequestError, match="purpose"):
            client.files.create(file=("a", b"a"), purpose="fine-tune")


def test_what_is_no_id_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "token.json").write_text('{"id": "a secret"}')
    store = Store(tmp_path / "kept")
    for id in ("../../token", "..%2Ftoken", "/etc/passwd", "", ".", "a" * 81, "token\0"):
        assert store.get("files", id) is None


def test_files_have_a_limit_in_all(begin: Callable[..., House]) -> None:
    tiny = "import sys\nfrom potatod import stage\nfrom potatod.gateway import filing, gateway\nfiling.MAX_KEPT_BYTES, filing._PAGE_BYTES = 10, 0\n"
    house = begin(gateway={"program": f'{tiny}sys.exit(stage.run("gateway", gateway.work))'})
    with client_of(house) as client:
        first = client.files.create(file=("a", b"x" * 6), purpose="batch")
        with pytest.raises(openai.APIStatusError) as refused:
            client.files.create(file=("b", b"x" * 6), purpose="batch")
        assert refused.value.status_code == 507
        client.files.delete(first.id)
        client.files.create(file=("b", b"x" * 6), purpose="batch")


def test_a_batch_is_answered_line_by_line(begin: Callable[..., House]) -> None:
    house = begin(max_sequences=8)
    house.front.engine_up()
    with client_of(house) as client:
        lines = [line(f"q{n}", f"{n},|") for n in range(150)]
        batch = ended(client, batch_of(client, [*lines, line("long", "x" * 500 + "|")], metadata={"of": "mine"}))
        assert batch.request_counts is not None
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed, batch.metadata) == (151, 150, 1, {"of": "mine"})
        found = answers(client, batch.output_file_id)
        texts = {id: row["response"]["body"]["choices"][0]["message"]["content"] for id, row in found.items()}
        assert texts == {f"q{n}": (f"{n}," * 8)[:8] for n in range(150)}
        wrong = answers(client, batch.error_file_id)
        assert wrong["long"]["response"]["status_code"] == 400
        assert wrong["long"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
        assert [each.id for each in client.batches.list()] == [batch.id]
    with Client(house.front.socket) as native:
        assert {job.priority for job in native.jobs()} == {"batch"}


def test_texts_that_go_on_are_a_batch_too(begin: Callable[..., House]) -> None:
    house = begin()
    house.front.engine_up()
    page = {"model": "model", "prompt": "ab|", "max_tokens": 3, "n": 2}
    with client_of(house) as client:
        lines = [{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": page}]
        batch = ended(client, batch_of(client, lines, "/v1/completions"))
        body = answers(client, batch.output_file_id)["a"]["response"]["body"]
        assert [choice["text"] for choice in body["choices"]] == ["aba", "aba"]


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ("{", "not JSON"),
        ("[]", "no JSON object"),
        (line("a", "x|") | {"url": "/v1/completions"}, "this batch is of POST /v1/chat/completions"),
        (line("q0", "x|"), "there is a custom_id 'q0' already"),
        (line("a", "x|", model="gpt-4"), "there is no model 'gpt-4'"),
        (line("a", "x|", temprature=1), "did you mean 'temperature'"),
        (line("a", "x|", stream=True), "not streamed"),
        ({"custom_id": "a"}, "method"),
    ],
)
def test_a_file_with_a_wrong_line_is_not_asked_at_all(idle: House, bad: Any, sentence: str) -> None:
    with client_of(idle) as client:
        batch = ended(client, batch_of(client, [line("q0", "0|"), bad]), "failed")
        assert batch.errors is not None
        assert batch.errors.data is not None
        assert [error.line for error in batch.errors.data] == [2]
        assert sentence in (batch.errors.data[0].message or "")
        if isinstance(bad, dict) and "temprature" in bad.get("body", {}):
            assert batch.errors.data[0].param == "body.temprature"
        assert ended(client, batch_of(client, []), "failed").errors is not None
    with Client(idle.front.socket) as native:
        assert native.jobs() == []


def test_whoever_is_killed_every_line_is_answered_once(begin: Callable[..., House]) -> None:
    house = begin(max_sequences=4, speculation=False)
    house.front.engine_up(delay_s=0.01)
    with client_of(house) as client:
        batch = batch_of(client, [line(f"q{n}", f"{n},|") for n in range(100)])
        until(lambda: (client.batches.retrieve(batch.id).request_counts or batch).completed > 10)  # type: ignore[union-attr]
    house.gateway_dies()
    with client_of(house) as client:
        assert client.batches.retrieve(batch.id).status in ("validating", "in_progress")
        until(lambda: (client.batches.retrieve(batch.id).request_counts or batch).completed > 30)  # type: ignore[union-attr]
        house.front_dies()
        house.front.engine_up()
        batch = ended(client, batch)
        rows = client.files.content(batch.output_file_id or "").text.splitlines()
        assert len(rows) == 100
        assert len(answers(client, batch.output_file_id)) == 100
    with Client(house.front.socket) as native:
        assert len(native.jobs(limit=200)) == 100


def test_one_key_is_one_batch_also_at_the_same_time(begin: Callable[..., House]) -> None:
    house = begin(max_sequences=4)
    house.front.engine_up()
    with client_of(house) as client, ThreadPoolExecutor(4) as pool:
        file = client.files.create(file=("lines", "\n".join(json.dumps(line(f"q{n}", f"{n},|")) for n in range(20)).encode()), purpose="batch")
        page: Any = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", "extra_headers": {"Idempotency-Key": "one"}}
        made = [each.result() for each in [pool.submit(client.batches.create, **page) for _ in range(4)]]
        assert len({batch.id for batch in made}) == 1
        assert len(answers(client, ended(client, made[0]).output_file_id)) == 20
        with pytest.raises(openai.UnprocessableEntityError):
            client.batches.create(**page | {"metadata": {"another": "one"}})


def test_what_a_batch_asks_is_not_deleted_under_it_and_one_bad_line_harms_no_other(begin: Callable[..., House]) -> None:
    house = begin(max_sequences=4, speculation=False)
    house.front.engine_up(delay_s=0.02)
    nan = '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>$|'
    tools = [{"type": "function", "function": {"name": "f"}}]
    with client_of(house) as client:
        batch = batch_of(client, [line("nan", nan, max_tokens=100, tools=tools), *(line(f"q{n}", f"{n},|") for n in range(10))])
        with pytest.raises(openai.ConflictError):
            client.files.delete(batch.input_file_id)
        found = answers(client, ended(client, batch).output_file_id)
        assert len(found) == 11
        assert "NaN" in found["nan"]["response"]["body"]["choices"][0]["message"]["content"]
        client.files.delete(batch.input_file_id)


def test_a_batch_that_is_cancelled_keeps_what_is_answered(begin: Callable[..., House]) -> None:
    house = begin(max_sequences=2, speculation=False)
    house.front.engine_up(delay_s=0.01)
    with client_of(house) as client:
        batch = batch_of(client, [line(f"q{n}", f"{n},|") for n in range(200)])
        until(lambda: (client.batches.retrieve(batch.id).request_counts or batch).completed > 5)  # type: ignore[union-attr]
        assert client.batches.cancel(batch.id).status == "cancelling"
        batch = ended(client, batch, "cancelled")
        assert 5 < len(answers(client, batch.output_file_id)) < 200
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)
    with Client(house.front.socket) as native:
        until(lambda: not native.jobs(["running", "queued", "set aside"]))


def test_a_queue_that_is_full_is_waited_for(begin: Callable[..., House]) -> None:
    house = begin(max_sequences=2, max_queue=3)
    house.front.engine_up()
    with client_of(house) as client:
        batch = ended(client, batch_of(client, [line(f"q{n}", f"{n},|") for n in range(12)]))
        assert batch.request_counts is not None
        assert batch.request_counts.completed == 12


# a disk that is full


def test_a_full_disk_is_waited_for_and_no_line_is_lost_or_asked_or_answered_twice(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": FULL}, max_sequences=4, speculation=False)
    house.front.engine_up(delay_s=0.005)
    full = house.gateway.directory / "full"
    with client_of(house) as client, Client(house.front.socket) as native:
        batch = batch_of(client, [*(line(f"q{n}", f"{n},|") for n in range(150)), line("long", "x" * 500 + "|")])
        for times, done in enumerate((0, 10, 60)):  # before anything is open, while jobs are noted and answers written
            until(lambda done=done: count(client, batch) >= done)
            full.touch()
            until(lambda times=times: waits(house) == times + 1)
            time.sleep(0.5)
            full.unlink()
        until(lambda: count(client, batch) > 60)
        batch = ended(client, batch)
        rows = client.files.content(batch.output_file_id or "").text.splitlines()
        assert (len(rows), len(answers(client, batch.output_file_id)), len(answers(client, batch.error_file_id))) == (150, 150, 1)
        assert "OSError" not in "".join(rows)
        assert len(native.jobs(limit=500)) == 150
    assert waits(house) == 3
    assert "Traceback" not in house.gateway.log
    kept = house.gateway.directory / "kept"
    assert len([path for path in (kept / "files").iterdir() if path.suffix != ".json"]) == 3, "the questions and two sorts of answers, nothing else"


def waiting_for_the_disk(house: House, client: openai.OpenAI, lines: int) -> Batch:
    """A batch, a few of whose lines were answered before the disk was full."""
    batch = batch_of(client, [line(f"q{n}", f"{n},|") for n in range(lines)])
    until(lambda: count(client, batch) >= 6)
    (house.gateway.directory / "full").touch()
    until(lambda: waits(house) == 1)
    return batch


def test_a_gateway_that_is_killed_while_the_disk_is_full_goes_on_when_there_is_room(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": FULL}, max_sequences=4, speculation=False)
    house.front.engine_up(delay_s=0.005)
    with client_of(house) as client:
        batch = waiting_for_the_disk(house, client, 100)
    house.gateway_dies()
    with client_of(house) as client, Client(house.front.socket) as native:
        assert client.batches.retrieve(batch.id).status == "in_progress"
        (house.gateway.directory / "full").unlink()
        batch = ended(client, batch)
        assert len(client.files.content(batch.output_file_id or "").text.splitlines()) == 100
        assert len(native.jobs(limit=500)) == 100


def test_a_batch_that_waits_for_the_disk_can_be_cancelled_when_there_is_room(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": FULL}, max_sequences=2, speculation=False)
    house.front.engine_up(delay_s=0.01)
    with client_of(house) as client:
        batch = waiting_for_the_disk(house, client, 200)
        with pytest.raises(openai.APIStatusError) as refused:
            client.batches.cancel(batch.id)
        assert (refused.value.status_code, client.batches.retrieve(batch.id).status) == (507, "in_progress")
        (house.gateway.directory / "full").unlink()
        assert client.batches.cancel(batch.id).status == "cancelling"
        batch = ended(client, batch, "cancelled")
        assert batch.request_counts is not None
        assert len(answers(client, batch.output_file_id)) == batch.request_counts.completed < 200
    with Client(house.front.socket) as native:
        until(lambda: not native.jobs(["running", "queued", "set aside"]))


def test_what_a_full_disk_does_not_take_is_refused_and_nothing_of_it_stays(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": FULL}, speculation=False)
    house.front.engine_up(delay_s=0.05)
    full, kept = house.gateway.directory / "full", house.gateway.directory / "kept"
    with client_of(house) as client, Client(house.front.socket) as native:
        file = client.files.create(file=("questions.jsonl", json.dumps(line("a", "a|")).encode()), purpose="batch")
        before = everything(kept)
        full.touch()
        for ask in (
            lambda: client.files.create(file=("questions.jsonl", b"x" * 5000), purpose="batch"),
            lambda: client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h"),
            lambda: client.responses.create(model="model", input="endless|", background=True),
        ):
            with pytest.raises(openai.APIStatusError) as refused:
                ask()
            assert (refused.value.status_code, refused.value.code, refused.value.type) == (507, "storage", "server_error")
        assert everything(kept) == before
        until(lambda: {job.state for job in native.jobs()} == {"cancelled"})
        answer = client.chat.completions.create(model="model", messages=[{"role": "user", "content": "a|"}], max_tokens=2)
        assert answer.choices[0].message.content == "aa"
        full.unlink()
        assert client.responses.create(model="model", input="a$|").output_text == "a"


def test_a_form_that_finds_no_room_while_it_comes_is_refused(begin: Callable[..., House]) -> None:
    nowhere = "import sys, tempfile\nfrom potatod import stage\nfrom potatod.gateway import gateway\ntempfile.tempdir = '/nowhere'\n"
    house = begin(gateway={"program": f'{nowhere}sys.exit(stage.run("gateway", gateway.work))'})
    with client_of(house) as client, pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("large.jsonl", b"x" * (3 << 20)), purpose="batch")
    assert (refused.value.status_code, refused.value.code) == (507, "storage")


def test_what_batches_write_counts_and_one_that_finds_no_room_waits(begin: Callable[..., House]) -> None:
    tiny = "import sys\nfrom potatod import stage\nfrom potatod.gateway import batch, filing, gateway\n"
    tiny += "filing.MAX_KEPT_BYTES, filing._PAGE_BYTES, filing._LOOK_S, batch._FULL_S = 20_000, 0, 0, 0.2\n"
    house = begin(gateway={"program": f'{tiny}sys.exit(stage.run("gateway", gateway.work))'}, max_sequences=4)
    house.front.engine_up()
    with client_of(house) as client:
        ballast = client.files.create(file=("ballast", b"x" * 9_000), purpose="batch")
        batch = batch_of(client, [line(f"q{n}", f"{n},|") for n in range(20)])
        until(lambda: waits(house) == 1)
        with pytest.raises(openai.APIStatusError) as refused:
            client.files.create(file=("more", b"x"), purpose="batch")
        assert refused.value.status_code == 507
        assert count(client, batch) < 20
        client.files.delete(ballast.id)
        assert len(answers(client, ended(client, batch).output_file_id)) == 20


def count(client: openai.OpenAI, batch: Batch) -> int:
    counts = client.batches.retrieve(batch.id).request_counts
    return counts.completed if counts is not None else 0


def waits(house: House) -> int:
    """How often it was said that a batch waits."""
    return house.gateway.log.count("a batch waits for the disk")


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
