"""Typed ends of the ZeroMQ sockets between the daemon's processes.

Each wire is one ipc socket in the 0700 runtime directory; both ends are ours and know the closed set of its messages. The
``bytes`` and ``sweeps`` wires are PAIRs made anew for every epoch; ``control`` is a ROUTER at the supervisor.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import zmq

from potato_client.codec import Codec

from . import messages

_BYTES: Final = Codec(*messages.BYTES_WIRE)
_SWEEPS: Final = Codec(*messages.SWEEPS_WIRE, max_frame_bytes=1 << 30)
_CONTROL: Final = Codec(*messages.CONTROL_WIRE)


class Wire:
    """One end of a PAIR or DEALER socket that carries the messages of one codec."""

    def __init__(self, socket: zmq.Socket[bytes], codec: Codec) -> None:
        self.socket = socket
        self._codec = codec
        socket.set(zmq.LINGER, 0)
        socket.set_hwm(0)  # what is under way is bounded by the pool and by one sweep at a time

    def send(self, message: object) -> None:
        """Never waits. Where the other end is dead the message is dropped: the supervisor knows, and makes this wire anew."""
        with suppress(zmq.Again):
            self.socket.send(self._codec.encode(message), zmq.DONTWAIT)

    def receive(self) -> Any | None:
        """The next message, None when none is there. Never waits: poll first."""
        try:
            frame = self.socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None
        return self._codec.decode(frame)

    def wait(self, timeout_s: float) -> bool:
        """Whether a message is there, after at most ``timeout_s`` seconds."""
        return bool(self.socket.poll(int(timeout_s * 1000)))

    def close(self) -> None:
        self.socket.close(linger=0)


class ControlRouter:
    """The supervisor's end of the control wire: many stages, known by the identity each gives itself."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        socket.set(zmq.LINGER, 200)

    def receive(self) -> tuple[bytes, Any] | None:
        try:
            identity, frame = self.socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None
        return identity, _CONTROL.decode(frame)

    def send(self, identity: bytes, message: object) -> None:
        """Drops the message when that stage is not connected (it is dead, or not there yet)."""
        self.socket.send_multipart([identity, _CONTROL.encode(message)], zmq.DONTWAIT)

    def close(self) -> None:
        self.socket.close()


def address(directory: Path, name: str, epoch: int | None = None) -> str:
    return f"ipc://{directory}/{name}" + ("" if epoch is None else f".{epoch}")


def bytes_wire(context: zmq.Context[Any], directory: Path, epoch: int, *, bind: bool) -> Wire:
    """Reader (connects, so that what it sends early waits in its queue) ⇄ worker (binds)."""
    return _pair(context, address(directory, "bytes", epoch), _BYTES, bind)


def sweeps_wire(context: zmq.Context[Any], directory: Path, epoch: int, *, bind: bool) -> Wire:
    """Front (connects, as the reader does) ⇄ worker (binds)."""
    return _pair(context, address(directory, "sweeps", epoch), _SWEEPS, bind)


def control_wire(context: zmq.Context[Any], directory: Path, identity: str) -> Wire:
    """A stage's end of the control wire."""
    socket = context.socket(zmq.DEALER)
    socket.set(zmq.ROUTING_ID, identity.encode())
    wire = Wire(socket, _CONTROL)
    socket.connect(address(directory, "control"))
    return wire


def control_router(context: zmq.Context[Any], directory: Path) -> ControlRouter:
    socket = context.socket(zmq.ROUTER)
    router = ControlRouter(socket)
    socket.bind(address(directory, "control"))
    return router


def _pair(context: zmq.Context[Any], where: str, codec: Codec, bind: bool) -> Wire:
    socket = context.socket(zmq.PAIR)
    wire = Wire(socket, codec)
    if bind:
        socket.bind(where)
    else:
        socket.connect(where)
    return wire
