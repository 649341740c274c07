"""Several models over HTTP: all are listed, each is asked by its name, in a batch too."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest

from .gateway_harness import House, client_of, until


@pytest.fixture
def house(begin: Callable[..., House]) -> House:
    return begin(others=("second",))


def switching(house: House, times: int) -> threading.Thread:
    """Gives the engine to whoever the front says, so many times."""
    thread = threading.Thread(target=lambda: [house.front.switches() for _ in range(times)], daemon=True)
    thread.start()
    return thread


def message(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_all_of_them_are_listed_and_none_besides(house: House) -> None:
    with client_of(house) as client:
        assert [model.id for model in client.models.list()] == ["model", "second"]
        assert client.models.retrieve("second").id == "second"
        with pytest.raises(openai.NotFoundError, match="'model' and 'second' are served"):
            client.chat.completions.create(model="third", messages=message("ab|"))


def test_each_answers_by_its_name(house: House) -> None:
    house.front.engine_up()
    thread = switching(house, 2)
    with client_of(house) as client:
        for model, text in (("second", "cd"), ("model", "ab")):
            answer = client.chat.completions.create(model=model, messages=message(f"{text}|"), max_tokens=4)
            assert answer.choices[0].message.content == 2 * text
            assert answer.model == model
        fingerprints = {client.completions.create(model=model, prompt="ab|", max_tokens=1).system_fingerprint for model in ("model",)}
    assert fingerprints == {"potato-c0ffee"}
    thread.join(30)


def test_a_batch_asks_both_each_once(house: House) -> None:
    house.front.engine_up()
    thread = switching(house, 1)
    lines = [
        {"custom_id": f"{model} {n}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": model, "messages": message(f"{'ab' if model == 'model' else 'cd'}|"), "max_tokens": 4}}
        for n in range(3) for model in ("model", "second")
    ]  # fmt: skip
    with client_of(house) as client:
        file = client.files.create(file=("q.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        until(lambda: client.batches.retrieve(batch.id).status == "completed")
        found = client.batches.retrieve(batch.id)
        assert found.output_file_id is not None
        rows = [json.loads(row) for row in client.files.content(found.output_file_id).text.splitlines()]
    texts = {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in rows}
    assert texts == {line["custom_id"]: "abab" if line["custom_id"].startswith("model") else "cdcd" for line in lines}
    thread.join(30)


def test_status_says_which_of_them_is_loaded(house: House) -> None:
    house.front.engine_up()
    until(lambda: house.gateway.request("GET", "/status")[2]["engine"]["state"] == "up")
    page = house.gateway.request("GET", "/status")[2]
    assert [(model["name"], model["state"]) for model in page["models"]] == [("model", "up"), ("second", "waiting")]
