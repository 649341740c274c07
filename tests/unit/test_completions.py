"""What shells and the manual know of both programs; and that what is installed is all of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from potato_client import cli as client
from potatod import cli, man_page

ROOT = Path(__file__).resolve().parents[2]
MAINS: dict[str, Callable[[], int]] = {"potatod": lambda: cli.main([]), "potato-client": lambda: client.main([])}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_completes_both_programs(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completions", shell]) == 0
    script = capsys.readouterr().out
    for name, variable in (("potatod", "_POTATOD_COMPLETE"), ("potato-client", "_POTATO_CLIENT_COMPLETE")):
        assert f"{variable}={shell}_complete" in script and name in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_a_shell_that_is_not_known_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completions", "tcsh"]) == 64
    assert "bash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "some"),
    [
        ("potatod ", {"start", "jobs", "install-service", "completions"}),
        ("potatod in", {"install-service"}),
        ("potatod jobs ", {"export", "repair"}),
        ("potatod start --pool-s", {"--pool-size"}),
        ("potatod completions z", {"zsh"}),
        ("potatod nonsense ", {"start"}),  # and no sentence between what is typed
        ("potato-client ", {"ask", "chat", "jobs", "status"}),
        ("potato-client st", {"status"}),
        ("potato-client ask --sys", {"--system"}),
        ("potato-client hello --sys", {"--system"}),  # a prompt, as `ask`
    ],
)
def test_what_is_typed_is_gone_on_with(
    typed: str, some: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *words = typed.split(" ")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    monkeypatch.setenv(f"_{name}_COMPLETE".replace("-", "_").upper(), "bash_complete")
    with pytest.raises(SystemExit):
        MAINS[name]()
    said = capsys.readouterr()
    found = {line.partition(",")[2] for line in said.out.splitlines()}
    assert found >= some and all(word.startswith(words[-1]) for word in found)
    assert said.err == ""


# the manual


def _commands(top: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, top
    if isinstance(top, click.Group):
        context = click.Context(top)
        for below in top.list_commands(context):
            command = top.get_command(context, below)
            assert command is not None
            yield from _commands(command, (*words, below))


ALL = [*_commands(cli.potatod, ("potatod",)), *_commands(client.potato_client, ("potato-client",))]


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("manual") / "man1"
    assert cli.main(["man", str(place)]) == 0
    return place


def test_there_is_a_page_for_each_command_and_no_other(manual: Path) -> None:
    assert {path.name for path in manual.iterdir()} == {f"{'-'.join(words)}.1" for words, _ in ALL}


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_a_page_names_every_option_and_formats(words: tuple[str, ...], command: click.Command, manual: Path) -> None:
    page = manual / f"{'-'.join(words)}.1"
    text = page.read_text().replace("\\-", "-")
    options = [name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts]
    assert not [name for name in options if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]
    assert f".B {' '.join(words)}\n" in text
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-Tutf8", "-Kutf8", "-ww", str(page)], capture_output=True, text=True, check=True)
        assert done.stderr == "" and "Potato LM" in done.stdout


def test_no_sentence_of_ours_is_taken_for_a_macro() -> None:
    @click.command(help=".so /etc/passwd\n\n'quoted \\fB-x")
    def odd() -> None: ...

    _, context = next(man_page.walk(odd, "odd"))
    page = man_page.text(("odd",), context)
    assert "\n\\&.so /etc/passwd\n.PP\n\\&'quoted \\efB\\-x\n" in page
    assert all(re.match(r"\.(TH|SH|B|BR|PP|TP)\b", line) for line in page.splitlines() if line.startswith((".", "'")))


def test_pages_that_cannot_be_written_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["man", str(tmp_path / "file" / "man1")]) == 64
    assert str(tmp_path / "file" / "man1") in capsys.readouterr().err


# what is installed


def test_every_package_of_ours_is_installed() -> None:
    """pyproject.toml lists them one by one."""
    page = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = set()
    for name, folder in page["package-dir"].items():
        for file in (ROOT / folder).rglob("__init__.py"):
            there.add(".".join([name, *file.parent.relative_to(ROOT / folder).parts]))
    assert set(page["packages"]) == there
