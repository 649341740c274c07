"""The commands `potatod list` and `potatod rm`: the models of POTATO_HOME."""

from __future__ import annotations

import dataclasses
import json
import os

import click

from potatod import names
from potatod.errors import NoSuchModel, UsageError
from potatod.sizes import human_size

from . import collection
from .meters import agreed


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_models(as_json: bool) -> None:
    """List the models of POTATO_HOME: name, dtype, size on disk, whether it is complete."""
    models = names.models(os.environ)
    found = collection.kept(models)
    if as_json:
        click.echo(json.dumps({"folder": str(models), "models": [dataclasses.asdict(each) for each in found]}, indent=2))
        return
    if not found:
        click.echo(f"no models in {models}; `potatod pull ID` gets one", err=True)
    width = max((len(each.name) for each in found), default=0)
    for each in found:
        click.echo(f"{each.name:<{width}}  {each.dtype:<20}  {human_size(each.size_bytes):>8}  {each.state}")


@click.command("rm")
@click.argument("name", metavar="NAME")
@click.option("-y", "--yes", is_flag=True, help="Remove it without asking.")
def remove_model(name: str, yes: bool) -> None:
    """Remove the model NAME of POTATO_HOME; refused while somebody uses it."""
    models = names.models(os.environ)
    found = {each.name: each for each in collection.kept(models)}
    if "/" in name:
        raise UsageError(f"{name} is a path, and only models with names are removed, which lie in {models}: `potatod list` shows them")
    if name not in found:
        raise NoSuchModel(f"there is no model {name} in {models}: `potatod list` shows what there is")
    collection.check_unused(models / name)
    agreed([f"{models / name} ({human_size(found[name].size_bytes)}, {found[name].state}) will be removed"], yes)
    collection.remove(models / name)
    click.echo(f"{name} is gone", err=True)
