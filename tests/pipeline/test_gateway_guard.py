"""Who may ask over HTTP, how much and how slowly; and what strangers' connections do to those who may."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from potato_client import Client
from potatod.gateway import query
from potatod.messages import Failed

from .front_harness import start_front
from .gateway_harness import Gateway, House, until

#: `make torture` asks for more.
CONNECTIONS = int(os.environ.get("POTATO_CONNECTIONS", "200"))
#: The head of a request comes within this, or never.
HASTY = """
import sys
from potatod import stage
from potatod.gateway import gateway, guard, listener
listener.HEAD_S = guard.PIECE_S = 0.5
sys.exit(stage.run("gateway", gateway.work))
"""
QUESTION: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": "a|"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    more = {"hosts": ["potato.example.org"], "origins": ["http://localhost:3000"]}
    made = House(tmp_path_factory.mktemp("house"), gateway=more)
    made.front.engine_up()
    yield made
    made.close()


def test_the_token_is_made_at_first_and_nobody_else_may_read_it(house: House) -> None:
    path = house.gateway.directory / "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = house.gateway.token
    assert len(before) > 40
    house.gateway_dies()
    assert house.gateway.token == before


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer potato-wrong", "Basic dXNlcjpwYXNz", "Bearer é"])
def test_without_the_token_there_is_nothing_but_health(house: House, authorization: str) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/jobs"), ("GET", "/status"), ("GET", "/nowhere")):
        status, headers, page = house.gateway.request(method, path, Authorization=authorization)
        assert (status, page["error"]["type"], headers["www-authenticate"]) == (401, "authentication_error", "Bearer")
        assert "potatod token" in page["error"]["message"]
    assert house.gateway.request("GET", "/health", Authorization=authorization)[0] == 200


@pytest.mark.parametrize(
    ("host", "let_in"),
    [
        ("localhost", True), ("127.0.0.1:8089", True), ("[::1]:8089", True), ("192.168.0.7", True), ("potato.example.org:443", True),
        ("POTATO.example.org", True), ("evil.example.org", False), ("localhost.evil.org", False), ("", False), ("127.0.0.1.nip.io", False),
    ],
)  # fmt: skip
def test_another_name_is_not_let_in_even_with_the_token(house: House, host: str, let_in: bool) -> None:
    """A page may have its own name point to this machine; a browser then takes us for that page's server."""
    status, _, page = house.gateway.request("GET", "/v1/models", Host=host)
    assert status == (200 if let_in else 421)
    assert let_in or "[gateway] hosts" in page["error"]["message"]


def test_pages_of_other_origins_may_not_read_what_is_answered(house: House) -> None:
    ours = house.gateway.request("GET", "/v1/models", Origin="http://localhost:3000")[1]
    assert ours["access-control-allow-origin"] == "http://localhost:3000"
    others = house.gateway.request("GET", "/v1/models", Origin="http://evil.example.org")[1]
    assert "access-control-allow-origin" not in others
    asked = {"Origin": "http://evil.example.org", "Access_Control_Request_Method": "POST"}
    assert house.gateway.request("OPTIONS", "/v1/chat/completions", **asked)[0] == 400


def test_bodies_are_bounded_and_json(house: House) -> None:
    request = house.gateway.request
    assert request("POST", "/v1/chat/completions", b"{", Content_Length=str(1 << 30))[0] == 413
    assert request("POST", "/v1/chat/completions", b"a=b", Content_Type="application/x-www-form-urlencoded")[0] == 415
    for text in (b"", b"{", b"[]", b"1", b"[" * 100_000, b'{"model": NaN}', b'{"a":' * 100_000, b"\xff"):
        assert request("POST", "/v1/chat/completions", text)[0] == 400, text[:20]
    large = b'{"model": "model", "prompt": "' + b"x" * (17 << 20) + b'"}'
    assert request("POST", "/v1/completions", large)[0] == 413


def test_who_asks_before_sending_a_body_that_is_too_large_is_not_told_to_go_on(house: House) -> None:
    """As curl does."""
    with raw(house) as connection:
        connection.sendall(too_large(house) + b"Expect: 100-continue\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_is_too_large_and_stops_is_refused_and_one_that_never_ends_is_ended(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": HASTY})
    with raw(house) as connection:
        connection.sendall(too_large(house) + b"\r\n{")
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")
    with raw(house) as connection:
        connection.sendall(too_large(house) + b"\r\n")
        with pytest.raises(ConnectionError):
            send_for_ever(connection)


def send_for_ever(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 65536)


