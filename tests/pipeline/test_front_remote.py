"""Clients of other machines: with a key that was made for them, and no other way."""

from __future__ import annotations

import json
import socket as sockets
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import zmq

from potato_client import BadKey, BadSocket, Client, NoDaemon, RequestRefused
from potato_client.key_file import load
from potato_client.protocol import FROM_CLIENT, PROTOCOL_VERSION, Hello
from potatod import cli, remote_keys
from potatod.messages import Failed

from .front_harness import Front, front, start_front


def free_port() -> int:
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Place:
    """A front with a port, and keys of clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.first = self.key("laptop")
        self.front: Front = start_front(folder, remote=self.address, keys=str(self.keys))
        self.front.engine_up()

    def key(self, name: str) -> str:
        """The path of a new client's key file."""
        path = self.folder / f"{name}.key"
        path.write_text(remote_keys.add(self.keys, name, self.address).text())
        path.chmod(0o600)
        return str(path)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.front.close()


def answers(client: Client) -> str:
    answer = client.generate("abc|", raw=True, max_tokens=6)
    for _ in answer:
        pass
    return answer.text


def refused(key: str, timeout_s: float = 1.5) -> None:
    with Client(key, timeout_s=timeout_s) as client, pytest.raises(NoDaemon, match="does not let this key in"):
        client.status()


def test_who_has_a_key_is_let_in_and_a_new_one_needs_no_restart(place: Place) -> None:
    with Client(place.first) as client:
        assert answers(client) == "abcabc"
        assert client.address == place.address
    with Client(place.key("phone")) as client:
        assert answers(client) == "abcabc"


def test_who_has_none_is_not_let_in(place: Place) -> None:
    stranger = place.folder / "stranger.key"
    stranger.write_text(remote_keys.add(place.folder / "other keys", "stranger", place.address).text())
    stranger.chmod(0o600)
    refused(str(stranger))
    page = json.loads(stranger.read_text()) | {"server": json.loads(Path(place.first).read_text())["server"]}
    stranger.write_text(json.dumps(page))
    refused(str(stranger))
    plain = place.front.context.socket(zmq.DEALER)
    plain.set(zmq.LINGER, 0)
    plain.connect(place.address)
    plain.send(FROM_CLIENT.encode(Hello(PROTOCOL_VERSION)))
    assert not plain.poll(700), "loopback is no exception"
    plain.close()
    with Client(place.first) as client:
        assert answers(client) == "abcabc"


def test_a_key_that_is_taken_away_is_good_no_more_even_on_an_open_connection(place: Place) -> None:
    with Client(place.first, timeout_s=2.5) as client:
        assert answers(client) == "abcabc"
        remote_keys.remove(place.keys, "laptop")
        time.sleep(1.2)
        with pytest.raises(Exception, match=r"said nothing|has answered"):
            answers(client)
    refused(place.first)


def test_a_key_that_is_given_back_is_good_again_for_a_client_that_was_not_let_in_meanwhile(place: Place) -> None:
    file = place.keys / "clients" / "laptop.key"
    public = file.read_text()
    remote_keys.remove(place.keys, "laptop")
    with Client(place.first, timeout_s=1.5) as client:
        with pytest.raises(NoDaemon):
            client.status()
        file.write_text(public)
        time.sleep(1.2)
        assert answers(client) == "abcabc"


def test_a_file_among_the_keys_that_is_none_keeps_nobody_out(place: Place) -> None:
    (place.keys / "clients" / "junk.key").write_bytes(b"\xff\xfe" * 20)
    (place.keys / "clients" / "empty.key").touch()
    (place.keys / "clients" / "gone.key").symlink_to("/nowhere")
    time.sleep(1.2)
    with Client(place.first) as client:
        assert answers(client) == "abcabc"
    with Client(place.key("phone")) as client:
        assert answers(client) == "abcabc"


def test_a_name_that_a_peer_gives_itself_is_no_name(place: Place) -> None:
    key = load(Path(place.first))
    peer = place.front.context.socket(zmq.DEALER)
    for option, value in ((zmq.CURVE_SERVERKEY, key.server), (zmq.CURVE_PUBLICKEY, key.public), (zmq.CURVE_SECRETKEY, key.secret)):
        peer.set(option, value.encode())
    peer.set(zmq.LINGER, 0)
    peer.set(zmq.ROUTING_ID, b"somebody")
    peer.connect(place.address)
    peer.send(FROM_CLIENT.encode(Hello(PROTOCOL_VERSION)))
    assert not peer.poll(700)
    peer.close()


def test_a_peer_of_an_old_zeromq_disturbs_nobody(place: Place) -> None:
    with sockets.socket(sockets.AF_UNIX) as old:
        old.connect(place.front.socket.removeprefix("ipc://"))
        old.sendall(b"\xff" + bytes(7) + b"\x01\x7f\x01\x05" + b"\x00\x00" + b"\x00\x02hi")
        time.sleep(0.3)
        with Client(place.front.socket) as client:
            assert answers(client) == "abcabc"


