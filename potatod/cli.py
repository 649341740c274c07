"""The command `potatod`. Each command loads what it needs when it runs: `potatod start` never imports torch.

Errors end in one sentence on stderr and an exit code of errors.py; POTATO_DEBUG=1 adds the traceback.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import platform
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from potato_client.paths import SOCKET_VARIABLE

from . import config_page, log, names, places, sources
from .config import Key, Settings, keys
from .dtypes import AUTO, CHOICES, SCHEMES
from .errors import EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, ConfigError, PotatoError, UsageError, first_line
from .sizes import parse_size

#: Commands of the offline half, loaded when they run, and the line `potatod --help` shows for each without loading it.
_ELSEWHERE: Final = {
    "prepare": ("potatod.store.commands", "Make a model folder from a checkpoint."),
    "pull": ("potatod.store.pull_commands", "Download a model and prepare it at the same time."),
    "verify": ("potatod.store.commands", "Check every byte of a model folder."),
    "list": ("potatod.store.collection_commands", "The models that have names here."),
    "rm": ("potatod.store.collection_commands", "Remove a model that has a name."),
    "jobs": ("potatod.jobs.commands", "The job database, while no daemon uses it."),
    "keys": ("potatod.keys_commands", "Keys of clients on other machines."),
    "token": ("potatod.gateway_commands", "The token that HTTP clients send."),
    "completions": ("potatod.completion_commands", "Print what completes commands in a shell."),
    "man": ("potatod.completion_commands", "Write the manual's pages."),
    "install-service": ("potatod.service_commands", "Write a systemd unit for this machine."),
}

_F = TypeVar("_F", bound=Callable[..., Any])

#: RAM that every model fits into.
_BOUNDLESS: Final = 1 << 60
_CONFIG: Final = click.option(
    "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="A TOML file of settings."
)


class _Commands(click.Group):
    """Loads commands late, and knows the nearest name of one that is not there."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [
            "start", "pull", "list", "rm", "prepare", "verify", "plan", "measure", "config", "status", "trace", "jobs",
            "keys", "token", "install-service", "completions", "man",
        ]  # fmt: skip

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE:
            found = vars(importlib.import_module(_ELSEWHERE[cmd_name][0])).values()
            return next(each for each in found if isinstance(each, click.Command) and each.name == cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        short = {name: about for name, (_, about) in _ELSEWHERE.items()}
        short |= {name: command.get_short_help_str(70) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, short[name]) for name in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx) and not ctx.resilient_parsing:
            raise UsageError(f'there is no command "{args[0]}"{sources.nearest(args[0], self.list_commands(ctx))}')
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        python, torch = platform.python_version(), _installed("torch")
        click.echo(f"potatod {_installed('potato-lm')} (Python {python}, torch {torch})")
        ctx.exit(EXIT_OK)


