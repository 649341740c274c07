"""Clients of other machines: a socket that lets in nobody whose key `potatod keys` has not made, and encrypts (CurveZMQ)."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import zmq
from zmq.auth.thread import ThreadAuthenticator

from potatod import remote_keys
from potatod.errors import ConfigError

#: Between two looks at which clients there are.
_EVERY_S: Final = 1.0
_DOMAIN: Final = "potato"
_LOGGER: Final = logging.getLogger("potatod.front")


class Remote:
    """Whose keys are good, and the thread that asks for it at each handshake. Raises :class:`ConfigError`."""

    def __init__(self, context: zmq.Context[Any], folder: Path) -> None:
        self._folder = folder
        self._public, self._secret = remote_keys.server(folder)
        self._names: Mapping[str, str] = remote_keys.clients(folder)
        self._looked_at = time.monotonic()
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain=_DOMAIN, credentials_provider=self)

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        """Before it is bound."""
        socket.set(zmq.ZAP_DOMAIN, _DOMAIN.encode())
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without anybody who looks at keys nobody is let in
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_PUBLICKEY, self._public)
        socket.set(zmq.CURVE_SECRETKEY, self._secret)

    def callback(self, _domain: str, key: bytes) -> bool:
        """Of the authenticator: whether this public key is let in. In its thread, and from the files themselves, so that a new client needs no
        restart."""
        try:
            return key.decode("ascii") in remote_keys.clients(self._folder)
        except Exception:  # the thread's top: it would end unseen, and nobody be let in any more
            _LOGGER.exception("a key cannot be looked at")
            return False

    def name_of(self, frame: zmq.Frame) -> str | None:
        """The client that sent it, by its key; None where that has been taken away."""
        if time.monotonic() - self._looked_at > _EVERY_S:
            self._looked_at = time.monotonic()
            try:
                self._names = remote_keys.clients(self._folder)
            except ConfigError:
                pass  # those that were let in stay until it can be read again
        try:
            return self._names.get(str(frame.get("User-Id")))
        except zmq.ZMQError:  # nobody has looked at its key
            return None

    def close(self) -> None:
        self._authenticator.stop()
