"""The command `potatod pull`: what it takes is shown and agreed to first."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from potato_client.units import count
from potatod import names, planning, sources
from potatod.dtypes import AUTO, CHOICES
from potatod.errors import DoesNotFit, UsageError
from potatod.sizes import human_size

from . import hub
from .commands import import_models
from .meters import Later, Meter, agreed

if TYPE_CHECKING:  # they load torch
    from .fetched import Fetched, Terms
    from .hub_files import Repository
    from .prepare import Progress

_LABEL: Final = "{:<10}{}"


@click.command()
@click.argument("model_id", metavar="ID")
@click.argument("out", required=False, metavar="OUT", type=click.Path(path_type=Path))
@click.option("--revision", metavar="REV", help="A branch, tag or commit.")
@click.option(
    "--dtype", "dtypes", multiple=True, metavar="DTYPE",
    help=f"How weights are stored, as `potatod prepare` takes it: {', '.join(CHOICES)}, or PATTERN=DTYPE. Once or several times.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Make OUT anew where it is a model folder already.")
@click.option("-y", "--yes", is_flag=True, help="Go on without asking.")
def pull(model_id: str, out: Path | None, revision: str | None, dtypes: tuple[str, ...], force: bool, yes: bool) -> None:
    """Make the model folder OUT from the model ID (organisation/model) at the hub, preparing it while it is downloaded.

    The disk holds the folder and the few source files that are open at once. Says first what that takes. Killed at any point it goes on where it
    stopped when run again. OUT is a folder of its own in POTATO_HOME where it is not given.
    """
    if not hub.looks_like_id(model_id):
        raise UsageError(f"{model_id} is no hub id, which is organisation/model; what is on this machine is for `potatod prepare`")
    dtype = ",".join(dtypes) or AUTO
    where = names.models(os.environ) / names.name_of(model_id, dtype) if out is None else out
    import_models()
    from . import pull as pulling

    began = time.monotonic()
    with Later("pulling") as shown:
        made = pulling.pull(
            model_id, where, revision=revision, dtype=dtype, force=force, notice=shown.say, progress=lambda now, supply: _show(shown, now, supply),
            agree=lambda repository, terms, config: agreed(_terms(repository, terms, config, dtype), yes),
        )  # fmt: skip
    if made:
        called = where.name if out is None else where
        click.echo(f"{where} is ready ({time.monotonic() - began:.1f} s): `potatod start {called}` serves it", err=True)
    else:
        click.echo(f"{where} is there already, nothing to do", err=True)


def _show(shown: Meter, now: Progress, supply: Fetched) -> None:
    downloaded = f", {human_size(supply.arrived_bytes)} of {human_size(supply.expected_bytes)} downloaded"
    shown(now.bytes_done, now.bytes_total, f"layer {now.layers_done}/{now.layers}{downloaded}", now.bytes_before)


def _terms(repository: Repository, terms: Terms, config: Path, dtype: str) -> Iterator[str]:
    yield _LABEL.format("model", f"{repository.id} at {repository.commit[:12]}; licence: {repository.licence}")
    yield _LABEL.format("download", f"{human_size(terms.download_bytes)} in {count(terms.files, 'file')}")
    yield _LABEL.format(
        "disk", f"{human_size(terms.peak_bytes)} more at the most ({human_size(terms.made_bytes)} when it is done), "
        f"{human_size(terms.free_bytes)} are free",
    )  # fmt: skip
    try:
        settings = sources.gather(None, os.environ, {}).settings
        outlooks = planning.make(str(config), settings, dtype=dtype, notice=lambda sentence: click.echo(sentence, err=True)).outlooks
        times = (f"{each.forecasts[0].token_s:.3g} s with a disk of {human_size(each.disk_bytes_per_s)}/s" for each in outlooks)
        yield _LABEL.format("a token", ", ".join(times))
    except DoesNotFit as error:
        yield _LABEL.format("a token", f"cannot be computed here: {error}")
