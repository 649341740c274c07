"""Talks to a potato daemon: ``Client``, ``AsyncClient``, and the command ``potato-client``.

    what a caller wants ─▶ asking ─▶ session ─▶ protocol, codec ─▶ socket
    what came back      ◀─ answer ◀─ session ◀─ protocol, codec ◀─ socket      (connection: a thread, aio: asyncio)

Law: no torch, no transformers, nothing of potatod; potatod imports from us, never we from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aio import AsyncAnswer, AsyncClient
    from .client import Answer, Client
    from .errors import BadKey, BadRequest, BadSocket, ClientError, DaemonLost, FollowedAlready, NoDaemon, NotUnderstood, RequestRefused
    from .question import ChatMessage

__all__ = [
    "Answer", "AsyncAnswer", "AsyncClient", "BadKey", "BadRequest", "BadSocket", "ChatMessage", "Client", "ClientError",
    "DaemonLost", "FollowedAlready", "NoDaemon", "NotUnderstood", "RequestRefused",
]  # fmt: skip

_HOMES = {
    "Answer": "client", "Client": "client", "AsyncAnswer": "aio", "AsyncClient": "aio", "ChatMessage": "protocol",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Loads what is asked for: the daemon's processes import our protocol and must not pay for a client."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
