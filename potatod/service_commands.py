"""`potatod install-service`: writes the unit, and a configuration where there is none. Starts nothing."""

from __future__ import annotations

import dataclasses
import os
import pwd
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click
import psutil

from . import bearer_token, config_page, model_folder, names, socket_unit, sources, unit_file
from .config import Settings, keys
from .errors import UsageError
from .sections import OneOfModels
from .sizes import Auto, Percent
from .unit_file import Service

_SYSTEM_UNITS: Final = Path("/etc/systemd/system")
_NAME: Final = "potatod.service"
_SOCKET: Final = "potatod.socket"
#: Where systemd lets no service look that says ProtectHome=yes.
_HOMES: Final = (Path("/home"), Path("/root"), Path("/run/user"))
_HERE: Final = Path(__file__).parent


@click.command("install-service", short_help="Write a systemd unit for this machine.")
@click.option("--user", is_flag=True, help="A service of yours alone, which needs no root.")
@click.option(
    "--model", "named", multiple=True, metavar="MODEL", help="The model's folder or name, where the configuration does not say it; or several of them.",
)  # fmt: skip
@click.option("--gateway-listen", "listen", metavar="LISTEN", help="Where HTTP clients connect, where the configuration does not say it.")
@click.option("--socket-activation", "socket", is_flag=True, help="Let systemd listen at [gateway] listen: no client is refused during a restart.")
@click.option("--force", is_flag=True, help="Write over a unit that somebody has changed.")
@click.option("--print", "only_print", is_flag=True, help="Print the unit; write nothing.")
@click.option("--config", "given", type=click.Path(path_type=Path), metavar="FILE", help="The service's TOML file of settings.")
def install_service(
    user: bool, named: tuple[str, ...], listen: str | None, socket: bool, force: bool, only_print: bool, given: Path | None,
) -> None:  # fmt: skip
    """Write the systemd unit that serves models on this machine, and an empty configuration where there is none; print what to do next.

    The unit opens the network where [gateway] listen or [front] remote is set, hands root's token to the gateway, and limits the memory where
    [pool] size is a number of bytes: write it anew when these change. One that was written by this command and not changed since is replaced.
    Nothing is started.
    """
    if not (user or only_print or os.geteuid() == 0):
        raise UsageError("the unit of the system is root's to write: say `sudo potatod install-service`, or --user for a service of yours alone")
    config = (given or (_configs() / "potato" / "potatod.toml" if user else Path(unit_file.SYSTEM_CONFIG))).absolute()
    flags = {key: listen for key in keys() if key.label == "[gateway] listen" and listen is not None}
    gathered = sources.gather(config if given or config.exists() else None, {}, flags)  # variables of this shell are none of the service's
    settings = gathered.settings
    models = [Path(names.folder_of(each, os.environ)).absolute() for each in named]
    served = settings
    if len(models) == 1:  # `potatod start` keeps the mirrors that the configuration says
        served = dataclasses.replace(settings, model=dataclasses.replace(settings.model, path=str(models[0])), models=())
    elif models:
        served = dataclasses.replace(settings, models=tuple(OneOfModels(str(each)) for each in models))
    for each in served.each():
        if each.model.path:
            model_folder.load(Path(each.model.path))  # whether it is one
    words = (*map(str, models), *(word for key in flags for word in (key.flag, str(key.plain(key.of(settings))))))
    service = _service(user, config, dataclasses.replace(gathered, settings=served), words, socket)
    pages = {_NAME: unit_file.text(service)} | ({_SOCKET: _socket(settings, user)} if socket else {})
    pages = {name: unit_file.sealed(page) for name, page in pages.items()}
    if only_print:
        click.echo("\n".join(pages.values()), nl=False)
        return
    units = _configs() / "systemd" / "user" if user else _SYSTEM_UNITS
    replaced = [_write_unit(units / name, page, force) for name, page in pages.items()]
    if not config.exists():
        _write(config, config_page.commented_file())
    if user:
        for place in _written_to(settings):
            _make(place)
    if service.token:
        bearer_token.read_or_make(Path(service.token))
    click.echo("\n".join(["next:", *(f"  {line}" for line in _next(user, config, served, service, replaced=any(replaced)))]))


def _configs() -> Path:
    said = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(said) if said.startswith("/") else Path.home() / ".config"


# what the unit is made from


def _service(user: bool, config: Path, gathered: sources.Gathered, more: Sequence[str], socket: bool) -> Service:
    """``more``: words for `potatod start` that say what the configuration does not."""
    settings = gathered.settings
    words = (_program(), "start", "--config", str(config), *more)
    reads = [Path(words[0]).resolve(), config, Path(sys.prefix), Path(sys.base_prefix), _HERE, *_folders(settings)]
    places = _written_to(settings) if user else []
    token = "" if user or not settings.gateway.listen else _token(gathered, config)
    if odd := next((word for word in (*words, *map(str, places), token) if not word.isprintable()), None):
        raise UsageError(f"{odd!r} has a character that no unit can hold: rename it")
    card = settings.worker.device.startswith("cuda") or (settings.worker.device == "auto" and Path("/dev/nvidiactl").exists())
    return Service(
        words, user, unit_file.hosts_of(settings, socket=socket), card, any(path.is_relative_to(home) for path in reads for home in _HOMES),
        tuple(map(str, places)), None if card else _memory(settings), token, socket,
        settings.run.nice, settings.run.io_priority == "idle",
    )  # fmt: skip