def test_each_sees_its_own_jobs_and_this_machine_sees_all(place: Place) -> None:
    phone = place.key("phone")
    with Client(place.first) as one, Client(phone) as two, Client(place.front.socket) as local:
        mine, theirs, here = (client.submit("abc|", raw=True, max_tokens=3) for client in (one, two, local))
        assert [report.job for report in one.jobs()] == [mine]
        assert [report.job for report in two.jobs()] == [theirs]
        assert {report.job for report in local.jobs()} == {mine, theirs, here}
        for job in (theirs, theirs[:6], here):
            with pytest.raises(RequestRefused, match="there is no job"):
                one.show(job)
            with pytest.raises(RequestRefused, match="there is no job"):
                one.manage(job, "cancel")
        assert local.show(theirs).prompt == "abc|"
        answer = two.attach(theirs)
        assert "".join(piece.text for piece in answer) == "abc"


def test_garbage_at_the_port_disturbs_nobody(place: Place) -> None:
    host, port = place.address.removeprefix("tcp://").split(":")
    with ExitStack() as connections:
        for number in range(100):
            connection = connections.enter_context(sockets.create_connection((host, int(port))))
            with suppress(OSError):  # it is thrown out while it speaks
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n" if number % 2 else bytes(range(256)) * 40)
        with Client(place.first) as client:
            assert answers(client) == "abcabc"


def test_without_keys_nothing_is_opened(tmp_path: Path) -> None:
    begun = front(tmp_path, remote=f"tcp://127.0.0.1:{free_port()}", keys=str(tmp_path / "none"))
    try:
        failed = begun.wait_for(lambda message: isinstance(message, Failed))
    finally:
        begun.close()
    assert failed.exit_code == 78
    assert "potatod keys add" in failed.why


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    remote_keys.add(tmp_path / "keys", "laptop", "tcp://x:1")
    with sockets.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        begun = front(tmp_path, remote=address, keys=str(tmp_path / "keys"))
        try:
            failed = begun.wait_for(lambda message: isinstance(message, Failed))
        finally:
            begun.close()
    assert failed.exit_code == 78
    assert address in failed.why


def test_a_key_that_others_may_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.key"
    path.write_text(remote_keys.add(tmp_path / "keys", "x", "tcp://h:1").text())
    path.chmod(0o644)
    with pytest.raises(BadKey, match="chmod 600"):
        Client(str(path))
    path.chmod(0o600)
    bad = json.loads(path.read_text()) | {"server": "\x7f" * 40}
    for text in (json.dumps(bad), json.dumps(bad | {"server": "x" * 39}), "[]", "\xff"):
        path.write_text(text)
        with pytest.raises(BadKey, match="is no key"):
            Client(str(path))
    path.write_text("{}")
    with pytest.raises(BadKey, match="is no key"):
        Client(str(path))
    with pytest.raises(BadKey, match="no key file that can be read"):
        Client(str(tmp_path / "none"))
    with pytest.raises(BadSocket, match="needs a key"):
        Client("tcp://127.0.0.1:1")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "potatod.toml"
    config.write_text(f'[front]\nremote = "tcp://0.0.0.0:7575"\nkeys = "{tmp_path}/keys"\n')
    given = ["--config", str(config)]
    out = tmp_path / "laptop.key"
    assert cli.main(["keys", "add", "laptop", str(out), *given]) == 0
    assert f"bring {out} to it" in capsys.readouterr().err
    assert out.stat().st_mode & 0o777 == 0o600
    key = json.loads(out.read_text())
    assert key["address"] == f"tcp://{sockets.gethostname()}:7575"
    assert cli.main(["keys", "add", "phone", str(tmp_path / "p.key"), "--address", "10.0.0.9:1", *given]) == 0
    assert json.loads((tmp_path / "p.key").read_text())["address"] == "tcp://10.0.0.9:1"
    capsys.readouterr()
    assert cli.main(["keys", "list", *given]) == 0
    assert capsys.readouterr().out == "laptop\nphone\n"
    for path in (tmp_path / "keys").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
        assert key["secret"] not in (path.read_text() if path.is_file() else "")
    assert cli.main(["keys", "add", "laptop", str(tmp_path / "other"), *given]) == 64
    assert "already" in capsys.readouterr().err
    assert cli.main(["keys", "add", "../x", str(tmp_path / "other"), *given]) == 64
    assert cli.main(["keys", "add", "x", str(tmp_path / "other"), "--address", "no port", *given]) == 64
    assert cli.main(["keys", "remove", "laptop", *given]) == 0
    assert cli.main(["keys", "remove", "laptop", *given]) == 64
    capsys.readouterr()
    cli.main(["keys", "list", *given])
    assert capsys.readouterr().out == "phone\n"
