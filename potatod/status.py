"""`potatod status`: asks the daemon's front like any client would, and shows it as `potato-client status` does."""

from __future__ import annotations

from potato_client import Client, ClientError
from potato_client.protocol import Report
from potato_client.report import as_json, as_text

from .errors import by_exit_code

__all__ = ["as_json", "as_text", "ask"]


def ask(socket: str) -> Report:
    """Raises :class:`Unavailable` where no daemon answers at ``socket`` (``ipc://`` and an absolute path)."""
    try:
        with Client(socket) as client:
            return client.status()
    except ClientError as error:
        raise by_exit_code(error.exit_code)(str(error)) from None
