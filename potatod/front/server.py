"""The daemon's end of the public protocol: frames in, messages out, and who the clients are.

Nothing a client sends or fails to do may stop the loop: frames are bounded before they are parsed, a bad one is
answered with Refused, what a client sends too fast is dropped, one that does not read is forgotten. What a message asks
for is decided elsewhere.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq

from potato_client.codec import MAX_FRAME_BYTES, BadFrame
from potato_client.protocol import (
    BURST_FRAMES,
    FRAMES_PER_S,
    FROM_CLIENT,
    FROM_FRONT,
    MAX_UNREAD,
    PROTOCOL_VERSION,
    VANISHED_S,
    Alive,
    Hello,
    RefusalCode,
    Refused,
    Welcome,
)
from potatod.errors import ConfigError

from .remote import Remote
from .socket_lock import SocketLock

#: A peer that sends a larger one is disconnected; up to here it is told why its frame is refused.
_MAX_MESSAGE_BYTES: Final = 2 * MAX_FRAME_BYTES
#: Frames that lie between a client and us before it must wait.
_RECEIVE_FRAMES: Final = 8
_HANDSHAKE_MS: Final = 5000
#: Peers that we remember; beyond it the one silent for longest goes.
_MAX_CLIENTS: Final = 1024
#: Each connection takes a descriptor, whether anything is said or not; and libzmq ends its process where it wants one that is not there.
_MAX_DESCRIPTORS: Final = 1 << 16


@dataclass(slots=True)
class Client:
    heard_at: float
    #: who it is, as the kernel or its key says
    owner: str
    #: what it called itself in Hello; None before that
    name: str | None = None
    #: frames it may still send now
    allowance: float = field(default=BURST_FRAMES)
    #: whether it has been told that its frames are being dropped
    warned: bool = False


_NOBODY: Final = Client(0.0, "")


@dataclass(frozen=True, slots=True)
class _Door:
    """A bound ROUTER socket; a client's identity begins with the door that it came through."""

    mark: bytes
    socket: zmq.Socket[bytes]
    #: who has sent a frame; None: somebody who is not let in any more
    owner: Callable[[zmq.Frame], str | None]


