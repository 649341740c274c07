"""The command `potato-client`: asks a daemon, shows what it answers.

Errors end in one sentence on stderr and an exit code of errors.py.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from . import job_commands, report, words
from .answer import Collected
from .client import Client
from .codec import MAX_FRAME_BYTES
from .errors import ClientError
from .exit_codes import EXIT_BROKEN_PIPE, EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from .screen import Screen
from .turn import Outcome, answer_options, follow, generate, say_detached
from .units import human_size

_NAME: Final = "potato-client"

_F = TypeVar("_F", bound=Callable[..., Any])


class _AskByDefault(click.Group):
    """`potato-client "prompt"` is `potato-client ask "prompt"`, wherever the options stand."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._with_command(ctx, args))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Those of `ask` as well: whoever types a prompt and no command needs these."""
        super().format_options(ctx, formatter)
        options = [option for option in self.commands["ask"].params if isinstance(option, click.Option)]
        records = [record for option in options if (record := option.get_help_record(ctx)) is not None]
        with formatter.section("Options of ask"):
            formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would end with 1
            _forget_stdout()
            return EXIT_BROKEN_PIPE

    def _with_command(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if (args and args[0] in own) or (ctx.resilient_parsing and not args):  # the latter: a shell completes the first word
            return args
        at = _first_argument(args, self.commands["ask"])
        if at is not None and args[at] in self.commands:
            return [args[at], *args[:at], *args[at + 1 :]]
        return ["ask", *args]


def _first_argument(args: Sequence[str], command: click.Command) -> int | None:
    """Where the first word stands that is neither an option nor an option's value; None where that cannot be said."""
    with_value = {name for option in command.params for name in option.opts if not getattr(option, "is_flag", True)}
    at = 0
    while at < len(args):
        if args[at] == "--":
            return None
        if not args[at].startswith("-") or args[at] == "-":
            return at
        at += 2 if args[at] in with_value else 1
    return None


def _on_or_off(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> bool | None:
    return None if value is None else value == "on"


_SOCKET: Final = job_commands.SOCKET
_ANSWER: Final = (
    _SOCKET,
    click.option("--model", metavar="NAME", help="Which of the daemon's models; without it the first. `potato-client status` lists them."),
    click.option("--system", metavar="TEXT", help="What the model is told before the conversation."),
    click.option("--max-tokens", type=int, metavar="N", help="The answer ends after so many tokens."),
    click.option("--temperature", type=float, metavar="T", help="0 always takes the likeliest token."),
    click.option(
        "--top-p",
        type=float,
        metavar="P",
        help="Choose among the likeliest tokens that together have this probability.",
    ),
    click.option("--top-k", type=int, metavar="K", help="Choose among so many of the likeliest tokens; 0 is off."),
    click.option("--min-p", type=float, metavar="P", help="Leave out tokens below this share of the likeliest one's probability."),
    click.option("--repetition-penalty", type=float, metavar="R", help="Above 1: what was said already becomes less likely."),
    click.option("--seed", type=int, metavar="N", help="The same seed gives the same answer; without it one is drawn."),
    click.option("--stop", multiple=True, metavar="TEXT", help="The answer ends before this text. May be given several times."),
    click.option("--thinking", type=click.Choice(["on", "off"]), callback=_on_or_off, help="Whether a model that can think does."),
    click.option("--quiet", is_flag=True, help="Nothing on stderr but errors."),
)


def _answer_options(command: _F) -> _F:
    for option in reversed(_ANSWER):
        command = option(command)
    return command


def _version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"{_NAME} {importlib.metadata.version('potato-lm')}")
        ctx.exit(EXIT_OK)


@click.group(
    cls=_AskByDefault, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f'`{_NAME} "prompt"` is `{_NAME} ask "prompt"`.',
)  # fmt: skip
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Say which release this is.")
def potato_client() -> None:
    """Ask a potato daemon."""


@potato_client.command()
@click.argument("prompt", nargs=-1)
@_answer_options
@click.option("--raw", is_flag=True, help="Go on with the text as it is, without the model's chat template.")
@click.option("--answers", "-n", type=int, default=1, metavar="N", help="So many answers to the prompt, which is computed once for all of them.")
@click.option("--batch", is_flag=True, help="Let every other question go first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object when an answer is complete.")
def ask(
    prompt: tuple[str, ...],
    socket: str | None,
    system: str | None,
    raw: bool,
    answers: int,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Ask once; the answer streams to stdout. Text on stdin is the prompt, or follows it after a blank line."""
    text = _whole_prompt(_one(prompt), raw)
    with Client(socket) as client:
        for choice, answer in enumerate(generate(client, text, system=system, raw=raw, options=answer_options(options), count=answers)):
            screen = Screen(sys.stdout, sys.stderr, quiet=quiet, silent=as_json)
            if answers > 1 and not as_json:
                _out(f"--- {choice + 1} of {answers} ---\n")
            outcome = follow(answer, screen)
            screen.end(answer, interrupted=outcome is not Outcome.COMPLETE and not as_json)
            if as_json and answer.finished is not None:
                _out(json.dumps(_as_object(answer, choice), ensure_ascii=False) + "\n")
            if outcome is Outcome.DETACHED:
                say_detached(answer, quiet)
            elif outcome is Outcome.INTERRUPTED:
                if answer.accepted is None:
                    sys.stderr.write("the daemon had not answered yet: `potato-client jobs` shows whether it has the question\n")
                elif sys.stderr.isatty() and not quiet:
                    sys.stderr.write("cancelled; Ctrl-\\ would have left it running\n")
                return EXIT_INTERRUPTED
    return EXIT_OK


@potato_client.command()
@click.argument("prompt", nargs=-1)
@_answer_options
@click.option("--raw", is_flag=True, help="Go on with the text as it is, without the model's chat template.")
@click.option("--key", metavar="TEXT", help="A name of your own for the request: asked again with it, it is the same job.")
@click.option("--batch", "file", type=click.Path(path_type=Path), metavar="FILE", help="A file of questions, a JSON object a line; - is stdin.")
@click.option("--anew", is_flag=True, help="With --batch: ask again what was asked from the same file before.")
def submit(
    prompt: tuple[str, ...], socket: str | None, system: str | None, raw: bool, key: str | None, file: Path | None, anew: bool, quiet: bool,
    **options: Any,
) -> int:  # fmt: skip
    """Ask, and do not wait: prints the job's id as soon as the daemon has it on disk. Nothing but `cancel` ends it."""
    del quiet
    if file is not None:
        if prompt or system or raw or key:
            raise click.UsageError("what is in the file says all: with --batch there is no prompt, --system, --raw or --key")
        with Client(socket) as client:
            return job_commands.submit_file(client, file, anew=anew, options=options)
    text = _whole_prompt(_one(prompt), raw)
    with Client(socket) as client:
        return job_commands.submit_one(client, text, system=system, raw=raw, key=key, options=options)


for command in (job_commands.attach, job_commands.jobs, job_commands.show, job_commands.export, *job_commands.managing()):
    potato_client.add_command(command)


@potato_client.command()
@_answer_options
def chat(socket: str | None, system: str | None, quiet: bool, **options: Any) -> int:
    """A conversation on a terminal."""
    from . import chat as conversation  # prompt_toolkit costs a quarter of a second that `ask` does not need

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("a chat needs a terminal; to ask from a script, use potato-client ask")
    with Client(socket) as client:
        return conversation.Chat(client, system, answer_options(options), quiet=quiet).run()


@potato_client.command()
@_SOCKET
@click.option("--json", "as_json", is_flag=True, help="The whole report as one JSON object.")
def status(socket: str | None, as_json: bool) -> int:
    """What the daemon is and does now."""
    with Client(socket) as client:
        now = client.status()
    _out(report.as_json(now) if as_json else report.as_text(now))
    return EXIT_OK


def _one(prompt: tuple[str, ...]) -> str:
    if len(prompt) > 1:
        raise click.UsageError(f'one prompt at a time; put it in quotes: {_NAME} "{" ".join(prompt)[:60]}"')
    return "".join(prompt)


def _whole_prompt(prompt: str, raw: bool) -> str:
    piped = _piped()
    if not raw:
        piped = piped.rstrip("\n")
    text = "\n\n".join(part for part in (prompt, piped) if part)
    if not (text if raw else text.strip()):  # a model without a template can go on from a blank
        raise click.UsageError(f'there is nothing to ask: give a prompt, as in {_NAME} "Why is the sky blue?", or pipe a text')
    return text


def _piped() -> str:
    """What lies on stdin where that is no terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    data = sys.stdin.buffer.read(MAX_FRAME_BYTES + 1)
    if len(data) > MAX_FRAME_BYTES:
        raise click.UsageError(f"the text on stdin is larger than {human_size(MAX_FRAME_BYTES)}, more than a prompt may have")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"the text on stdin is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from None


def _as_object(answer: Collected, choice: int) -> dict[str, Any]:
    finished, accepted = answer.finished, answer.accepted
    assert finished is not None, "only what is complete becomes an object"
    return {
        "id": finished.job,
        "choice": choice,
        "text": answer.text,
        **({"reasoning": answer.reasoning} if answer.reasoning else {}),
        "token_ids": list(answer.token_ids),
        "finish_reason": finished.reason,
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "seed": accepted.seed if accepted is not None else None,
        "s_per_token": answer.s_per_token,
        "timings": {"queued_s": finished.queued_s, "prefill_s": finished.prefill_s, "decode_s": finished.decode_s},
    }


def _out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _forget_stdout() -> None:
    """It takes no more; Python flushes it once again at the end, to nowhere then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(sentence: str) -> None:
    sys.stderr.write(f"{_NAME}: {words.one_line(sentence)}\n")


def main(args: Sequence[str] | None = None) -> int:
    """The exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a locale that lacks a character must not end an answer
    try:
        code: int | None = potato_client.main(args, prog_name=_NAME, standalone_mode=False)
        return code or EXIT_OK
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except click.NoSuchOption as error:
        near = difflib.get_close_matches(error.option_name, error.possibilities or (), n=1)
        _say(f"there is no option {error.option_name}; " + (f"did you mean {near[0]}?" if near else "--help lists what there is"))
        return EXIT_USAGE
    except click.ClickException as error:
        _say(error.format_message())
        return EXIT_USAGE
    except ClientError as error:
        _say(str(error))
        return error.exit_code
    except OSError as error:  # what is to be written cannot be
        _forget_stdout()
        _say(f"cannot go on: {error.strerror or error}")
        return EXIT_INTERNAL
