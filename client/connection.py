"""The thread that owns a client's socket, so that heartbeats go on whatever the program does between two pieces.

    caller ── deque, eventfd ──▶ thread: Session, DEALER ── SimpleQueue per request ──▶ caller

Nobody else touches the socket or the session.
"""

from __future__ import annotations

import collections
import importlib.metadata
import os
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Final

import zmq

from .address import Endpoint
from .codec import MAX_FRAME_BYTES
from .errors import ClientError
from .session import Event, Session

Inbox = SimpleQueue[Event]
_Order = Callable[[], None]

#: For the last frames (Cancel) when the connection closes.
LINGER_MS: Final = 200
#: The thread is waited for so long at the end.
_JOIN_S: Final = 1.0
#: Between two tries at a daemon that does not let us in.
_DIAL_AGAIN_S: Final = 1.0


class Connection:
    """A socket to one address and what is expected of it. Ends with ``close``, or with the program."""

    def __init__(self, endpoint: Endpoint, silence_s: float) -> None:
        self._pump = _Pump(endpoint, silence_s)
        self._thread = threading.Thread(target=self._pump.run, name="potato-client", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, _end, self._pump, self._thread)

    @property
    def closed(self) -> bool:
        return not self._finalizer.alive

    def ask(self, request: int, frame: bytes, *, followed: bool = False, kept: bool = False) -> Inbox:
        """Where the events of that request will come. Raises :class:`ClientError` where the connection is closed."""
        inbox: Inbox = SimpleQueue()
        self._pump.order(partial(self._pump.ask, request, frame, inbox, followed, kept))
        return inbox

    def cancel(self, request: int) -> None:
        """Harmless when it is over."""
        if not self.closed:
            self._pump.order(partial(self._pump.session.cancel, request))

    def detach(self, request: int) -> None:
        """Harmless when it is over, or has no name yet."""
        if not self.closed:
            self._pump.order(partial(self._pump.detach, request))

    def close(self) -> None:
        """Cancels what is still expected and frees the socket; whoever waits gets an error. Takes a second at most."""
        self._finalizer()


def _end(pump: _Pump, thread: threading.Thread) -> None:
    try:
        pump.order(pump.stop)
    except ClientError:
        return  # it has ended
    thread.join(_JOIN_S)


class _Pump:
    """What the thread runs."""

    def __init__(self, endpoint: Endpoint, silence_s: float) -> None:
        self.session = Session(endpoint.address, client_name(), silence_s=silence_s)
        self._endpoint = endpoint
        self._inboxes: dict[int, Inbox] = {}
        self._orders: collections.deque[_Order] = collections.deque()
        self._ordering = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = self._ended = False
        self._dialled_at = 0.0

    def __del__(self) -> None:
        os.close(self._wake)

    def order(self, order: _Order) -> None:
        """Have the thread do it; from any thread. Raises :class:`ClientError` where it has ended."""
        with self._ordering:
            if self._ended:
                raise ClientError("this client is closed")
            self._orders.append(order)
        os.eventfd_write(self._wake, 1)

    # from here on: in the thread only

    def ask(self, request: int, frame: bytes, inbox: Inbox, followed: bool, kept: bool) -> None:
        self._inboxes[request] = inbox
        self.session.ask(request, frame, time.monotonic(), followed=followed, kept=kept)

    def detach(self, request: int) -> None:
        self.session.detach(request, time.monotonic())

    def stop(self) -> None:
        self._stopping = True

    def run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.DEALER)
        try:
            socket = self._dial(socket)
            while not self._stopping:
                self._listen(socket)
                self._obey()
                self._deliver()
                if not self._send(socket) and time.monotonic() - self._dialled_at > _DIAL_AGAIN_S:
                    socket = self._dial(socket)
        finally:
            with self._ordering:
                self._ended = True
            self._obey()
            self.session.close(time.monotonic())
            self._send(socket)
            self._deliver()
            socket.close(linger=LINGER_MS)
            context.term()

    def _obey(self) -> None:
        while self._orders:
            self._orders.popleft()()

    def _dial(self, before: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        """A new socket instead of the one before: whom a daemon has not let in once, ZeroMQ does not try to bring in again."""
        context = before.context
        before.close(linger=0)
        self._dialled_at = time.monotonic()
        socket: zmq.Socket[bytes] = dealer(context, self._endpoint)
        socket.connect(self._endpoint.address)
        return socket

    def _send(self, socket: zmq.Socket[bytes]) -> bool:
        """Whether it takes them."""
        frames = self.session.frames(time.monotonic())
        while frames:
            try:
                socket.send(frames[0], zmq.DONTWAIT)
            except zmq.Again:  # the other side is not there, or does not let us in: silence will tell
                self.session.put_back(frames)
                return False
            del frames[0]
        return True

    def _listen(self, socket: zmq.Socket[bytes]) -> None:
        self._wait(socket)
        now = time.monotonic()
        while (frame := _receive(socket)) is not None:
            self.session.receive(frame, now)
        self.session.tick(now)
        self._deliver()

    def _wait(self, socket: zmq.Socket[bytes]) -> None:
        """Until a frame comes, an order comes, or the session wants to know the time."""
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        due_s = self.session.due_in(time.monotonic())
        poller.poll(None if due_s is None else int(due_s * 1000) + 1)
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass

    def _deliver(self) -> None:
        for event in self.session.events():
            self._inboxes[event.request].put(event)
            if event.last:
                del self._inboxes[event.request]


def client_name() -> str:
    """For the daemon's log."""
    return f"potato-client {importlib.metadata.version('potato-lm')}"


def dealer(context: zmq.Context[Any], endpoint: Endpoint) -> Any:
    """A client's socket, not connected yet. Queues without bounds: what lies in them is bounded by what was asked."""
    socket = context.socket(zmq.DEALER)
    socket.set_hwm(0)
    socket.set(zmq.LINGER, LINGER_MS)
    socket.set(zmq.MAXMSGSIZE, 2 * MAX_FRAME_BYTES)
    if endpoint.key is not None:
        socket.set(zmq.IPV6, 1)
        socket.set(zmq.CURVE_SERVERKEY, endpoint.key.server.encode())
        socket.set(zmq.CURVE_PUBLICKEY, endpoint.key.public.encode())
        socket.set(zmq.CURVE_SECRETKEY, endpoint.key.secret.encode())
    return socket


def _receive(socket: zmq.Socket[bytes]) -> bytes | None:
    """The next message; its first frame, since a front sends one, and another's is no message anyway."""
    try:
        return socket.recv_multipart(zmq.DONTWAIT)[0]
    except zmq.Again:
        return None
