"""The unit that `potatod install-service` writes, and how it writes it."""

from __future__ import annotations

import configparser
import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from potatod import bearer_token, cli, service_commands, socket_activation, socket_unit, unit_file
from potatod.config import Settings
from potatod.errors import EXITS_THAT_STAY, UsageError
from potatod.sections import Front, Gateway
from potatod.unit_file import Service, hosts_of, memory_limit, text

#: Runs `potatod install-service …`; gives exit code, stdout and stderr.
Install = Callable[..., tuple[int, str, str]]

#: Each kind of service.
KINDS = {
    "system": Service(),
    "system over HTTP": Service(hosts=("127.0.0.1",)),
    "system for everybody": Service(hosts=("0.0.0.0", "potato.example.org"), memory_bytes=8 << 30),
    "system that stands back": Service(nice=10, io_idle=True),
    "system with a card, at home": Service(card=True, reads_homes=True),
    "system over HTTP with root's token": Service(hosts=("127.0.0.1",), token="/etc/potato/gateway.token"),
    "system that is handed its socket": Service(token="/etc/potato/gateway.token", socket=True),
    "user that is handed its socket": Service(("/home/u/bin/potatod", "start"), user=True, socket=True, writable=("/home/u/.cache/potato",)),
    "user": Service(("/home/u/bin/potatod", "start"), user=True, writable=("/home/u/.cache/potato",)),
    "user over HTTP": Service(("/home/u/bin/potatod", "start"), user=True, hosts=("::1",), writable=("/home/u/a b", "/home/u/c")),
}
EVERY_KIND = pytest.mark.parametrize("service", KINDS.values(), ids=KINDS)


def said(service: Service, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text(service), re.MULTILINE)


@EVERY_KIND
def test_a_unit_has_the_sections_of_a_service_and_nothing_that_is_no_assignment(service: Service) -> None:
    unit = configparser.RawConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.read_string(text(service))
    assert unit.sections() == ["Unit", "Service", "Install"]
    assert all(re.match(r"#|\[\w+\]$|\w+=|$", line) for line in text(service).splitlines())


@EVERY_KIND
def test_no_exit_code_that_stays_is_restarted_on(service: Service) -> None:
    assert {int(code) for code in said(service, "RestartPreventExitStatus")[0].split()} == EXITS_THAT_STAY


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
@EVERY_KIND
def test_systemd_calls_it_safe(service: Service, tmp_path: Path) -> None:
    """Exposure from 0 to 10, 2.0 at the most; and systemd reads each line of it."""
    unit = tmp_path / "potatod.service"
    unit.write_text(text(service).replace(service.command[0], "/bin/true"))
    if service.socket:
        (tmp_path / "potatod.socket").write_text(socket_unit.text("127.0.0.1:8089", user=service.user))
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)]
    score = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60).stdout
    exposure = re.search(r"exposure level for potatod.service: ([\d.]+)", score)
    assert exposure is not None, score
    assert float(exposure[1]) <= 2.0, score
    manager = "--user" if service.user else "--system"
    read = subprocess.run(["systemd-analyze", manager, "verify", str(unit)], capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert "potatod.s" not in read.stderr, read.stderr


@pytest.mark.parametrize(
    ("hosts", "private", "families", "allowed"),
    [
        ((), "yes", "AF_UNIX", []),
        (("127.0.0.1",), "no", "AF_UNIX AF_INET", ["localhost"]),
        (("127.0.0.9", "::1"), "no", "AF_UNIX AF_INET AF_INET6", ["localhost"]),
        (("::1",), "no", "AF_UNIX AF_INET6", ["localhost"]),
        (("localhost",), "no", "AF_UNIX AF_INET AF_INET6", ["localhost"]),
        (("192.168.0.7",), "no", "AF_UNIX AF_INET", ["any"]),
        (("127.0.0.1", "0.0.0.0"), "no", "AF_UNIX AF_INET", ["any"]),
        (("*",), "no", "AF_UNIX AF_INET AF_INET6", ["any"]),
    ],
)
def test_the_network_is_open_just_where_the_configuration_listens(hosts: tuple[str, ...], private: str, families: str, allowed: list[str]) -> None:
    service = Service(hosts=hosts)
    assert said(service, "PrivateNetwork") == [private]
    assert said(service, "RestrictAddressFamilies") == [families]
    assert said(service, "IPAddressDeny") == ["any"]
    assert said(service, "IPAddressAllow") == allowed


def test_where_it_listens_is_what_gateway_and_front_say() -> None:
    listening = Settings(gateway=Gateway(listen="[::1]:8089"), front=dataclasses.replace(Front(), remote="tcp://0.0.0.0:7575"))
    assert hosts_of(listening) == ("::1", "0.0.0.0")
    assert hosts_of(listening, socket=True) == ("0.0.0.0",)
    assert hosts_of(Settings()) == ()


@pytest.mark.parametrize(
    ("listen", "stream", "allowed"),
    [
        ("127.0.0.1:8089", "127.0.0.1:8089", "localhost"), ("localhost:1", "127.0.0.1:1", "localhost"), ("[::1]:8089", "[::1]:8089", "localhost"),
        ("0.0.0.0:80", "0.0.0.0:80", "any"), ("192.168.0.7:8089", "192.168.0.7:8089", "any"),
    ],
)  # fmt: skip
def test_systemd_listens_where_the_gateway_would_and_calls_the_socket_the_gateways(listen: str, stream: str, allowed: str) -> None:
    unit = configparser.RawConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.read_string(socket_unit.text(listen, user=False))
    assert unit["Socket"]["ListenStream"] == stream
    assert unit["Socket"]["FileDescriptorName"] == socket_activation.NAME
    assert (unit["Socket"]["IPAddressDeny"], unit["Socket"]["IPAddressAllow"]) == ("any", allowed)


@pytest.mark.parametrize("listen", ["potato.example.org:8089", "127.0.0.1:0", "1.2.3:80"])
def test_where_systemd_cannot_listen_is_a_usage_error(listen: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f'[gateway] listen is "{listen}"')):
        socket_unit.text(listen, user=False)


