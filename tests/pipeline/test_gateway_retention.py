"""What the gateway keeps beside jobs, and for how long."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import openai
import pytest

from potato_client import Client
from potatod.gateway.batch_work import file_id
from potatod.gateway.retention import outdated
from potatod.gateway.store import Store

from .gateway_harness import House, client_of, until

CHAT = "/v1/chat/completions"
#: Looks often.
OFTEN = """
import sys
from potatod import stage
from potatod.gateway import gateway, retention
retention._EVERY_S = retention._AGAIN_S = 0.2
retention.MAX_LISTED = 2
sys.exit(stage.run("gateway", gateway.work))
"""


def batch(id: str, status: str, at: int, asked_from: str) -> dict[str, Any]:
    return {"id": id, "status": status, f"{status}_at": at, "input_file_id": asked_from}


def test_what_is_asked_from_is_kept_until_its_batch_is_over() -> None:
    files = [{"id": "asked", "created_at": 5}, {"id": "old", "created_at": 5}, {"id": "new", "created_at": 20}]
    batches = [batch("going on", "in_progress", 5, "asked"), batch("over", "completed", 5, "old"), batch("failed", "failed", 12, "old")]
    gone = outdated(files, batches, before=10)
    assert (gone.files, gone.batches) == (["old"], ["over"])


def test_a_response_whose_job_is_gone_goes_and_no_other(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": OFTEN})
    house.front.engine_up()
    with client_of(house) as client, Client(house.front.socket) as native:
        made = [client.responses.create(model="model", input=f"{n}$|") for n in range(5)]
        folder = house.gateway.directory / "kept" / "responses"
        for response in made[::2]:
            native.manage(response.id.removeprefix("resp_"), "delete")
        until(lambda: {path.stem for path in folder.iterdir()} == {response.id.removeprefix("resp_") for response in made[1::2]})
        assert client.responses.retrieve(made[1].id).output_text == "1"


def test_what_is_over_for_long_is_deleted_and_what_is_asked_from_is_not(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": OFTEN}, jobs={"keep": 2.0}, speculation=False)
    kept = house.gateway.directory / "kept"
    body = {"model": "model", "messages": [{"role": "user", "content": "a|"}], "max_tokens": 2}
    row = {"custom_id": "a", "method": "POST", "url": CHAT, "body": body}
    with client_of(house) as client:
        file = client.files.create(file=("questions.jsonl", json.dumps(row).encode()), purpose="batch")
        spare = client.files.create(file=("spare.jsonl", b"x"), purpose="batch")
        made = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        until(lambda: spare.id not in {each.id for each in client.files.list()})
        assert client.files.retrieve(file.id).id == file.id
        house.front.engine_up()
        until(lambda: client.batches.retrieve(made.id).status == "completed")
        until(lambda: not [path for path in kept.rglob("*") if path.is_file()])
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve(made.id)


def test_what_a_killed_gateway_left_half_made_goes_and_nothing_that_is_being_written(begin: Callable[..., House]) -> None:
    house = begin()
    house.gateway.close()
    kept = house.gateway.directory / "kept"
    store = Store(kept)
    store.note("batches", "batch_a", batch("batch_a", "in_progress", 0, "file-none") | {"endpoint": CHAT, "model": "another"})
    store.note("files", "file-b", {"id": "file-b", "created_at": 4_000_000_000, "bytes": 1, "purpose": "batch"})
    half, new, whole, page = (kept / "files" / name for name in ("file-half", "file-new", "file-b", ".file-half.json.1"))
    going_on = store.content(file_id("batch_a", "output"))
    for path in (half, going_on, new, whole, page):
        path.write_bytes(b"x")
        if path != new:
            os.utime(path, (0, 0))
    house.gateway_dies()
    until(lambda: not half.exists() and not page.exists())
    assert all(path.exists() for path in (going_on, new, whole))
