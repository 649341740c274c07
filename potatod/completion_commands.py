"""`potatod completions` and `potatod man`: what a shell and a reader know of both programs, made from their commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from click.shell_completion import ShellComplete, get_completion_class

from . import man_page
from .errors import UsageError

_SHELLS: Final = ("bash", "zsh", "fish")


@click.command(short_help="Print what completes commands in a shell.")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completions(context: click.Context, shell: str) -> None:
    """Print a script for SHELL (bash, zsh or fish) that completes the commands and options of potatod and potato-client.

    In ~/.bashrc or ~/.zshrc: eval "$(potatod completions bash)". For fish: potatod completions fish > ~/.config/fish/completions/potatod.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the shells that it is asked for"
    for name in ("potatod", "potato-client"):
        variable = f"_{name}_complete".replace("-", "_").upper()
        click.echo(ShellComplete.source(kind(context.find_root().command, {}, name, variable)))  # of the command it says nothing but the name


@click.command(short_help="Write the manual's pages.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER")
def man(folder: Path) -> None:
    """Write a page of the manual for each command of potatod and potato-client into FOLDER, such as ~/.local/share/man/man1."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, page in pages():
            (folder / f"{name}.1").write_text(page)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename or folder}: {error.strerror}") from None


def pages() -> Iterator[tuple[str, str]]:
    """By name: `potatod-jobs-export`."""
    from potato_client import cli as client

    tops = (("potatod", click.get_current_context().find_root().command), ("potato-client", client.potato_client))
    for name, command in tops:
        for words, context in man_page.walk(command, name):
            yield "-".join(words), man_page.text(words, context)
