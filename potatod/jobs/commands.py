"""`potatod jobs`: the job database while no daemon uses it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click

from potato_client.codec import BadFrame
from potato_client.job_table import as_object
from potato_client.protocol import FROM_CLIENT, Described
from potato_client.units import count
from potatod import sources

from . import salvage
from .report import report_of

_CONFIG = click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="A TOML file of settings.")
_PATH = click.option("--path", type=click.Path(path_type=Path), metavar="FILE", help="The database, where it is not [jobs] path.")


@click.group()
def jobs() -> None:
    """The job database, while no daemon uses it. To a daemon that runs, `potato-client jobs` talks."""


@jobs.command()
@_PATH
@_CONFIG
def export(path: Path | None, file: Path | None) -> None:
    """Every job that can be read, with its question and answer, a JSON object a line. Changes nothing."""
    found = salvage.read(_where(path, file))
    for each in list(found.saved):
        try:
            asked = FROM_CLIENT.decode(each.ask.frame)
        except BadFrame:
            found.lost.append(each.job.number)
            continue
        report = report_of(each.job, 0, True, time.time())
        described = Described(0, report, each.job.seed, asked.messages, asked.prompt, asked.options)
        click.echo(json.dumps(as_object(described, each.answered.text, each.answered.reasoning, each.answered.ids), ensure_ascii=False))
    _tell(found)


@jobs.command()
@_PATH
@_CONFIG
def repair(path: Path | None, file: Path | None) -> None:
    """A new database of every job that can be read; the old one is kept beside it."""
    where = _where(path, file)
    found, aside = salvage.repair(where)
    click.echo(f"{count(len(found.saved), 'job')} saved in {where}; what was there is {aside}", err=True)
    _tell(found)


def _where(path: Path | None, file: Path | None) -> Path:
    return path or Path(sources.gather(file, os.environ, {}).settings.jobs.path)


def _tell(found: salvage.Salvage) -> None:
    if found.lost:
        click.echo(f"{count(len(found.lost), 'job')} cannot be read: number {', '.join(map(str, found.lost[:20]))}", err=True)
    if found.shortened:
        shown = ", ".join(map(str, found.shortened[:20]))
        click.echo(f"of {count(len(found.shortened), 'job')} the end of the answer is missing: number {shown}", err=True)