def _folders(settings: Settings) -> list[Path]:
    return [Path(folder) for one in settings.each() for folder in (one.model.path, *one.model.mirrors) if folder]


def _socket(settings: Settings, user: bool) -> str:
    if not settings.gateway.listen:
        raise UsageError("--socket-activation is for the gateway, and [gateway] listen is empty: set it in the configuration first")
    return socket_unit.text(settings.gateway.listen, user=user)


def _token(gathered: sources.Gathered, config: Path) -> str:
    """Of the system's service: root's, beside the configuration where that says no other place."""
    said = gathered.origins["gateway", "token"] != sources.DEFAULT
    return gathered.settings.gateway.token if said else str(config.parent / bearer_token.NAME)


def _program() -> str:
    """The `potatod` that runs: a unit of systemd's finds nothing by its name in a virtual environment."""
    own = Path(sys.argv[0]).absolute()
    if own.name == "potatod" and os.access(own, os.X_OK):
        return str(own)
    found = shutil.which("potatod", path=f"{Path(sys.executable).parent}:{os.defpath}")
    if found is None:
        raise UsageError("there is no executable `potatod` beside this Python: install the package, then run its own `potatod install-service`")
    return found


def _written_to(settings: Settings) -> list[Path]:
    """By a service of a user, beside the runtime directory."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    caches = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    files = (settings.jobs.path, settings.gateway.token)
    places = {caches / "potato", *(Path(file).parent for file in files), Path(settings.front.keys), Path(settings.gateway.path)}
    return sorted(place for place in places if places.isdisjoint(place.parents))


def _memory(settings: Settings) -> int | None:
    """What the largest of the models takes; None where the pool is as large as what is free at a start, or nobody has said which model."""
    if isinstance(settings.pool.size, Auto | Percent):
        return None
    limits = [_memory_of(each) if each.model.path else None for each in settings.each()]
    known = [limit for limit in limits if limit is not None]
    return max(known) if len(known) == len(limits) else None


def _memory_of(settings: Settings) -> int | None:
    from . import planning  # takes a while to find out

    machine = planning.Machine(ram=psutil.virtual_memory().total)  # what runs now, such as the daemon itself, does not count
    planned = planning.make(settings.model.path, settings, machine, notice=lambda sentence: click.echo(sentence, err=True))
    if planned.vram is not None:
        return None
    room = planned.room
    return unit_file.memory_limit(planned.plan.pool_bytes, room.kv_bytes + room.process_bytes, gateway=bool(settings.gateway.listen))


# what is written


def _write_unit(unit: Path, page: str, force: bool) -> bool:
    """Whether another one was there before."""
    try:
        there = unit.read_text(errors="replace")
    except FileNotFoundError:
        there = None
    except OSError as error:
        raise UsageError(f"cannot read {unit}, which is there already: {error.strerror}") from None
    if there == page:
        click.echo(f"{unit} is there already and says just this")
        return False
    if there is not None and not (force or unit_file.as_written(there)):
        raise UsageError(
            f"{unit} is there already and was changed since, or is not of this command: --print shows what would be written, --force writes it; what "
            "you change belongs into `systemctl edit potatod`, where it stays"
        )
    _write(unit, page)
    return there is not None


def _write(path: Path, page: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(page)
            partial.chmod(0o644)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    click.echo(f"written: {path}")


def _make(place: Path) -> None:
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {place}, which the service writes to: {error.strerror}") from None


def _next(user: bool, config: Path, served: Settings, service: Service, *, replaced: bool) -> Iterator[str]:
    manage = "systemctl --user" if user else "systemctl"
    if not served.each()[0].model.path:
        yield f"say [model] path in {config}, or give --model MODEL here"
    if not user:
        yield from _users()
    yield f"{manage} daemon-reload"
    yield f"{manage} enable --now potatod"
    if user:
        yield "loginctl enable-linger              # it runs on while you are not logged in, and from the machine's start"
    if replaced or service.socket:
        yield f"{manage} restart potatod            # where it runs already: as the unit says it now"
    if service.token:
        yield f"sudo cat {service.token}    # what HTTP clients send"
    yield f"journalctl {'--user ' if user else ''}-u potatod -f"


def _users() -> Iterator[str]:
    try:
        pwd.getpwnam("potato")
    except KeyError:
        yield "useradd --system --home-dir /var/lib/potato --shell /usr/sbin/nologin potato"
    yield "systemctl edit potatod              # [Service] User= is whoever asks: only processes of the same user are let in"