def too_large(house: House) -> bytes:
    """But for the last line of its head."""
    head = f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {house.gateway.token}\r\nContent-Length: {1 << 40}\r\n"
    return head.encode()


def test_what_is_not_there_is_said_in_the_same_shape(house: House) -> None:
    assert house.gateway.request("GET", "/nowhere")[2]["error"]["code"] == "not_found"
    status, headers, page = house.gateway.request("GET", "/v1/chat/completions")
    assert (status, page["error"]["type"], headers["allow"]) == (405, "invalid_request_error", "POST")
    assert headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "name", "near"),
    [
        ("GET", "/health?verbose=1", "verbose", ""), ("GET", "/v1/models?limit=1", "limit", ""), ("GET", "/metrics?name=up", "name", ""),
        ("POST", "/v1/chat/completions?api-version=1", "api-version", ""), ("POST", "/v1/responses?stream=true", "stream", ""),
        ("GET", "/v1/responses/resp_a?include=usage", "include", ""), ("GET", "/v1/responses/resp_a/input_items?lmit=2", "lmit", "limit"),
        ("GET", "/v1/files?status=processed", "status", ""), ("DELETE", "/v1/files/file-a?force=true", "force", ""),
        ("GET", "/v1/batches?order=asc", "order", ""), ("GET", "/jobs?stat=running", "stat", "state"), ("POST", "/jobs/a/cancel?now=1", "now", ""),
    ],
)  # fmt: skip
def test_what_is_not_known_behind_an_address_is_refused_by_its_name(house: House, method: str, path: str, name: str, near: str) -> None:
    status, _, page = house.gateway.request(method, path)
    assert (status, page["error"]["param"], page["error"]["code"]) == (400, name, "unknown_parameter")
    assert ("did you mean" in page["error"]["message"]) == bool(near)
    assert near in page["error"]["message"]


def test_every_address_says_what_may_stand_behind_it() -> None:
    made = [path.name for path in Path(query.__file__).parent.glob("*.py") if re.search(r"\bRoute\(", path.read_text())]
    assert made == ["query.py"]


def test_ready_is_who_can_compute(begin: Callable[..., House]) -> None:
    house = begin()
    assert house.gateway.request("GET", "/health/ready")[::2] == (503, {"status": "starting"})
    assert house.gateway.request("GET", "/health/live")[0] == 200
    house.front.engine_up()
    until(lambda: house.gateway.request("GET", "/health/ready")[0] == 200)
    assert house.gateway.request("GET", "/status")[2]["engine"]["state"] == "up"


