"""The gateway within a service: a socket that was handed over, and a configuration that is read again."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from potatod.messages import Reload
from potatod.stage import Boot

from .front_harness import PATIENCE_S
from .gateway_harness import House, until


def test_who_connects_between_two_gateways_is_answered_by_the_next(begin: Callable[..., House]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        house = begin(gateway={"handed": listening})
        assert house.gateway.url == f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert house.gateway.request("GET", "/v1/models")[0] == 200
        house.gateway.close()
        with socket.create_connection(listening.getsockname(), timeout=PATIENCE_S) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            house.gateway_dies()
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        assert house.gateway.stop() == 0
        socket.create_connection(listening.getsockname(), timeout=PATIENCE_S).close()  # a gateway's end closes nothing of it


def test_a_unix_socket_that_was_handed_over_serves_too(begin: Callable[..., House], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(tmp_path / "http"))
        listening.listen()
        house = begin(gateway={"handed": listening})
        assert house.gateway.url == f"unix:{tmp_path}/http"
        client.settimeout(PATIENCE_S)
        client.connect(str(tmp_path / "http"))
        client.sendall(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {house.gateway.token}\r\n\r\n".encode())
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_names_and_origins_that_were_read_again_are_let_in_and_the_others_no_more(begin: Callable[..., House]) -> None:
    house = begin(gateway={"hosts": ["old.example.org"], "origins": ["http://localhost:1"]})
    gateway = house.gateway

    def let_in(host: str, origin: str) -> tuple[int, str | None]:
        status, headers, _ = gateway.request("GET", "/v1/models", Host=host, Origin=origin)
        return status, headers.get("access-control-allow-origin")

    assert let_in("old.example.org", "http://localhost:1") == (200, "http://localhost:1")
    assert let_in("new.example.org", "http://localhost:2") == (421, None)
    holding = Boot.read(gateway.directory / "boot.json").settings
    section = replace(holding.gateway, hosts=("new.example.org",), origins=("http://localhost:2",))
    gateway.control.send(b"gateway", Reload(replace(holding, gateway=section).to_json()))
    until(lambda: let_in("new.example.org", "http://localhost:2") == (200, "http://localhost:2"))
    assert let_in("old.example.org", "http://localhost:1") == (421, None)
