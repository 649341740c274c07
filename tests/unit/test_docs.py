"""Documents against code: what can be typed, set or met is written down, and what is written down is so."""

from __future__ import annotations

import configparser
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from potato_client import exit_codes
from potatod import cli, errors, log, unit_file
from potatod.config import Key, keys
from potatod.config_page import default_in_words
from potatod.reload import LIVE
from potatod.sources import gather

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "OPERATIONS.md").read_text()
KEY_FLAGS = {key.flag for key in keys()}
ERRORS = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, errors.PotatoError)]
#: Raised by nothing itself: its branches are what is met.
ROOTS = {errors.PotatoError}


def _commands(top: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, by what is typed."""
    yield name, top
    if isinstance(top, click.Group):
        context = click.Context(top)
        for below in top.list_commands(context):
            command = top.get_command(context, below)
            assert command is not None
            yield from _commands(command, f"{name} {below}")


def _typed() -> Iterator[tuple[str, str]]:
    """Command and option for everything that can be typed; a key's flags are described by rule, beside the keys."""
    client = importlib.import_module("potato_client.cli")
    tops = {id(found): found for found in vars(client).values() if isinstance(found, click.Command)}
    client_commands = [pair for top in tops.values() for pair in _commands(top, "potato-client")]
    for name, command in [*_commands(cli.potatod, "potatod"), *client_commands]:
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for option in (*parameter.opts, *parameter.secondary_opts):
                    if option not in KEY_FLAGS:
                        yield name, option


def _has(text: str, option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


def test_every_command_of_the_daemon_is_described() -> None:
    for name, _ in _commands(cli.potatod, "potatod"):
        assert f"`{name}" in OPERATIONS, f"docs/OPERATIONS.md does not describe `{name}`"


def test_every_option_that_can_be_typed_is_described() -> None:
    texts = OPERATIONS + (ROOT / "README.md").read_text()
    missing = [f"{name} {option}" for name, option in _typed() if not _has(texts, option)]
    assert not missing, f"neither docs/OPERATIONS.md nor README.md names {', '.join(missing)}"


@pytest.mark.parametrize("key", list(keys()), ids=lambda key: key.label)
def test_every_key_stands_in_the_table_as_the_code_declares_it(key: Key) -> None:
    default = default_in_words(key) if key.unset else f"`{default_in_words(key)}`"
    assert f"| `{key.label}` | {default} | {key.kind.allowed} | {key.reason} |" in OPERATIONS.splitlines()


def test_the_table_has_no_key_that_is_not_there() -> None:
    assert set(re.findall(r"^\| `(\[\w+\] \w+)`", OPERATIONS, re.MULTILINE)) == {key.label for key in keys()}


def test_the_keys_that_a_reload_changes_are_listed_and_no_others() -> None:
    listed = re.search(r"These keys hold at once.*?:\n\n(.*?)\n\n", OPERATIONS, re.DOTALL | re.MULTILINE)
    assert listed is not None
    assert set(re.findall(r"`(\[\w+\] \w+)`", listed[1])) == LIVE


@pytest.mark.parametrize("error", [found for found in ERRORS if found not in ROOTS], ids=lambda error: error.__name__)
def test_every_error_stands_in_the_table_with_its_exit_code(error: type[errors.PotatoError]) -> None:
    rows = [line for line in OPERATIONS.splitlines() if line.startswith(f"| {error.exit_code} |")]
    assert any(f"`{error.__name__}`" in row for row in rows)


def test_every_exit_code_stands_in_the_table() -> None:
    codes = {value for name, value in vars(exit_codes).items() if name.startswith("EXIT_")}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", OPERATIONS, re.MULTILINE)} >= codes


def test_the_glossary_defines_our_words_before_any_interface_uses_them() -> None:
    text = (ROOT / "docs" / "GLOSSARY.md").read_text()
    defined = set(re.findall(r"^\| \*\*([\w -]+)\*\* \|", text, re.MULTILINE))
    ours = {"shard", "part", "pool", "extent", "slot", "home", "sweep", "step", "sequence", "job", "stage", "resident"}
    field = {"page-lock", "prefill", "decode", "KV cache", "logits", "sampler", "speculative"}
    assert defined >= ours | field


def test_every_line_of_a_log_that_is_shown_is_one_that_somebody_writes() -> None:
    source = "\n".join(path.read_text() for path in sorted((ROOT / "potatod").rglob("*.py")) if path.name != "log.py")
    shown = re.findall(r"^ *\d\d:\d\d:\d\d \w+ +(\S.*?)  (.*)$", OPERATIONS + (log.__doc__ or ""), re.MULTILINE)
    assert shown
    for event, figures in shown:
        call = re.search(rf"\"{re.escape(event)}\", (.*)", source)
        assert call is not None, f"nobody logs {event!r}"
        for figure in figures.split():
            assert f"{figure.partition('=')[0]}=" in call[1], (event, figure)


# the unit


def _unit() -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    unit.read(ROOT / "config" / "potatod.service")
    return unit


def test_the_unit_is_what_the_code_prints() -> None:
    """`potatod install-service` on a machine of which nothing is known."""
    assert (ROOT / "config" / "potatod.service").read_text() == unit_file.text(unit_file.Service())


def test_the_unit_restarts_on_no_exit_code_that_stays() -> None:
    codes = {int(code) for code in _unit()["Service"]["RestartPreventExitStatus"].split()}
    assert codes == errors.EXITS_THAT_STAY


def test_the_unit_starts_a_command_that_exists() -> None:
    words = _unit()["Service"]["ExecStart"].split()
    assert words[:3] == ["/usr/bin/env", "potatod", "start"]
    cli.start.make_context("start", words[3:])


def test_the_unit_sets_variables_that_are_known_and_allowed() -> None:
    text = (ROOT / "config" / "potatod.service").read_text()
    variables = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
    settings = gather(None, variables, {}).settings
    assert settings.run.directory == "/run/potato"
    assert settings.front.socket == "ipc:///run/potato/front.sock"


# links


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md")), ids=lambda p: p.name
)
def test_every_link_to_a_file_of_ours_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!\w+:)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_every_test_that_is_named_exists() -> None:
    for page in (ROOT / "docs" / "SECURITY.md", ROOT / "docs" / "RELIABILITY.md"):
        for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
            assert f"def {name}(" in (ROOT / file).read_text(), f"{page.name} names {file}::{name}"
