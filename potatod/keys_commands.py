"""`potatod keys`: who may ask from other machines."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import click

from potato_client.key_file import ADDRESS

from . import remote_keys, sources
from .errors import ConfigError, UsageError
from .sections import Front

_CONFIG = click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="A TOML file of settings.")


@click.group()
def keys() -> None:
    """Keys of clients on other machines, for [front] remote."""


@keys.command()
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT.key")
@click.option("--address", metavar="HOST:PORT", help="Where that client finds this machine, where not by its name and the port of [front] remote.")
@_CONFIG
def add(name: str, out: Path, address: str | None, file: Path | None) -> None:
    """Let a client in: OUT.key is its key and the daemon's address, to be brought to it in secret. The daemon need not be restarted."""
    front = _front(file)
    where = f"tcp://{address}" if address else _address(front)
    if not ADDRESS.fullmatch(where):
        raise UsageError(f"{where.removeprefix('tcp://')} is no HOST:PORT")
    if out.exists():
        raise UsageError(f"{out} is there already")
    key = remote_keys.add(Path(front.keys), name, where)
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        remote_keys.remove(Path(front.keys), name)
        raise UsageError(f"cannot write {out}: {error.strerror}") from None
    with os.fdopen(fd, "w") as made:
        made.write(key.text())
    click.echo(f"{name} may ask at {key.address}: bring {out} to it, then `potato-client --socket {out.name} ...`", err=True)


@keys.command("list")
@_CONFIG
def listed(file: Path | None) -> None:
    """Which clients may ask."""
    for name in sorted(remote_keys.clients(Path(_front(file).keys)).values()):
        click.echo(name)


@keys.command()
@click.argument("name")
@_CONFIG
def remove(name: str, file: Path | None) -> None:
    """Let a client in no more. Its jobs go on."""
    remote_keys.remove(Path(_front(file).keys), name)


def _front(file: Path | None) -> Front:
    return sources.gather(file, os.environ, {}).settings.front


def _address(front: Front) -> str:
    if not front.remote:
        raise ConfigError("[front] remote says nowhere where clients connect: set it, such as \"tcp://0.0.0.0:7575\", or say --address HOST:PORT")
    host, _, port = front.remote.removeprefix("tcp://").rpartition(":")
    return f"tcp://{socket.gethostname() if host in ('0.0.0.0', '*', '[::]') else host}:{port}"
