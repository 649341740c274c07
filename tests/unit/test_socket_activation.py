"""The socket that systemd may hand over: taken where it is the gateway's, refused in a sentence where it is something else."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from potatod import socket_activation
from potatod.errors import ConfigError

LISTEN = "127.0.0.1:8089"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.set_inheritable(True)  # as systemd leaves it
        yield made


def handed(count: int = 1, names: str | None = "gateway", pid: int | None = None) -> dict[str, str]:
    """What systemd puts into the environment."""
    said = {"LISTEN_FDS": str(count), "LISTEN_PID": str(pid or os.getpid()), "HOME": "/h"}
    return said if names is None else said | {"LISTEN_FDNAMES": names}


@pytest.mark.parametrize("names", ["gateway", None])
def test_the_gateways_socket_is_taken_and_kept_from_children_who_are_not_told_of_it_either(listening: socket.socket, names: str | None) -> None:
    environment = handed(names=names) | {"LISTEN_PIDFDID": "7"}
    fd = socket_activation.take(environment, os.getpid(), LISTEN, first=listening.fileno())
    assert fd == listening.fileno()
    assert not os.get_inheritable(fd)
    assert environment == {"HOME": "/h"}
    with socket.create_connection(listening.getsockname(), timeout=10):  # it listens on
        pass


@pytest.mark.parametrize(
    "environment",
    [{}, handed(count=0), handed(pid=os.getpid() + 1), {"LISTEN_FDS": "1"}, handed() | {"LISTEN_FDS": "many"}, handed() | {"LISTEN_FDS": "-1"}],
    ids=["nothing", "none", "another's", "nobody's", "no number", "less than none"],
)
def test_what_was_handed_to_nobody_or_another_is_not_touched(listening: socket.socket, environment: dict[str, str]) -> None:
    assert socket_activation.take(environment, os.getpid(), LISTEN, first=listening.fileno()) is None
    assert set(environment) <= {"HOME"}
    assert os.get_inheritable(listening.fileno())


@pytest.mark.parametrize(
    ("count", "names", "says"),
    [(1, "potatod.socket", r"1 sockets \(potatod.socket\)"), (2, "gateway:other", "one is wanted"), (2, "gateway", "2 sock"), (2, None, "2 sock")],
)
def test_other_sockets_than_the_gateways_one_are_refused_by_their_names(listening: socket.socket, count: int, names: str | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        socket_activation.take(handed(count, names), os.getpid(), LISTEN, first=listening.fileno())
    assert "FileDescriptorName=gateway" in str(refused.value)


def test_a_socket_without_a_gateway_is_refused_as_nobody_would_answer_there(listening: socket.socket) -> None:
    with pytest.raises(ConfigError, match=r"\[gateway\] listen is empty"):
        socket_activation.take(handed(), os.getpid(), "", first=listening.fileno())


def test_what_does_not_listen_for_streams_is_refused(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ours, theirs = map(stack.enter_context, socket.socketpair())
        bound = stack.enter_context(closing(socket.socket()))
        bound.bind(("127.0.0.1", 0))
        datagrams = stack.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        file = stack.enter_context((tmp_path / "file").open("w"))
        closed = os.dup(file.fileno())
        os.close(closed)
        for fd in (ours.fileno(), theirs.fileno(), bound.fileno(), datagrams.fileno(), file.fileno(), closed):
            with pytest.raises(ConfigError, match="no socket that listens for streams"):
                socket_activation.take(handed(), os.getpid(), LISTEN, first=fd)


def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "http"))
        made.listen()
        assert socket_activation.take(handed(), os.getpid(), LISTEN, first=made.fileno()) == made.fileno()