def test_a_request_that_does_not_come_to_its_end_is_ended(begin: Callable[..., House]) -> None:
    house = begin(gateway={"program": HASTY})
    house.front.engine_up()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {house.gateway.token}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    for start in (b"", b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n", head.encode(), head.encode() + b"{"):
        with raw(house) as connection:
            connection.sendall(start)
            connection.settimeout(10)
            answer = connection.recv(1 << 16)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("end", ["\r\n\r\n", ""])
@pytest.mark.parametrize("where", ["/v1/models?{}", "/v1/models HTTP/1.1\r\nX-Long: {}"])
def test_a_head_that_is_too_large_is_refused_whether_or_not_it_is_complete(house: House, where: str, end: str) -> None:
    for size, statuses in ((30 << 10, (200, 400)), (34 << 10, (431,))):
        first = f"GET {where.format('x' * size)}"
        head = first if "HTTP/1.1" in first else f"{first} HTTP/1.1"
        with raw(house) as connection:
            connection.sendall(f"{head}\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {house.gateway.token}{end}".encode())
            if not end and statuses != (431,):
                continue  # more may come
            answer, body = read_all(connection).split(b"\r\n\r\n", 1)
            assert int(answer.split(b" ")[1]) in statuses
            assert statuses != (431,) or json.loads(body)["error"]["code"] == "too_large"


def test_what_is_no_http_is_refused_in_the_same_shape(house: House) -> None:
    with raw(house) as connection:
        connection.sendall(b"what is this\r\n\r\n")
        answer, body = read_all(connection).split(b"\r\n\r\n", 1)
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_strangers_that_fill_all_places_keep_nobody_out_who_has_the_token(begin: Callable[..., House]) -> None:
    few = "import sys\nfrom potatod import stage\nfrom potatod.gateway import gateway, listener\nlistener.MAX_CONNECTIONS, listener._CROWDED = 40, 30\n"
    house = begin(gateway={"program": f'{few}sys.exit(stage.run("gateway", gateway.work))'})
    house.front.engine_up()
    with ExitStack() as strangers:
        for number in range(60):
            connection = strangers.enter_context(raw(house))
            connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" if number % 2 else b"GET /")
        assert house.gateway.request("GET", "/v1/models")[0] == 200


def test_strangers_connections_cost_those_who_are_answered_nothing(begin: Callable[..., House]) -> None:
    """Of all sorts, and as many as there may be: half open, garbage, too large, closed in the middle. Jobs go on, and memory does not grow."""
    house = begin(gateway={"program": HASTY}, speculation=False, max_context=2048)
    house.front.engine_up(delay_s=0.002)
    chance = random.Random(3)
    with Client(house.front.socket) as native:
        job = native.submit("running|", raw=True, max_tokens=1500)
        memory = psutil.Process(house.gateway.process.pid)
        storm(house, chance, CONNECTIONS // 4)
        before = memory.memory_info().rss
        storm(house, chance, CONNECTIONS)
        assert memory.memory_info().rss - before < 64 << 20
        assert house.gateway.request("POST", "/v1/chat/completions", QUESTION)[2]["choices"][0]["message"]["content"] == "aa"
        answer = native.attach(job)
        assert "".join(piece.text for piece in answer) == ("running" * 300)[:1500]
    until(lambda: len(memory.net_connections()) < 10)
    assert "Traceback" not in house.gateway.log


def storm(house: House, chance: random.Random, count: int) -> None:
    with ExitStack() as open_ones:
        for _ in range(count):
            connection = open_ones.enter_context(raw(house))
            for piece in garbage(house, chance):
                try:
                    connection.sendall(piece)
                except OSError:
                    break
            if chance.random() < 0.3:
                connection.close()
        time.sleep(0.1)


def garbage(house: House, chance: random.Random) -> list[bytes]:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {house.gateway.token}\r\n".encode()
    head += b"Content-Type: application/json\r\n"
    return chance.choice([
        [],
        [chance.randbytes(chance.randrange(1, 4000))],
        [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20],
        [b"GET / HTTP/1.1\r\n", b"X: " + b"y" * 70_000],
        [head + b"Content-Length: 99999999999999999999\r\n\r\n"],
        [head + b"Content-Length: 50\r\n\r\n", b'{"model":'],
        [head + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n", b"zz\r\n"],
        [head + b"Content-Length: 2\r\n\r\n{}"],
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(200)],  # TLS
    ])  # fmt: skip


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(1 << 16):
        found += piece
    return found


def raw(house: House) -> socket.socket:
    host, port = house.gateway.url.removeprefix("http://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=10)


# a gateway that cannot begin


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda place: (place / "token").write_text("short"), "is no token"),
        (lambda place: ((place / "token").write_text("potato-" + "x" * 40), (place / "token").chmod(0o644)), "others may read the token"),
        (lambda place: (place / "kept").write_text("a file"), "cannot write [gateway] path"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_an_exit_code(tmp_path: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    place = tmp_path / "gateway"
    place.mkdir()
    spoil(place)
    assert sentence in why_it_fails(tmp_path, place)


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"cannot listen at [gateway] listen {listen}: Address already in use" in why_it_fails(tmp_path, tmp_path / "gateway", listen=listen)


def why_it_fails(tmp_path: Path, place: Path, **changes: Any) -> str:
    front = start_front(tmp_path)
    try:
        gateway = Gateway(front, place, **changes)
        try:
            said = gateway.wait_said()
            assert isinstance(said, Failed), said
            assert gateway.process.wait(10) == 78
            return said.why
        finally:
            gateway.close()
    finally:
        front.close()


def test_metrics_say_what_status_says_and_what_http_does(begin: Callable[..., House]) -> None:
    house = begin()
    assert "potato_up 0.0" in house.gateway.request("GET", "/metrics")[2]
    house.front.engine_up(delay_s=0.01)
    until(lambda: house.gateway.request("GET", "/health/ready")[0] == 200)
    assert house.gateway.request("POST", "/v1/chat/completions", QUESTION)[0] == 200
    assert house.gateway.request("POST", "/v1/chat/completions", {})[0] == 400
    time.sleep(1.1)  # a status is kept for a second
    status, headers, text = house.gateway.request("GET", "/metrics")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert (values["potato_up"], values["potato_tokens_total"], values["potato_prompt_tokens_total"]) == ("1.0", "2.0", "2.0")
    assert float(values["potato_sweep_seconds"]) >= 0.01
    assert values['potato_http_requests_total{path="/v1/chat/completions",status="200"}'] == "1.0"
    assert values['potato_http_requests_total{path="/v1/chat/completions",status="400"}'] == "1.0"