def test_paths_are_written_as_systemd_reads_them() -> None:
    service = Service(("/home/u/my bin/100%", "start", "--config", '/etc/$a "b"\\c'), user=True, writable=("/home/u/50%", "/home/u/a b"))
    assert said(service, "ExecStart") == ['"/home/u/my bin/100%%" start --config "/etc/$$a \\"b\\"\\\\c"']
    assert said(service, "ReadWritePaths") == ['/home/u/50%% "/home/u/a b"']


def test_a_token_that_is_roots_is_handed_over_as_a_credential_and_its_copy_is_what_the_daemon_reads() -> None:
    service = Service(token="/etc/po tato/50%")
    assert said(service, "LoadCredential") == ["gateway.token:/etc/po tato/50%%"]
    assert [line for line in said(service, "Environment") if "TOKEN" in line] == ["POTATO_GATEWAY__TOKEN=%d/gateway.token"]
    assert said(Service(), "LoadCredential") == []
    assert "POTATO_GATEWAY__TOKEN=/var/lib/potato/gateway.token" in said(Service(), "Environment")


def test_the_memory_is_limited_where_it_is_known_and_the_unit_says_why_not_elsewhere() -> None:
    assert said(Service(memory_bytes=3 << 30), "MemoryMax") == ["3072M"]
    assert said(Service(), "MemoryMax") == []
    assert "# No MemoryMax=" in text(Service())


def test_a_service_stands_back_as_a_whole_where_the_configuration_says_so(install: Install, tmp_path: Path) -> None:
    config = tmp_path / "potatod.toml"
    for said, lines in (("", []), ("nice = 10", ["Nice=10", "CPUWeight=11"]), ('io_priority = "idle"', ["IOSchedulingClass=idle", "IOWeight=1"])):
        config.write_text(f"[run]\n{said}\n")
        unit = install("--print", "--config", config)[1]
        assert re.findall(r"^(?:Nice|CPUWeight|IOSchedulingClass|IOWeight)=.*$", unit, re.MULTILINE) == lines


def test_the_limit_is_above_what_is_planned_and_counts_http() -> None:
    planned = 4 << 30
    assert planned * 1.1 < memory_limit(3 << 30, 1 << 30, gateway=False) < planned * 1.25
    assert memory_limit(3 << 30, 1 << 30, gateway=True) > memory_limit(3 << 30, 1 << 30, gateway=False) + (100 << 20)
    assert memory_limit(1, 1, gateway=False) % (1 << 20) == 0


# the command


