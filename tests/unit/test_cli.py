"""The command `potatod`: what it hands on, and how it tells what is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from potatod import cli, config_page
from potatod.config import Settings, keys
from potatod.errors import DoesNotFit, NoSuchModel
from potatod.sizes import Percent

#: Runs a command line; gives exit code, stdout and stderr.
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    for variable in ("POTATO_DEBUG", *(key.variable for key in keys())):
        monkeypatch.delenv(variable, raising=False)

    def run_it(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run_it


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Settings]:
    """The settings that `start` handed to the supervisor, which does nothing here. Places are the test's own."""
    seen: list[Settings] = []
    supervisor = types.ModuleType("potatod.supervisor")
    supervisor.run = lambda settings, _read: seen.append(settings) or 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "potatod.supervisor", supervisor)
    monkeypatch.setattr("potatod.supervisor", supervisor, raising=False)
    monkeypatch.setattr("potatod.log.configure", lambda *_: None)
    monkeypatch.setenv("POTATO_RUN__DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("POTATO_FRONT__SOCKET", f"ipc://{tmp_path}/front.sock")
    return seen


@pytest.fixture
def start(run: Run, started: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("POTATO_RUN__DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("POTATO_FRONT__SOCKET", f"ipc://{tmp_path}/front.sock")
    return lambda *words: run("start", *words)


# start


@pytest.mark.parametrize("words", [("/m",), ("--model", "/m"), ("--model-path", "/m"), ("/m", "--model", "/m")])
def test_the_model_is_an_argument_or_a_flag(start: Run, started: list[Settings], words: tuple[str, ...]) -> None:
    assert start(*words) == (0, "", "")
    assert started[0].model.path == "/m"


def test_start_hands_complete_settings_to_the_supervisor(start: Run, started: list[Settings], tmp_path: Path) -> None:
    file = tmp_path / "cfg.toml"
    file.write_text('[model]\npath = "m"\n[reader]\nio = "buffered"\n')
    assert start("--config", file, "--pool-size", "50%", "--sampling-temperature", "0")[0] == 0
    assert started[0].model.path == str(tmp_path / "m")
    assert started[0].pool.size == Percent(50)
    assert (started[0].reader.io, started[0].sampling.temperature) == ("buffered", 0.0)
    assert started[0].run.directory == str(tmp_path / "run")


def test_the_exit_code_is_the_supervisors(start: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potatod.supervisor.run", lambda _settings, _read: 75)
    assert start("/m") == (75, "", "")


def test_two_different_models_are_a_usage_error(start: Run, started: list[Settings]) -> None:
    assert start("/a", "--model", "/b") == (
        64,
        "",
        'potatod: --model is "/b", and /a stands behind `start`: name each model once\n',
    )
    assert not started


def test_no_model_is_a_configuration_error_that_says_how_to_give_one(start: Run) -> None:
    code, _, said = start()
    assert code == 78
    assert "`potatod start FOLDER`" in said


def test_places_are_checked_before_anything_starts(start: Run, started: list[Settings], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    code, _, said = start("/m")
    assert (code, len(said.splitlines())) == (78, 1)
    assert "chmod 700" in said
    assert not started


def test_start_has_a_flag_for_every_key() -> None:
    flags = {name for parameter in cli.start.params for name in parameter.opts}
    assert flags >= {key.flag for key in keys()}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--pool-sise", "1"), 64, "--pool-size"),
        (("--pool-size",), 64, "--pool-size"),
        (("/m", "--pool-size", "x"), 78, 'flag --pool-size: [pool] size "x" is not a size'),
        (("/m", "--worker-device", "gpu"), 78, 'not "gpu"'),
        (("/m", "--config", "/no/such.toml"), 78, "there is no configuration file /no/such.toml"),
        (("/m", "--front-socket", "ipc:///" + "x" * 108), 78, "the system takes 107"),
        (("/m", "--front-socket", "tcp://0.0.0.0:1"), 78, "is refused"),
    ],
)
def test_what_is_wrong_with_a_command_line_is_one_sentence(
    start: Run, words: tuple[str, ...], code: int, said: str
) -> None:
    got, out, err = start(*words)
    assert (got, out) == (code, "")
    assert err.startswith("potatod: ")
    assert said in err
    assert err.count("\n") == 1


# errors


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (NoSuchModel("there is no model at /m"), 66, "potatod: there is no model at /m\n"),
        (DoesNotFit("3 bytes are missing"), 71, "potatod: 3 bytes are missing\n"),
        (KeyboardInterrupt(), 130, ""),
        (RuntimeError("odd"), 70, "potatod: internal error, RuntimeError: odd (POTATO_DEBUG=1 shows where)\n"),
    ],
)
def test_every_error_ends_in_a_sentence_and_its_exit_code(
    start: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail(_settings: Settings, _read: object) -> int:
        raise error

    monkeypatch.setattr("potatod.supervisor.run", fail)
    got, out, err = start("/m")
    assert (got, out, err.lstrip("\n")) == (code, "", said)


def test_with_potato_debug_the_traceback_comes_too(start: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTATO_DEBUG", "1")
    code, _, said = start("--pool-size", "x", "/m")
    assert code == 78
    assert said.startswith("Traceback")
    assert said.splitlines()[-1].startswith("potatod: flag --pool-size")


def test_an_unknown_command_names_the_nearest(run: Run) -> None:
    assert run("strat") == (64, "", 'potatod: there is no command "strat"; did you mean "start"?\n')


def test_an_unknown_command_like_none_names_all(run: Run) -> None:
    said = run("zzz")[2]
    assert said.endswith(f"; known are {', '.join(cli.potatod.list_commands(click.Context(cli.potatod)))}\n")


def test_no_command_is_a_usage_error(run: Run) -> None:
    assert run() == (64, "", "potatod: no command is given; `potatod --help` lists them\n")


# config


def test_config_default_prints_the_commented_file(run: Run) -> None:
    assert run("config", "--default") == (0, config_page.commented_file(), "")


def test_config_shows_what_start_would_have_and_from_where(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTATO_READER__IO", "buffered")
    code, out, _ = run("config", "--show", "--pool-size", "4GiB", "/m")
    assert code == 0
    assert re.search(r'^path = "/m" +# flag --model-path$', out, re.MULTILINE)
    assert re.search(r'^size = "4GiB" +# flag --pool-size$', out, re.MULTILINE)
    assert re.search(r'^io = "buffered" +# variable POTATO_READER__IO$', out, re.MULTILINE)


def test_config_without_options_shows(run: Run) -> None:
    assert run("config") == run("config", "--show")


def test_config_as_json_is_one_object(run: Run) -> None:
    assert json.loads(run("config", "--json", "--pool-size", "4GiB")[1])["pool"]["size"]["from"] == "flag --pool-size"


def test_config_default_with_show_is_a_usage_error(run: Run) -> None:
    assert run("config", "--default", "--show")[0] == 64


# commands that live elsewhere


def test_a_command_from_elsewhere_is_loaded_when_it_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.argument("folder")
    def verify(folder: str) -> None:
        raise NoSuchModel(f"there is no model at {folder}")

    commands: Any = types.ModuleType("potatod.store.commands")
    commands.verify = verify
    monkeypatch.setitem(sys.modules, "potatod.store.commands", commands)
    assert run("verify", "/m") == (66, "", "potatod: there is no model at /m\n")


def test_help_lists_every_command_and_loads_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "potatod.store.commands", None)  # importing it would now fail
    code, out, _ = run("--help")
    assert code == 0
    for name in ("start", "prepare", "verify", "config", "status"):
        assert re.search(rf"^  {name} +\w", out, re.MULTILINE)


def test_version_tells_torchs_without_importing_it() -> None:
    program = (
        "import sys; from potatod.cli import main; code = main(['--version']);"
        "sys.exit(code or 9 * bool({'torch', 'transformers', 'numpy', 'zmq'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, "torch, transformers, numpy or zmq was imported"
    assert re.fullmatch(r"potatod \S+ \(Python \S+, torch \S+\)\n", done.stdout)


def test_start_loads_a_supervisor_that_imports_neither_torch_nor_transformers() -> None:
    program = (
        "import sys; import potatod.cli, potatod.supervisor;"
        "sys.exit(9 * bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
