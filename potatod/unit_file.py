"""The systemd unit that `potatod install-service` writes. Pure: what is known of the service goes in, the unit's text comes out.

config/potatod.service is that of a system service of which nothing is known yet. What stands in it is explained in it, for whoever edits it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from . import bearer_token
from .config import Settings
from .errors import EXITS_THAT_STAY

SYSTEM_CONFIG: Final = "/etc/potato/potatod.toml"
#: Above what the plan says: the kernel's pages for a pool, a probe at the start, what Python's allocators keep; and what HTTP takes.
_SPARE_BYTES: Final = 256 << 20
_SPARE_SHARE: Final = 8
_GATEWAY_BYTES: Final = 192 << 20
_MIB: Final = 1 << 20
_SEAL: Final = "# as written by potatod install-service: "


@dataclass(frozen=True, slots=True)
class Service:
    """What the unit depends on."""

    #: the command, word by word
    command: tuple[str, ...] = ("/usr/bin/env", "potatod", "start", "--config", SYSTEM_CONFIG)
    #: of one user's own systemd, not of the machine's
    user: bool = False
    #: addresses that are listened at; empty: no network at all
    hosts: tuple[str, ...] = ()
    #: whether a card computes
    card: bool = False
    #: whether the program, its configuration or the model lies in somebody's home directory
    reads_homes: bool = False
    #: folders that are written to, besides those that systemd makes; they must be there
    writable: tuple[str, ...] = ()
    #: of all processes together; None where it is not known
    memory_bytes: int | None = None
    #: the file of the token of HTTP clients, which systemd reads as root and hands over; empty: the daemon has one of its own
    token: str = ""
    #: whether systemd listens for the gateway: potatod.socket
    socket: bool = False
    #: [run] nice, and whether [run] io_priority is "idle"
    nice: int = 0
    io_idle: bool = False


def hosts_of(settings: Settings, *, socket: bool = False) -> tuple[str, ...]:
    """Where the daemon itself listens for HTTP clients and those of other machines, without ports. ``socket``: systemd listens for the former."""
    addresses = ("" if socket else settings.gateway.listen, settings.front.remote.removeprefix("tcp://"))
    return tuple(address.rpartition(":")[0].strip("[]") for address in addresses if address)


def memory_limit(pool_bytes: int, others_bytes: int, *, gateway: bool) -> int:
    """What all processes together never come to, where they do what was planned; a whole number of MiB."""
    planned = pool_bytes + others_bytes + (_GATEWAY_BYTES if gateway else 0)
    return -(-(planned + planned // _SPARE_SHARE + _SPARE_BYTES) // _MIB) * _MIB


def text(service: Service) -> str:
    return "\n".join([*_head(service), *_unit(service), *_start(service), *_places(service), *_limits(service), *_sandbox(service), *_install(service)])


def sealed(page: str) -> str:
    """With a last line that tells whether anybody has changed it."""
    return f"{page}{_SEAL}{_checksum(page)}\n"


def as_written(page: str) -> bool:
    """Whether :func:`sealed` wrote it so."""
    body, _, seal = page.rpartition(_SEAL)
    return bool(body) and seal.strip() == _checksum(body)


def _checksum(page: str) -> str:
    return hashlib.sha256(page.encode()).hexdigest()[:16]


def _head(service: Service) -> Iterator[str]:
    manage = "systemctl --user" if service.user else "systemctl"
    yield "# Potato LM as a service" + (" of one user." if service.user else " of the system.")
    yield "#"
    yield f"#   potatod install-service{' --user' if service.user else ''}      # writes this file, and a configuration where there is none"
    if not service.user:
        yield "#   systemctl edit potatod       # User= is whoever asks: only processes of the same user are let in"
    yield f"#   {manage} enable --now potatod"
    yield "#"
    yield f"# What you change goes into `{manage} edit potatod`; then this file can be written anew."
    if not service.user:
        yield "# Clients of that user find the socket with POTATO_SOCKET=ipc:///run/potato/front.sock."
    yield ""


def _unit(service: Service) -> Iterator[str]:
    yield "[Unit]"
    yield "Description=Potato LM, language models that do not fit"
    yield "Documentation=man:systemd.exec(5)"
    if not service.user:
        yield "After=network.target local-fs.target" if service.hosts else "After=local-fs.target"
    if service.socket:
        yield "# systemd listens for HTTP clients, and hands the socket over. What is said here of the network does not hold for that."
        yield from ("Requires=potatod.socket", "After=potatod.socket")
    yield "StartLimitIntervalSec=10min"
    yield "StartLimitBurst=5"
    yield ""


def _start(service: Service) -> Iterator[str]:
    yield "[Service]"
    yield "Type=notify"
    yield "NotifyAccess=main"
    yield f"ExecStart={_command(service.command)}"
    yield "# It reads its configuration again; `journalctl` shows what of it changed, and what waits for a restart."
    yield "ExecReload=kill -HUP $MAINPID"
    if not service.user:
        yield "User=potato"
    yield "# Importing torch and checking the model's architecture come before readiness."
    yield "TimeoutStartSec=15min"
    yield "TimeoutStopSec=30s"
    yield "# It says that it is well where sweeps come further or nothing is to be done. What it mends itself takes less than this."
    yield "WatchdogSec=10min"
    yield "KillMode=mixed"
    yield ""
    yield "# Restarting cannot mend usage, bad model data, no such model, too little memory, bad configuration."
    yield "Restart=on-failure"
    yield "RestartSec=5s"
    yield f"RestartPreventExitStatus={' '.join(map(str, sorted(EXITS_THAT_STAY)))}"
    yield ""


def _places(service: Service) -> Iterator[str]:
    yield from (_USER_PLACES if service.user else _SYSTEM_PLACES).splitlines()
    if service.token:
        yield "# The token of HTTP clients may be root's alone: the daemon reads a copy that no other process of the machine does."
        yield f"LoadCredential={bearer_token.NAME}:{service.token.replace('%', '%%')}"
        yield f"Environment=POTATO_GATEWAY__TOKEN=%d/{bearer_token.NAME}"
    elif not service.user:
        yield f"Environment=POTATO_GATEWAY__TOKEN=/var/lib/potato/{bearer_token.NAME}"
    if service.writable:
        yield f"ReadWritePaths={' '.join(map(_word, service.writable))}"
    yield "UMask=0077"
    yield ""


def _limits(service: Service) -> Iterator[str]:
    yield "# The pool may be page-locked. Under pressure the kernel takes the worker before anything else of the machine."
    yield "LimitMEMLOCK=infinity"
    yield "OOMPolicy=continue"
    if service.nice or service.io_idle:
        yield "# [run] nice and io_priority, here of all processes: none of them may change its own."
    if service.nice:
        yield f"Nice={service.nice}"
        yield f"CPUWeight={max(1, round(100 / 1.25**service.nice))}"  # a nice value counts within a unit only
    if service.io_idle:
        yield "IOSchedulingClass=idle"
        yield "IOWeight=1"
    if service.memory_bytes is None:
        yield "# No MemoryMax=: [pool] size is not a number of bytes, or a card computes. What is free at each start decides what the pool takes."
    else:
        yield "# The pool, the KV and the processes as planned, and an eighth and 256 MiB: write this file anew when [pool] size or the model changes."
        yield f"MemoryMax={service.memory_bytes // _MIB}M"
    yield ""


def _sandbox(service: Service) -> Iterator[str]:
    yield from _network(service.hosts)
    if not service.user:
        yield "RemoveIPC=yes"
    yield from _PRIVILEGES.splitlines()
    yield ""
    if service.user:
        yield "# It reads what you may read, and writes to the places above. Where your systemd may make no namespaces it ends with 226/NAMESPACE:"
        yield "# then set these, PrivateNetwork= and PrivateDevices= to no with `systemctl --user edit potatod`."
    else:
        yield "# It reads its program, its configuration and a model, and writes to the three directories above."
    yield "ProtectSystem=strict"
    yield f"ProtectHome={'read-only' if service.user or service.reads_homes else 'yes'}"
    yield from _NAMESPACES.splitlines()
    yield ""
    yield from _devices(service.card)
    yield ""
    yield from _CALLS.splitlines()
    yield ""


def _network(hosts: tuple[str, ...]) -> Iterator[str]:
    if not hosts:
        yield "# No process of the daemon needs the internet, another user, or a privilege. Where [gateway] listen or [front] remote is set,"
        yield "# `potatod install-service` opens just that."
        yield from ("PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX", "IPAddressDeny=any")
        return
    local = all(map(_is_local, hosts))
    yield f"# The network is open for {' and '.join(hosts)}. No process needs another user, or a privilege."
    if not local:
        yield "# Say below who may come, such as IPAddressAllow=localhost 192.168.0.0/24."
    yield "PrivateNetwork=no"
    yield f"RestrictAddressFamilies=AF_UNIX {' '.join(_families(hosts))}"
    yield "IPAddressDeny=any"
    yield f"IPAddressAllow={'localhost' if local else 'any'}"


def _devices(card: bool) -> Iterator[str]:
    lines = ("PrivateDevices=no", "DevicePolicy=closed", *(f"DeviceAllow={each} rw" for each in _CARD_DEVICES))
    if card:
        yield "# A CUDA card computes."
        yield from lines
    else:
        yield "# For a CUDA card, in its place:"
        yield from (f"#   {line}" for line in lines if line != "DevicePolicy=closed")
        yield from ("PrivateDevices=yes", "DevicePolicy=closed")


def _install(service: Service) -> Iterator[str]:
    yield "[Install]"
    yield f"WantedBy={'default.target' if service.user else 'multi-user.target'}"
    if service.socket:
        yield "Also=potatod.socket"
    yield ""


def _is_local(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _families(hosts: Iterable[str]) -> list[str]:
    """A name may be of either."""
    addresses = [_address(host) for host in hosts]
    versions = {4, 6} if None in addresses else {address.version for address in addresses if address is not None}
    return [{4: "AF_INET", 6: "AF_INET6"}[version] for version in sorted(versions)]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _command(words: tuple[str, ...]) -> str:
    """systemd puts variables into all words but the first."""
    return " ".join([_word(words[0]), *(_word(word).replace("$", "$$") for word in words[1:])])


def _word(word: str) -> str:
    """As systemd reads it: see "Quoting" in systemd.syntax(7), and "Specifiers" in systemd.unit(5)."""
    assert word.isprintable(), "whoever calls has refused it"
    quoted = word.replace("%", "%%")
    return quoted if re.fullmatch(r"[\w./:=@+,%-]+", word) else '"' + quoted.replace("\\", "\\\\").replace('"', '\\"') + '"'


_CARD_DEVICES: Final = ("char-nvidia", "char-nvidia-uvm", "char-nvidia-frontend")

_SYSTEM_PLACES: Final = """\
# Where things lie. The model folder is only read: make it readable for User= anywhere outside the home directories.
# These variables go over the configuration file.
RuntimeDirectory=potato
RuntimeDirectoryMode=0700
CacheDirectory=potato
CacheDirectoryMode=0700
StateDirectory=potato
StateDirectoryMode=0700
Environment=POTATO_RUN__DIRECTORY=/run/potato
Environment=POTATO_FRONT__SOCKET=ipc:///run/potato/front.sock
Environment=XDG_CACHE_HOME=/var/cache/potato
Environment=POTATO_JOBS__PATH=/var/lib/potato/jobs.db
Environment=POTATO_FRONT__KEYS=/var/lib/potato/keys
Environment=POTATO_GATEWAY__PATH=/var/lib/potato/gateway"""

_USER_PLACES: Final = """\
# Where things lie: sockets in %t/potato, which is where clients look, all else where the configuration says. These variables go over it.
RuntimeDirectory=potato
RuntimeDirectoryMode=0700
Environment=POTATO_RUN__DIRECTORY=%t/potato
Environment=POTATO_FRONT__SOCKET=ipc://%t/potato/front.sock"""

_PRIVILEGES: Final = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictSUIDSGID=yes"""

_NAMESPACES: Final = """\
PrivateTmp=yes
PrivateMounts=yes
PrivateUsers=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
KeyringMode=private"""

_CALLS: Final = """\
# Not MemoryDenyWriteExecute: kernels that are compiled while running need memory that is written, then executed.
# Not ProcSubset=pid: how much RAM there is stands in /proc/meminfo, what the processor can do in /proc/cpuinfo.
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# ZeroMQ gives each of its threads the policy that it has already, and ends the process that may not.
SystemCallFilter=sched_setscheduler
SystemCallErrorNumber=EPERM"""