@pytest.fixture
def install(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    program = tmp_path / "bin" / "potatod"
    program.parent.mkdir()
    program.touch(0o755)
    for variable, place in (("CONFIG", "config"), ("STATE", "state"), ("CACHE", "cache")):
        monkeypatch.setenv(f"XDG_{variable}_HOME", str(tmp_path / place))
    monkeypatch.setattr("sys.argv", [str(program)])
    monkeypatch.setattr(service_commands, "_SYSTEM_UNITS", tmp_path / "units")
    monkeypatch.setattr(unit_file, "SYSTEM_CONFIG", str(tmp_path / "etc" / "potatod.toml"))
    monkeypatch.setattr("os.geteuid", lambda: 0)

    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main(["install-service", *map(str, words)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.mark.parametrize("at_home", ["", "sys.prefix", "sys.base_prefix", "program", "config", "model"])
def test_homes_are_open_to_a_systems_service_where_something_that_it_reads_lies_in_one(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_home: str
) -> None:
    """The interpreter of a virtual environment too: pyenv and uv keep theirs there."""
    home, words = tmp_path / "home", []
    home.mkdir()
    monkeypatch.setattr(service_commands, "_HOMES", (home,))
    monkeypatch.setattr(service_commands.model_folder, "load", lambda folder: None)
    if at_home.startswith("sys."):
        monkeypatch.setattr(at_home, str(home / "python"))
    elif at_home == "program":
        (home / "potatod").touch(0o755)
        monkeypatch.setattr("sys.argv", [str(home / "potatod")])
    elif at_home:
        (home / "config").touch()
        words = [f"--{at_home}", home / at_home]
    code, shown, err = install("--print", *words)
    assert code == 0, err
    assert ("ProtectHome=read-only\n" in shown) == bool(at_home) and ("ProtectHome=yes\n" in shown) != bool(at_home)


def test_a_user_gets_a_unit_a_configuration_and_the_places_it_writes_to(install: Install, tmp_path: Path) -> None:
    code, out, err = install("--user")
    assert (code, err) == (0, "")
    unit = (tmp_path / "config/systemd/user/potatod.service").read_text()
    assert f"ExecStart={tmp_path}/bin/potatod start --config {tmp_path}/config/potato/potatod.toml\n" in unit
    assert f"ReadWritePaths={tmp_path}/cache/potato {tmp_path}/state/potato\n" in unit
    assert (tmp_path / "cache/potato").is_dir() and (tmp_path / "state/potato").stat().st_mode & 0o777 == 0o700
    assert "Environment=POTATO_RUN__DIRECTORY=%t/potato\n" in unit and "WantedBy=default.target" in unit
    assert cli.main(["config", "--config", str(tmp_path / "config/potato/potatod.toml")]) == 0
    for step in ("systemctl --user daemon-reload", "systemctl --user enable --now potatod", "loginctl enable-linger", "[model] path"):
        assert step in out


def test_root_gets_the_units_of_the_system(install: Install, tmp_path: Path) -> None:
    code, out, _ = install()
    assert code == 0
    unit = (tmp_path / "units/potatod.service").read_text()
    assert f"ExecStart={tmp_path}/bin/potatod start --config {tmp_path}/etc/potatod.toml\n" in unit
    assert (tmp_path / "etc/potatod.toml").is_file() and "User=potato" in unit
    assert "systemctl enable --now potatod" in out and "systemctl edit potatod" in out and "linger" not in out


def test_who_is_not_root_is_told_what_to_do(install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    code, _, err = install()
    assert code == 64
    assert "sudo potatod install-service" in err and "--user" in err
    assert not (tmp_path / "units").exists()
    assert install("--print")[0] == install("--user")[0] == 0


def test_a_unit_that_was_edited_stays_without_force(install: Install, tmp_path: Path) -> None:
    unit = tmp_path / "units" / "potatod.service"
    assert install()[0] == 0
    fresh = unit.read_text()
    code, out, _ = install()
    assert code == 0 and "says just this" in out
    unit.write_text(fresh + "# mine\n")
    code, _, err = install()
    assert code == 64 and "--force" in err and str(unit) in err
    assert unit.read_text() == fresh + "# mine\n"
    assert install("--force")[0] == 0
    assert unit.read_text() == fresh
    code, out, _ = install("--gateway-listen", "127.0.0.1:8089")
    assert code == 0 and "systemctl restart potatod" in out, "it was as it had been written"
    assert " --gateway-listen 127.0.0.1:8089\n" in unit.read_text() and "IPAddressAllow=localhost\n" in unit.read_text()
    assert [path.name for path in unit.parent.iterdir()] == ["potatod.service"]


def test_the_line_of_the_readme_makes_a_service_that_answers_http(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.findall(r"^potatod install-service (.*?) +#", (Path(__file__).parents[2] / "README.md").read_text(), re.MULTILINE)
    monkeypatch.setattr(service_commands.model_folder, "load", lambda folder: None)
    assert install(*shown[0].split())[0] == 0
    unit = (tmp_path / "config/systemd/user/potatod.service").read_text()
    assert re.search(r"^ExecStart=.*/qwen2.5-7b-instruct --gateway-listen 127.0.0.1:8089$", unit, re.MULTILINE)


def test_a_configuration_that_is_there_is_not_touched_and_decides(install: Install, tmp_path: Path) -> None:
    config = tmp_path / "etc" / "potatod.toml"
    config.parent.mkdir()
    config.write_text('[gateway]\nlisten = "127.0.0.1:8089"\n')
    assert install()[0] == 0
    assert config.read_text() == '[gateway]\nlisten = "127.0.0.1:8089"\n'
    assert "IPAddressAllow=localhost\n" in (tmp_path / "units/potatod.service").read_text()


@pytest.mark.parametrize(("said", "place"), [("", "etc/gateway.token"), ('token = "secrets/token"\n', "etc/secrets/token")])
def test_the_services_token_is_made_for_root_alone_where_the_configuration_says(install: Install, tmp_path: Path, said: str, place: str) -> None:
    config = tmp_path / "etc" / "potatod.toml"
    config.parent.mkdir()
    config.write_text(f'[gateway]\nlisten = "127.0.0.1:8089"\n{said}')
    assert install("--print")[0] == 0
    assert not (tmp_path / place).exists()
    code, out, _ = install()
    assert code == 0 and f"cat {tmp_path / place}" in out
    assert f"LoadCredential=gateway.token:{tmp_path / place}\n" in (tmp_path / "units/potatod.service").read_text()
    assert (tmp_path / place).stat().st_mode & 0o777 == 0o600
    made = bearer_token.read(tmp_path / place)
    assert install()[0] == 0
    assert bearer_token.read(tmp_path / place) == made


def test_a_user_has_a_token_of_its_own_and_needs_no_credential(install: Install, tmp_path: Path) -> None:
    config = tmp_path / "potatod.toml"
    config.write_text('[gateway]\nlisten = "127.0.0.1:8089"\n')
    assert "LoadCredential=" not in install("--user", "--print", "--config", config)[1]


@pytest.mark.parametrize("words", [(), ("--user",)])
def test_a_service_that_is_handed_its_socket_has_no_network_of_its_own(install: Install, tmp_path: Path, words: tuple[str, ...]) -> None:
    config = tmp_path / "potatod.toml"
    config.write_text('[gateway]\nlisten = "127.0.0.1:8089"\n')
    assert install("--socket-activation", "--config", config, *words)[0] == 0
    units = tmp_path / ("config/systemd/user" if words else "units")
    service = (units / "potatod.service").read_text()
    for line in ("PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX", "Requires=potatod.socket", "After=potatod.socket", "Also=potatod.socket"):
        assert f"\n{line}\n" in service
    assert "\nListenStream=127.0.0.1:8089\n" in (units / "potatod.socket").read_text()
    assert "restart potatod" in install("--socket-activation", "--config", config, *words)[1]
    printed = install("--socket-activation", "--config", config, "--print", *words)[1]
    assert printed == service + "\n" + (units / "potatod.socket").read_text()


def test_without_a_gateway_there_is_no_socket_to_hand_over(install: Install, tmp_path: Path) -> None:
    code, out, err = install("--socket-activation")
    assert (code, out) == (64, "") and "[gateway] listen is empty" in err
    assert not (tmp_path / "units").exists()


def test_variables_of_the_shell_are_none_of_the_services(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTATO_GATEWAY__LISTEN", "0.0.0.0:80")
    assert "PrivateNetwork=yes\n" in install("--print")[1]


def test_printing_writes_nothing(install: Install, tmp_path: Path) -> None:
    for words in (("--print",), ("--print", "--user")):
        code, out, _ = install(*words)
        assert code == 0 and out.startswith("# Potato LM as a service")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--model", "/no/such/folder"), 66, "/no/such/folder"),
        (("--config", "/no/such.toml"), 78, "there is no configuration file /no/such.toml"),
        (("--modell", "x"), 64, "--model"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(install: Install, tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    got, out, err = install(*words)
    assert (got, out) == (code, "") and says in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


def test_a_place_that_cannot_be_written_is_named(install: Install, tmp_path: Path) -> None:
    (tmp_path / "units").touch()
    code, _, err = install()
    assert code == 64
    assert str(tmp_path / "units" / "potatod.service") in err
