"""The clients' socket alone: who is remembered, who has vanished, how much one may send."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from potato_client.protocol import FROM_CLIENT, FROM_FRONT, PROTOCOL_VERSION, Alive, Hello, Refused, Status, Welcome
from potatod.errors import ConfigError, Unavailable
from potatod.front import server as server_module
from potatod.front.server import Server
from potatod.front.socket_lock import SocketLock

#: whom the kernel names
OWNER = f"uid:{os.getuid()}"


def local(name: bytes) -> bytes:
    """A client's identity by the name of its socket."""
    return b"l" + name


ME = local(b"me")


class World:
    """A server, a clock that the test moves, and clients in the same process."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.context: zmq.Context[Any] = zmq.Context()
        self.endpoint = f"ipc://{folder}/s"
        self._sockets: list[zmq.Socket[bytes]] = []
        self.server = Server(
            self.context,
            self.endpoint,
            boot="b",
            daemon="d",
            models=("m",),
            max_context_tokens=9,
            vanished_s=30.0,
            clock=lambda: self.now,
        )

    def client(self, name: bytes) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.DEALER)
        self._sockets.append(socket)
        socket.set(zmq.ROUTING_ID, name)
        socket.connect(self.endpoint)
        return socket

    def close(self) -> None:
        for socket in self._sockets:
            socket.close(linger=0)
        self.server.close(0)
        self.context.term()

    def exchange(self, socket: zmq.Socket[bytes], message: object) -> list[Any]:
        """What the server hands on for this message."""
        socket.send(FROM_CLIENT.encode(message))
        assert self.server.sockets[0].poll(5000)
        return list(self.server.receive(1))

    def greet(self, name: bytes) -> zmq.Socket[bytes]:
        socket = self.client(name)
        assert self.exchange(socket, Hello(PROTOCOL_VERSION)) == []
        assert isinstance(answer(socket), Welcome)
        return socket


def answer(socket: zmq.Socket[bytes]) -> Any:
    assert socket.poll(5000)
    return FROM_FRONT.decode(socket.recv())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    before = os.umask(0o022)
    world = World(tmp_path)
    yield world
    world.close()
    os.umask(before)


def test_what_a_greeted_client_asks_is_handed_on_with_its_identity(world: World) -> None:
    client = world.greet(b"me")
    assert world.exchange(client, Status(4)) == [(ME, OWNER, Status(4))]


def test_a_client_has_vanished_when_it_was_silent_for_too_long_and_is_back_when_it_speaks(world: World) -> None:
    client = world.greet(b"me")
    world.now += 29
    assert not world.server.vanished(local(b"me"))
    world.now += 2
    assert world.server.vanished(local(b"me"))
    assert world.exchange(client, Alive()) == []
    assert not world.server.vanished(local(b"me"))
    assert world.exchange(client, Status(1)) == [(ME, OWNER, Status(1))], "it need not say Hello again"


def test_a_message_to_nobody_is_not_sent_and_does_not_raise(world: World) -> None:
    assert not world.server.send(local(b"nobody"), Alive("b"))
    assert world.server.vanished(local(b"nobody"))


def test_a_client_that_was_too_fast_may_go_on_after_a_pause(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BURST_FRAMES", 3)
    client = world.greet(b"me")
    heard = [len(world.exchange(client, Status(n))) for n in range(5)]
    assert heard.count(1) < 5
    refused = answer(client)
    assert (refused.code, refused.exit_code) == ("too_fast", 75)
    assert "a second" in refused.message
    assert not client.poll(50), "it is told once"
    world.now += 1
    assert len(world.exchange(client, Status(9))) == 1


def test_when_too_many_peers_are_known_the_longest_silent_without_a_hello_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_MAX_CLIENTS", 3)
    client = world.greet(b"me")
    for name in (b"a", b"b", b"c", b"d"):
        world.now += 1
        stranger = world.client(name)
        assert world.exchange(stranger, Status(1)) == []
        assert isinstance(answer(stranger), Refused)
    assert [local(name) in world.server._clients for name in (b"me", b"a", b"b", b"c", b"d")] == [True, False, False, True, True]
    assert [world.server.vanished(local(name)) for name in (b"me", b"c")] == [False, True], "who never said Hello listens to nothing"
    assert world.exchange(client, Status(2)) == [(ME, OWNER, Status(2))]


# the lock


def test_a_path_is_held_by_one_and_free_again_after_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = SocketLock(path)
    with pytest.raises(Unavailable, match=rf"another daemon \(pid {os.getppid()}\) serves at {path}; stop it, or give this one its own"):
        SocketLock(path)
    first.release()
    assert list(tmp_path.iterdir()) == []
    SocketLock(path).release()


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use"):
        SocketLock(tmp_path / "file" / "s")
