"""`potatod token`: what HTTP clients show."""

from __future__ import annotations

import os
from pathlib import Path

import click

from . import bearer_token, sources
from .errors import ConfigError


@click.command()
@click.option("--new", is_flag=True, help="Make a new one first; the old one is good until the daemon is started again.")
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="A TOML file of settings.")
def token(new: bool, file: Path | None) -> None:
    """Print the token that HTTP clients of the [gateway] send; OpenAI's call it the API key. Makes one where there is none."""
    path = Path(sources.gather(file, os.environ, {}).settings.gateway.token)
    if new:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot remove [gateway] token {path}: {error.strerror}") from None
    click.echo(bearer_token.read_or_make(path))
