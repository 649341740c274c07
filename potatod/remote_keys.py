"""CurveZMQ keys: the daemon's own, and the public ones of the clients that it lets in from other machines.

    KEYS/server.json          public and secret, for the daemon alone (0600)
    KEYS/clients/NAME.key     a client's public key; its secret is in the file that it was given, and nowhere here
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import zmq

from potato_client.key_file import KeyFile

from .errors import ConfigError, UsageError

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_KEY: Final = re.compile(r"[!-~]{40}")


def server(folder: Path) -> tuple[bytes, bytes]:
    """Public and secret. Raises :class:`ConfigError` where there is none."""
    path = folder / "server.json"
    try:
        page = json.loads(path.read_text())
        public, secret = page["public"], page["secret"]
        if not (_KEY.fullmatch(public) and _KEY.fullmatch(secret)):
            raise ValueError
    except FileNotFoundError:
        raise ConfigError(f"[front] remote needs keys, and there are none in {folder}: `potatod keys add NAME` makes them") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is no key of a daemon: move it away and `potatod keys add NAME` again; every client needs a new key then") from None
    return public.encode(), secret.encode()


def clients(folder: Path) -> Mapping[str, str]:
    """Names by public keys; a file that is none, or cannot be read, lets nobody in. Raises :class:`ConfigError` where the folder cannot be read."""
    found = {}
    try:
        paths = sorted((folder / "clients").glob("*.key"))
    except OSError as error:
        raise ConfigError(f"cannot read [front] keys {folder}: {error.strerror}") from None
    for path in paths:
        with suppress(OSError, ValueError):
            key = path.read_text().strip()
            if _KEY.fullmatch(key) and _NAME.fullmatch(path.stem):
                found[key] = path.stem
    return found


def add(folder: Path, name: str, address: str) -> KeyFile:
    """A new client, and what it is to be given. Makes the daemon's own key first where there is none. Raises :class:`UsageError`,
    :class:`ConfigError`."""
    _check(name)
    path = folder / "clients" / f"{name}.key"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        if not (folder / "server.json").exists():
            public, secret = zmq.curve_keypair()
            _write(folder / "server.json", json.dumps({"public": public.decode(), "secret": secret.decode()}))
        own = server(folder)[0].decode()
        public, secret = zmq.curve_keypair()
        _write(path, public.decode() + "\n")
    except FileExistsError:
        raise UsageError(f"there is a client {name} already; `potatod keys remove {name}` takes its key away") from None
    except OSError as error:
        raise ConfigError(f"cannot write [front] keys {folder}: {error.strerror}") from None
    return KeyFile(address, own, public.decode(), secret.decode())


def remove(folder: Path, name: str) -> None:
    """A daemon that runs lets it in no more from its next connection on. Raises :class:`UsageError`."""
    _check(name)
    try:
        (folder / "clients" / f"{name}.key").unlink()
    except FileNotFoundError:
        raise UsageError(f"there is no client {name}: `potatod keys list` says which there are") from None
    except OSError as error:
        raise ConfigError(f"cannot remove {name} from [front] keys {folder}: {error.strerror}") from None


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of a client: small letters, digits, dots and dashes, 63 at most")


def _write(path: Path, text: str) -> None:
    """A new file, whole from the first moment, on disk, and for the folder's owner alone. Raises FileExistsError."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
            if os.geteuid() == 0:  # root adds a key for a service of another user
                whose = path.parent.stat()
                os.fchown(fd, whose.st_uid, whose.st_gid)
        os.link(made, path)
    finally:
        made.unlink(missing_ok=True)
