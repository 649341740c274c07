"""The gateway behind caddy as it is, with the few lines that docs/OPERATIONS.md shows: TLS and another name before it, nothing else changes."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from .front_harness import PATIENCE_S
from .gateway_harness import IMPATIENT, House, until

NAME = "potato.example.org"
SHOWN = re.findall(r"```caddyfile\n(.*?)```", (Path(__file__).parents[2] / "docs" / "OPERATIONS.md").read_text(), re.DOTALL)
#: Here nobody gives out certificates for that name, and the usual ports are not ours.
HERE = "{{\n\tadmin off\n\tlocal_certs\n\tskip_install_trust\n\tauto_https disable_redirects\n\tstorage file_system {place}\n}}\n"
STORY: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": "a story, |"}], "max_tokens": 30}


class Proxy:
    def __init__(self, place: Path, port: int) -> None:
        self.port = port
        self.url = f"https://{NAME}:{port}/v1"
        self.tls = ssl.create_default_context(cafile=place / "pki" / "authorities" / "local" / "root.crt")

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(NAME, self.port, context=self.tls, timeout=PATIENCE_S)

    def client_of(self, house: House) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=house.gateway.token, max_retries=0, http_client=openai.DefaultHttpxClient(verify=self.tls))


@contextmanager
def proxied(house: House, place: Path) -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shown = SHOWN[0].replace(NAME, f"{NAME}:{port}").replace("127.0.0.1:8089", house.gateway.url.removeprefix("http://"))
    (place / "Caddyfile").write_text(HERE.format(place=place) + shown)
    log = (place / "caddy.log").open("wb")
    command = [Path(sys.executable).parent / "caddy", "run", "--config", place / "Caddyfile"]
    with closing(log), subprocess.Popen(command, stdout=log, stderr=log, env={"HOME": str(place)}) as caddy:
        try:
            until(lambda: caddy.poll() is not None or b"certificate obtained successfully" in (place / "caddy.log").read_bytes())
            assert caddy.poll() is None, (place / "caddy.log").read_text()
            yield Proxy(place, port)
        finally:
            caddy.terminate()


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is this machine's."""
    ask = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **named: ask("127.0.0.1" if host == NAME else host, *more, **named))


@pytest.mark.usefixtures("resolved")
def test_streams_pass_as_they_come_and_whoever_leaves_is_noticed(begin: Callable[..., House], tmp_path: Path) -> None:
    assert len(SHOWN) == 1
    house = begin(gateway={"hosts": [NAME], "program": IMPATIENT}, speculation=False)
    house.front.engine_up(delay_s=0.1)
    (tmp_path / "caddy").mkdir()
    with proxied(house, tmp_path / "caddy") as proxy, proxy.client_of(house) as client:
        assert [model.id for model in client.models.list()] == ["model"]
        arrived, text = [], ""
        for chunk in client.chat.completions.create(**STORY, stream=True):
            arrived.append(time.monotonic())
            text += chunk.choices[0].delta.content or ""
        assert text == ("a story, " * 4)[:30]
        assert len({round(at / 0.1) for at in arrived}) > 15, "30 tokens that are 0.1 s apart"
        assert client.chat.completions.create(**STORY).choices[0].message.content == text
        with client.chat.completions.create(**{**STORY, "max_tokens": 200}, stream=True) as stream:
            next(iter(stream))
        until(lambda: "cancelled" in {job["state"] for job in house.gateway.request("GET", "/jobs")[2]["jobs"]})


@pytest.mark.usefixtures("resolved")
def test_a_name_that_is_not_among_the_hosts_is_refused_as_ever(begin: Callable[..., House], tmp_path: Path) -> None:
    house = begin()
    (tmp_path / "caddy").mkdir()
    with proxied(house, tmp_path / "caddy") as proxy, proxy.client_of(house) as client:
        with pytest.raises(openai.APIStatusError, match="hosts") as refused:
            client.models.list()
        assert refused.value.status_code == 421


@pytest.mark.usefixtures("resolved")
def test_silence_is_filled_so_that_nothing_is_cut(begin: Callable[..., House], tmp_path: Path) -> None:
    often = "import sys\nfrom potatod import stage\nfrom potatod.gateway import gateway, streams\nstreams.PING_S = 0.1\n"
    house = begin(gateway={"hosts": [NAME], "program": f'{often}sys.exit(stage.run("gateway", gateway.work))'})
    worker = house.front.engine_up()
    worker.hold.set()
    (tmp_path / "caddy").mkdir()
    with proxied(house, tmp_path / "caddy") as proxy, closing(proxy.connect()) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps({**STORY, "stream": True}), house.gateway.headers)
        answer = connection.getresponse()
        while not answer.readline().startswith(b": "):
            assert answer.status == 200 and not answer.isclosed(), "nothing has been computed"
        worker.hold.clear()
        assert answer.read().decode().rstrip().endswith("data: [DONE]")