class Server:
    """Bound ROUTER sockets and what is known of their peers. ZeroMQ tells nobody when a peer leaves; silence must do."""

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        *,
        boot: str,
        daemon: str,
        models: tuple[str, ...],
        max_context_tokens: int,
        remote: tuple[str, Path] | None = None,
        vanished_s: float = VANISHED_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``models``: the first is meant where a client names none, and has ``max_context_tokens``; ``remote``: where clients of other machines
        connect, and the folder of their keys."""
        _may_open_many()
        self.boot = boot
        self._welcome = Welcome(PROTOCOL_VERSION, boot, daemon, models[0], max_context_tokens, models)
        self._vanished_s = vanished_s
        self._clock = clock
        self._clients: dict[bytes, Client] = {}
        os.umask(0o077)
        self._lock = SocketLock(Path(endpoint.removeprefix("ipc://")))
        self._doors = [_Door(b"l", _local(context, endpoint), _local_owner)]
        self._remote: Remote | None = None
        if remote is not None:
            self._remote = Remote(context, remote[1])
            self._doors.append(_Door(b"r", _remote(context, remote[0], self._remote), self._remote_owner))

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        return tuple(door.socket for door in self._doors)

    def receive(self, at_most: int) -> Iterator[tuple[bytes, str, Any]]:
        """``(identity, owner, message)`` from greeted clients: everything but Hello and Alive, which are answered here.

        Reads at most so many frames, so that a flood does not keep the sweeps waiting.
        """
        waiting = list(self._doors)
        for number in range(at_most):
            if not waiting:
                return
            door = waiting[number % len(waiting)]
            try:
                first, *rest = door.socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                waiting.remove(door)
                continue
            identity, owner = door.mark + first.bytes, door.owner(first)
            if owner is None or owner != self._clients.get(identity, _NOBODY).owner:
                self.forget(identity)  # it was let in once, or another has come by the same name
            if owner is None:
                continue
            message = self._message(identity, owner, [frame.bytes for frame in rest])
            if message is not None:
                yield identity, owner, message

    def send(self, identity: bytes, message: object) -> bool:
        """Never waits. Whether it is on its way; a client whose queue is full, or who left, is forgotten, and nothing more is said to it."""
        if identity not in self._clients:
            return False
        socket = next(door.socket for door in self._doors if door.mark == identity[:1])
        try:
            socket.send_multipart([identity[1:], FROM_FRONT.encode(message)], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self._clients.pop(identity, None)
            return False
        return True

    def vanished(self, identity: bytes) -> bool:
        """Whether this client left, does not read, or was silent for too long while it expected something."""
        client = self._clients.get(identity)
        return client is None or client.name is None or self._clock() - client.heard_at > self._vanished_s

    def forget(self, identity: bytes) -> None:
        """Nothing is said to it until it says Hello again: it has missed something."""
        self._clients.pop(identity, None)

    def close(self, linger_ms: int) -> None:
        """Lets the last messages go out, then frees the path."""
        for door in self._doors:
            door.socket.close(linger=linger_ms)
        if self._remote is not None:
            self._remote.close()
        self._lock.release()

    def _remote_owner(self, frame: zmq.Frame) -> str | None:
        assert self._remote is not None
        if frame.bytes[:1] != b"\0":
            return None  # a name that it has chosen itself, and another might choose as well
        name = self._remote.name_of(frame)
        return None if name is None else f"key:{name}"

    def _message(self, identity: bytes, owner: str, frames: list[bytes]) -> Any | None:
        client = self._client(identity, owner)
        if not self._within_bounds(identity, client):
            return None
        try:
            if len(frames) != 1:
                raise BadFrame(f"a message is one frame, not {len(frames)}")
            message = FROM_CLIENT.decode(frames[0])
        except BadFrame as error:
            self._refuse(identity, "bad_frame", f"not understood: {error}"[:500])
            return None
        if isinstance(message, Hello):
            self._greet(identity, client, message)
        elif isinstance(message, Alive) and client.name is not None:
            self.send(identity, Alive(self.boot))
        elif client.name is None:
            self._refuse(identity, "hello_first", "the first message must be Hello", getattr(message, "request", None))
        else:
            return message
        return None

    def _greet(self, identity: bytes, client: Client, hello: Hello) -> None:
        if hello.version != PROTOCOL_VERSION:
            why = (
                f"the client speaks version {hello.version} of the protocol and this daemon version "
                f"{PROTOCOL_VERSION}: install the same release of both"
            )
            self._refuse(identity, "bad_version", why)
        elif self.send(identity, self._welcome):
            client.name = hello.client[:100]

    def _client(self, identity: bytes, owner: str) -> Client:
        now = self._clock()
        client = self._clients.get(identity)
        if client is None:
            if len(self._clients) >= _MAX_CLIENTS:
                self._forget_one(identity[:1])
            client = self._clients[identity] = Client(now, owner)
        client.allowance = min(BURST_FRAMES, client.allowance + (now - client.heard_at) * FRAMES_PER_S)
        client.heard_at = now
        return client

    def _within_bounds(self, identity: bytes, client: Client) -> bool:
        client.allowance -= 1
        if client.allowance >= 0:
            client.warned = False
            return True
        client.allowance = 0
        if not client.warned:
            client.warned = True
            self._refuse(identity, "too_fast", f"more than {FRAMES_PER_S} frames a second: what you send is dropped until you pause")
        return False

    def _refuse(self, identity: bytes, code: RefusalCode, message: str, request: int | None = None) -> None:
        self.send(identity, Refused.because(code, message, request=request))

    def _forget_one(self, mark: bytes) -> None:
        """The one silent for longest of those that came through the same door, where there are any; peers that never said Hello before all others."""
        same = [identity for identity in self._clients if identity[:1] == mark] or list(self._clients)
        del self._clients[min(same, key=lambda i: (self._clients[i].name is not None, self._clients[i].heard_at))]


def _local_owner(frame: zmq.Frame) -> str | None:
    """Who the kernel says has sent it: libzmq calls a peer on this machine "localhost:uid:gid:pid"."""
    try:
        uid = str(frame.get("Peer-Address")).split(":")[1]
    except (zmq.ZMQError, IndexError):  # an old protocol of ZeroMQ says nothing of its peer
        return None
    return f"uid:{uid}"


def _may_open_many() -> None:
    """As many descriptors as this process may give itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _MAX_DESCRIPTORS)), hard))


def _local(context: zmq.Context[Any], endpoint: str) -> zmq.Socket[bytes]:
    socket = _router(context)
    for uid in {0, os.getuid()}:
        socket.set(zmq.IPC_FILTER_UID, uid)
    socket.bind(endpoint)
    return socket


def _remote(context: zmq.Context[Any], endpoint: str, remote: Remote) -> zmq.Socket[bytes]:
    socket = _router(context)
    socket.set(zmq.IPV6, 1)
    remote.protect(socket)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        remote.close()
        raise ConfigError(f"cannot listen at [front] remote {endpoint}: {error.strerror}") from error
    return socket


def _router(context: zmq.Context[Any]) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    socket.set(zmq.ROUTER_MANDATORY, 1)
    socket.set(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
    socket.set_hwm(0)
    socket.set(zmq.RCVHWM, _RECEIVE_FRAMES)
    socket.set(zmq.SNDHWM, MAX_UNREAD)
    socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.set(zmq.LINGER, 0)
    return socket
