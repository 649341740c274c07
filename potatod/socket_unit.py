"""The .socket unit that `potatod install-service --socket-activation` writes: systemd listens for the gateway, from boot on. Pure; see unit_file.py."""

from __future__ import annotations

import ipaddress
from typing import Final

from .errors import UsageError
from .socket_activation import NAME


def text(listen: str, *, user: bool) -> str:
    """``listen``: [gateway] listen. Raises :class:`UsageError` where systemd cannot listen there."""
    host, _, port = listen.rpartition(":")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
    except ValueError:
        address = None
    if address is None or int(port) == 0:
        example = 'such as "127.0.0.1:8089"'
        raise UsageError(f'systemd listens for the gateway at an address and a port, {example}, and [gateway] listen is "{listen}"')
    return _TEXT.format(
        of=" of one user" if user else "", manage="systemctl --user" if user else "systemctl",
        stream=f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}", name=NAME,
        allowed="localhost" if address.is_loopback else "any",
    )  # fmt: skip


_TEXT: Final = """\
# Where HTTP clients of Potato LM{of} connect. systemd listens, so that nobody is refused while the daemon, or its gateway, is started anew:
# they wait. Whoever connects while it is stopped starts it; `{manage} stop potatod.socket potatod` stops both.

[Unit]
Description=Potato LM over HTTP

[Socket]
ListenStream={stream}
FileDescriptorName={name}
# Who may come holds for the socket here and not in the service, which has no network of its own.
IPAddressDeny=any
IPAddressAllow={allowed}

[Install]
WantedBy=sockets.target
"""