def _installed(package: str) -> str:
    """From the package's metadata: importing torch takes seconds and 200 MB."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
    help="Versions of potatod and of what it computes with.",
)  # fmt: skip
@click.pass_context
def potatod(ctx: click.Context) -> None:
    """Runs language models that do not fit: weights stream from disk, layer by layer, exactly."""
    if ctx.invoked_subcommand is None:
        raise UsageError("no command is given; `potatod --help` lists them")


def _takes_settings(command: _F) -> _F:
    """Adds --config, a flag for every key, and the model as an argument."""
    for key in reversed(list(keys())):
        names = [key.flag, "--model"] if key.label == "[model] path" else [key.flag]
        about = f"{key.reason.split('. ')[0].rstrip('.')}."
        click.option(*names, f"{key.section}__{key.name}", metavar=key.name.upper(), help=about)(command)
    _CONFIG(command)
    return click.argument("models", metavar="[MODEL]...", nargs=-1)(command)


def _gather(file: Path | None, models: tuple[str, ...], flags: dict[str, str | None]) -> sources.Gathered:
    given: dict[Key, str] = {}
    for key in keys():
        text = flags[f"{key.section}__{key.name}"]
        if key.label == "[model] path":
            models = models or (() if text is None else (text,))
            if text is not None and models != (text,):
                raise UsageError(f'--model is "{text}", and {", ".join(models)} stands behind `start`: name each model once')
            text = names.folder_of(models[0], os.environ) if len(models) == 1 else None
        if text is not None:
            given[key] = text
    return sources.gather(file, os.environ, given, [names.folder_of(each, os.environ) for each in models] if len(models) > 1 else ())


@potatod.command(short_help="Serve a model folder until SIGTERM or Ctrl-C.")
@_takes_settings
def start(file: Path | None, models: tuple[str, ...], **flags: str | None) -> int:
    """Serve MODEL, a folder made by `potatod prepare`, until SIGTERM or Ctrl-C.

    Of several models one is in memory at a time; whoever asks for another one waits until the daemon loads it. The first is meant where nobody
    says which.

    Every flag is also a key of the configuration file and a variable POTATO_SECTION__KEY; `potatod config --default`
    describes them all.
    """

    def read() -> Settings:
        return _gather(file, models, flags).settings

    settings = read()
    if not (settings.model.path or settings.models):
        raise ConfigError("no model is given: `potatod start FOLDER`, or [model] path in the file of --config")
    places.check(settings)
    log.configure("supervisor", settings.log.level, settings.log.format)
    from . import supervisor  # loads ZeroMQ, which `config` does without

    return supervisor.run(settings, read)


@potatod.command(short_help="Print the settings that hold, and from where.")
@click.option("--show", is_flag=True, help="Print each setting and where it comes from: what happens anyway.")
@click.option("--default", "default", is_flag=True, help="Print the commented configuration file instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of TOML.")
@_takes_settings
def config(show: bool, default: bool, as_json: bool, file: Path | None, models: tuple[str, ...], **flags: str | None) -> None:
    """Print the settings that `potatod start` would have with the same flags."""
    if default and (show or as_json):
        raise UsageError("--default prints a commented file: it goes with neither --show nor --json")
    if default:
        click.echo(config_page.commented_file(), nl=False)
        return
    gathered = _gather(file, models, flags)
    click.echo((config_page.effective_json if as_json else config_page.effective)(gathered), nl=False)


def _amount(suffix: str = "") -> Callable[[Any, Any, str | None], int | None]:
    """A click callback for sizes, and for rates with a ``suffix``."""

    def read(_ctx: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
        if text is None:
            return None
        try:
            amount = parse_size(text.removesuffix(suffix))
        except ValueError as error:
            raise UsageError(f"{parameter.opts[0]} {error}") from None
        if amount <= 0:
            raise UsageError(f'{parameter.opts[0]} "{text}" must be more than nothing')
        return amount

    return read


@potatod.command(short_help="Say what serving a model would be like.")
@click.argument("source", metavar="MODEL")
@click.option("--ram", metavar="SIZE", callback=_amount(), help="RAM that the daemon may take, where not what is available here.")
@click.option("--disk", metavar="RATE", callback=_amount("/s"), help='What the disk gives, such as "2GB/s", where not measured.')
@click.option("--vram", metavar="SIZE", callback=_amount(), help="Free memory of a card that computes, where not what is here.")
@click.option("--pcie", metavar="RATE", callback=_amount("/s"), help='From RAM to the card, such as "12GB/s".')
@click.option("--context", metavar="TOKENS", help="Longest prompt and answer together; as [front] max_context.")
@click.option("--sequences", metavar="N", help="Answers that share each sweep; as [front] max_sequences.")
@click.option("--draft", metavar="DRAFT", help="A draft model, as [speculation] draft: what it would bring, held against the plan without it.")
@click.option(
    "--dtype", "dtypes", multiple=True, metavar="DTYPE",
    help=f"As `potatod prepare` would store the weights: {', '.join(CHOICES)}, or PATTERN=DTYPE. Once or several times.",
)  # fmt: skip
@click.option("--revision", metavar="REV", help="A branch, tag or commit, where MODEL is a hub id.")
@click.option("--grid", is_flag=True, help="Tables for machines of many kinds, with the weights as they are, in int8 and in int4.")
@click.option("--measure", is_flag=True, help="Try out disk and processor anew, and keep that.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_CONFIG
def plan(
    source: str, ram: int | None, disk: int | None, vram: int | None, pcie: int | None, context: str | None, sequences: str | None,
    draft: str | None, dtypes: tuple[str, ...], revision: str | None, grid: bool, measure: bool, as_json: bool, file: Path | None,
) -> None:  # fmt: skip
    """What serving MODEL would be like: what stays in RAM and on the card, what streams, seconds per token, and what would help most.

    MODEL is a model folder, a checkpoint's folder, a GGUF file, a config.json, or a hub id, of which only the config is fetched. How
    fast this machine computes, and the disk that a model folder lies on, is tried out the first time, which takes seconds.
    """
    from . import plan_grid, plan_page, planning

    source = names.folder_of(source, os.environ)
    if pcie is not None and vram is None:
        raise UsageError("--pcie is the way to a card that --vram describes: give both")
    if grid and (as_json or dtypes or (ram, disk, vram, draft) != (None, None, None, None)):
        raise UsageError("--grid chooses machines and dtypes itself: it goes with none of --ram, --vram, --disk, --dtype, --draft, --json")
    given = {"[front] max_context": context, "[front] max_sequences": sequences, "[speculation] draft": draft}
    flags = {key: text for key in keys() if (text := given.get(key.label)) is not None}
    settings = sources.gather(file, os.environ, flags).settings.of(Path(source))

    def planner(dtype: str, ram: int | None) -> planning.Planner:
        return planning.Planner(
            source, settings, dtype=dtype, revision=revision, anew=measure, notice=lambda sentence: click.echo(sentence, err=True), ram=ram
        )

    if grid:
        settings = dataclasses.replace(settings, worker=dataclasses.replace(settings.worker, device="cpu"))  # cards are described
        planners = [planner(name, _BOUNDLESS) for name in (AUTO, *SCHEMES)]
        click.echo(plan_grid.as_text(Path(source).name or source, [(each.dtype, each) for each in planners]), nl=False)
        return
    planned = planner(",".join(dtypes) or AUTO, ram if vram is None else _BOUNDLESS).plan(planning.Machine(ram, vram, disk, pcie))
    click.echo((plan_page.as_json if as_json else plan_page.as_text)(planned), nl=False)


@potatod.command(short_help="Try out this machine's disk and processor.")
@click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_CONFIG
def measure(model: Path, as_json: bool, file: Path | None) -> None:
    """How fast the disk that the folder MODEL lies on is in the reader's own reads, and how fast this machine computes in its dtype.

    The first start and `potatod plan` do this by themselves and keep what they find; this tries it out anew.
    """
    from . import manifest, model_folder, plan_page, rates

    model = Path(names.folder_of(str(model), os.environ))
    settings = sources.gather(file, os.environ, {}).settings.of(model)
    dtype = manifest.stored_as(model_folder.load(model))
    found = rates.of(model, settings, dtype, lambda sentence: click.echo(sentence, err=True), anew=True)
    click.echo((plan_page.rates_json if as_json else plan_page.rates_text)(found, dtype, settings.worker.kernels), nl=False)


@potatod.command(short_help="Write down what every stage does for some seconds.")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT.json")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=30.0, show_default=True, help="How long to watch.")
@_CONFIG
def trace(out: Path, seconds: float, file: Path | None) -> None:
    """What every stage of the running daemon does when, and where time is lost.

    OUT.json is in Chrome's trace event format: open it in Perfetto (ui.perfetto.dev) or chrome://tracing.
    """
    from . import trace as traces  # loads ZeroMQ

    directory = Path(sources.gather(file, os.environ, {}).settings.run.directory)
    click.echo(f"watching for {seconds:g} s", err=True)
    stages = traces.collect(directory, seconds)
    spans = [span for each in stages.values() for span in each]
    try:
        out.write_text(traces.as_chrome(stages))
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from None
    click.echo(traces.as_text(traces.shares(stages), spans), nl=False)


@potatod.command()
@click.option(
    "--socket", metavar="SOCKET", envvar=SOCKET_VARIABLE, show_envvar=True,
    help="The daemon's [front] socket, where it is not the default one.",
)  # fmt: skip
@_CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(socket: str | None, file: Path | None, as_json: bool) -> None:
    """What the running daemon is: model, engine, queue, stages."""
    from . import status as page  # loads the client and ZeroMQ

    report = page.ask(_socket(socket) if socket else sources.gather(file, os.environ, {}).settings.front.socket)
    click.echo((page.as_json if as_json else page.as_text)(report), nl=False)


def _socket(text: str) -> str:
    key = next(key for key in keys() if key.label == "[front] socket")
    try:
        return str(key.parse(text, Path.cwd()))
    except ValueError as error:
        raise UsageError(str(error)) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code. Tells every error in one sentence."""
    try:
        result = potatod.main(argv, prog_name="potatod", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        return _tell(error.format_message(), EXIT_USAGE)
    except PotatoError as error:
        return _tell(str(error), error.exit_code)
    except Exception as error:  # the process's top: whatever it is, it is our fault and is told in a sentence
        return _tell(f"internal error, {type(error).__name__}: {first_line(error)} (POTATO_DEBUG=1 shows where)", EXIT_INTERNAL)
    return result if isinstance(result, int) else EXIT_OK


def _tell(sentence: str, exit_code: int) -> int:
    try:
        if os.environ.get("POTATO_DEBUG") == "1":
            traceback.print_exc()
        if sys.stderr is not None:
            click.echo(f"potatod: {sentence}", err=True)
    except OSError:
        pass  # nobody reads stderr any more; the exit code still tells
    return exit_code
