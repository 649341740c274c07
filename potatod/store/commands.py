"""The commands `potatod prepare` and `potatod verify`. Converting loads torch, so it is imported when there is something to convert."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from potatod import names
from potatod.dtypes import AUTO, CHOICES
from potatod.errors import UsageError
from potatod.sizes import human_size

from . import hub
from .identity import key_of
from .journal import finished
from .meters import Later, agreed, meter


def import_models() -> None:
    """Before anything else loads them."""
    from .lean import import_transformers

    import_transformers()


@click.command()
@click.argument("source", required=False, metavar="SOURCE")
@click.argument("out", required=False, metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--dtype", "dtypes", multiple=True, metavar="DTYPE",
    help=f"How weights are stored: {', '.join(CHOICES)}. PATTERN=DTYPE says so of the modules whose weights' names fit. Once or several times.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Make OUT anew where it is a model folder already.")
@click.option(
    "--draft", type=click.Choice(["int4", "int8"]),
    help="Also put a copy in that form into OUT, which guesses for the exact weights while these stream. Of SOURCE alone, a model folder: only that.",
)
@click.option("--revision", metavar="REV", help="A branch, tag or commit, where SOURCE is a hub id.")
@click.option("--consume", is_flag=True, help="REMOVE each of SOURCE's files of weights when what is made of it is on the disk.")
@click.option("-y", "--yes", is_flag=True, help="With --consume: go on without asking.")
@click.option(
    "--upgrade", "old", metavar="OUT", type=click.Path(path_type=Path),
    help="Instead: make the model folder OUT one of the installed transformers, out of itself.",
)  # fmt: skip
def prepare(
    source: str | None, out: Path | None, dtypes: tuple[str, ...], force: bool, draft: str | None, revision: str | None, consume: bool, yes: bool,
    old: Path | None,
) -> None:  # fmt: skip
    """Make the model folder OUT from SOURCE: a Hugging Face folder, a GGUF file, or a hub id (organisation/model).

    Killed at any point it goes on where it stopped when run again. Never writes to SOURCE without --consume.
    """
    dtype = ",".join(dtypes) or AUTO
    source = None if source is None else names.folder_of(source, os.environ)
    if old is not None:
        if source is not None or dtypes or force or draft is not None or revision is not None or consume:
            raise UsageError("--upgrade OUT rewrites a model folder out of itself: it takes that folder, and neither SOURCE nor other options")
        _upgrade(Path(names.folder_of(str(old), os.environ)))
        return
    if draft is not None and source is not None and out is None and not dtypes and revision is None:
        _draft(Path(source), Path(source), draft, force)
        return
    if source is None or out is None:
        raise UsageError("SOURCE and OUT are needed: `potatod prepare SOURCE OUT`; or a model folder alone: `potatod prepare --upgrade OUT`")
    if consume:
        if force or draft is not None or revision is not None or hub.looks_like_id(source):
            raise UsageError("--consume takes a Hugging Face folder, without --force, --draft and --revision; `potatod pull` takes hub ids")
        _consume(Path(source), out, dtype, yes)
        return
    if hub.looks_like_id(source):
        where = hub.fetch(source, revision)
    elif revision is not None:
        raise UsageError(f"--revision names a state of a hub id, and {source} is not one")
    else:
        where = Path(source)
    if where.exists() and finished(out, key_of(where, dtype, None), force) is not None:
        click.echo(f"{out} is there already, nothing to do", err=True)
    else:
        _prepare(where, out, dtype, force)
    if draft is not None:
        _draft(where, out, draft, force)


def _prepare(where: Path, out: Path, dtype: str, force: bool) -> None:
    import_models()
    from . import prepare as preparing

    began = time.monotonic()
    with meter("preparing") as shown:
        preparing.prepare(
            where, out, dtype=dtype, force=force, notice=shown.say,
            progress=lambda p: shown(p.bytes_done, p.bytes_total, f"layer {p.layers_done}/{p.layers}", p.bytes_before),
        )  # fmt: skip
    click.echo(f"{out} is ready ({time.monotonic() - began:.1f} s)", err=True)


def _consume(source: Path, out: Path, dtype: str, yes: bool) -> None:
    import_models()
    from . import consume as consuming

    began = time.monotonic()
    with Later("preparing") as shown:
        made = consuming.consume(
            source, out, dtype=dtype, agree=lambda sentence: agreed([sentence], yes), notice=shown.say,
            progress=lambda p: shown(p.bytes_done, p.bytes_total, f"layer {p.layers_done}/{p.layers}", p.bytes_before),
        )  # fmt: skip
    done = f"{out} is ready ({time.monotonic() - began:.1f} s), and the weights in {source} are gone"
    click.echo(done if made else f"{out} is there already, nothing to do", err=True)


def _draft(source: Path, out: Path, form: str, force: bool) -> None:
    import_models()
    from . import draft as drafting

    began = time.monotonic()
    with meter("preparing the draft copy") as shown:
        made = drafting.make(
            source, out, form, force=force, notice=shown.say,
            progress=lambda p: shown(p.bytes_done, p.bytes_total, f"layer {p.layers_done}/{p.layers}", p.bytes_before),
        )  # fmt: skip
    if not made:
        click.echo(f"{out} has its {form} copy already, nothing to do", err=True)
        return
    click.echo(f'{out} has an {form} copy now ({time.monotonic() - began:.1f} s): it guesses with [speculation] draft = "self:{form}"', err=True)


def _upgrade(out: Path) -> None:
    import_models()
    from . import upgrade as upgrading

    began = time.monotonic()
    with meter("upgrading") as shown:
        done = upgrading.upgrade(out, lambda p: shown(p.bytes_done, p.bytes_total, f"shard {p.layers_done}/{p.layers}", p.bytes_before))
    if not done.changed:
        click.echo(f"{out} is as transformers {done.now} builds it, nothing to do", err=True)
        return
    what = f"{done.rewritten} of {done.shards} shards were written anew" if done.rewritten else "only its manifest was written anew"
    versions = f"from transformers {done.before} to {done.now}" if done.before != done.now else f"to what transformers {done.now} builds"
    click.echo(f"{out} is upgraded {versions}: {what} ({time.monotonic() - began:.1f} s)", err=True)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--repair", is_flag=True, help="Get what is damaged anew from the hub, where `potatod pull` made MODEL.")
@click.option("--accept", is_flag=True, help="Instead: take config, tokenizer and chat template as they are now, where you changed one on purpose.")
def verify(model: Path, repair: bool, accept: bool) -> None:
    """Check every byte of the model folder MODEL against its checksums."""
    model = Path(names.folder_of(str(model), os.environ))
    if repair and accept:
        raise UsageError("--repair and --accept are two ways to deal with what was changed: take one")
    if repair:
        _repair(model)
        return
    if accept:
        _accept(model)
        return
    from . import verify as verifying

    began = time.monotonic()
    with meter("verifying") as shown:
        checked = verifying.verify(model, shown)
    click.echo(f"{model} is whole: {human_size(checked.size_bytes)} checked in {time.monotonic() - began:.1f} s", err=True)
    if checked.companions is None:
        click.echo(
            "an earlier potatod made it: its config, tokenizer and chat template have no checksums and were not checked; "
            f"`potatod verify --accept {model}` gives them those of what they are now", err=True,
        )  # fmt: skip


def _accept(model: Path) -> None:
    from . import verify as verifying

    changed = verifying.accept(model)
    what = f"{', '.join(changed)} taken as now" if changed else "config, tokenizer and chat template are as its manifest has them, nothing to do"
    click.echo(f"{model}: {what}", err=True)


def _repair(model: Path) -> None:
    import_models()
    from . import repair as repairing

    began = time.monotonic()
    with meter("verifying and repairing") as shown:
        mended = repairing.repair(
            model, shown, notice=shown.say,
            progress=lambda p, _: shown(p.bytes_done, p.bytes_total, f"layer {p.layers_done}/{p.layers}", p.bytes_before),
        )  # fmt: skip
    what = f"{', '.join(mended[:5])}{f' and {len(mended) - 5} more' if len(mended) > 5 else ''} made anew" if mended else "nothing was damaged"
    click.echo(f"{model} is whole: {what} ({time.monotonic() - began:.1f} s)", err=True)
