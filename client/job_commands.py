"""The commands of `potato-client` about jobs: submit, attach, jobs, show, pause, resume, cancel, retry, delete, export."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, get_args

import click

from . import batch, job_table
from .client import Answer, Client
from .errors import ClientError, RequestRefused
from .exit_codes import EXIT_OK
from .job_report import JOB_STATES, OVER, JobReport, JobState
from .paths import SOCKET_VARIABLE
from .protocol import JobAction
from .screen import Screen
from .turn import Outcome, answer_options, as_typed, follow, say_detached

#: Between two looks of `jobs --watch`.
_WATCH_S: Final = 1.0
_ALL: Final = 1 << 40
_CLEAR: Final = "\x1b[H\x1b[2J"

SOCKET: Final[Callable[..., Any]] = click.option(
    "--socket", metavar="ADDRESS", help=f"Where the daemon listens: ipc:// and a path, or a key file. Also {SOCKET_VARIABLE}."
)
_STATE: Final = click.option(
    "--state", "states", multiple=True, type=click.Choice(JOB_STATES), metavar="STATE", help=f"Only jobs of this state: {', '.join(JOB_STATES)}.",
)  # fmt: skip


def submit_one(client: Client, prompt: str, *, system: str | None, raw: bool, key: str | None, options: dict[str, Any]) -> int:
    """Prints the id."""
    chosen = answer_options(options)
    with as_typed(chosen):
        _out(f"{client.submit(prompt, system=system, raw=raw, key=key, **chosen)}\n")
    return EXIT_OK


def submit_file(client: Client, path: Path, *, anew: bool, options: dict[str, Any]) -> int:
    """Prints the ids, a line each. What was accepted before an error stays."""
    chosen = {name: value for name, value in answer_options({**options, "batch": True}).items() if value is not None}
    lines = batch.lines_of(_read(path), chosen, anew=anew)
    for done, line in enumerate(lines):
        try:
            _out(f"{client.submit(line.prompt, system=line.system, raw=line.raw, key=line.key or None, **line.options)}\n")
        except RequestRefused as error:
            raise RequestRefused(error.code, f"line {line.number}: {error} ({done} of {len(lines)} were accepted)", error.exit_code) from None
    return EXIT_OK


@click.command()
@click.argument("job")
@SOCKET
@click.option("--quiet", is_flag=True, help="Nothing on stderr but errors.")
def attach(job: str, socket: str | None, quiet: bool) -> int:
    """Show the answer of a job: what there is of it at once, then what comes. Ctrl-C leaves it; it goes on."""
    with Client(socket) as client:
        answer = client.attach(job)
        screen = Screen(sys.stdout, sys.stderr, quiet=quiet)
        outcome = follow(answer, screen, cancels=False)
        screen.end(answer, interrupted=outcome is not Outcome.COMPLETE)
        if outcome is Outcome.DETACHED:
            say_detached(answer, quiet)
    return EXIT_OK


@click.command()
@SOCKET
@_STATE
@click.option("--all", "everything", is_flag=True, help="Those that are over for long, too.")
@click.option("--limit", type=click.IntRange(1), default=50, metavar="N", help="The last N.", show_default=True)
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
def jobs(socket: str | None, states: tuple[JobState, ...], everything: bool, limit: int, watch: bool, as_json: bool) -> int:
    """What has been asked: its state, place, tokens, speed and expected end. The newest first."""
    with Client(socket) as client:
        while True:
            reports = client.jobs(states, _ALL if everything else limit)
            text = _json_lines(reports) if as_json else job_table.table(reports, time.time(), _width())
            _out((_CLEAR if watch and sys.stdout.isatty() else "") + text)
            if not watch:
                return EXIT_OK
            time.sleep(_WATCH_S)


@click.command()
@click.argument("job")
@SOCKET
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(job: str, socket: str | None, as_json: bool) -> int:
    """A job: what was asked, what has been answered, and all that is known of it."""
    with Client(socket) as client:
        described = client.show(job)
        answer = _so_far(client, described.report)
    if as_json:
        _out(json.dumps(job_table.as_object(described, answer.text, answer.reasoning, answer.token_ids), ensure_ascii=False) + "\n")
    else:
        _out(job_table.page(described, answer.text, answer.reasoning, time.time()))
    return EXIT_OK


@click.command()
@click.argument("jobs", nargs=-1)
@SOCKET
@_STATE
def export(jobs: tuple[str, ...], socket: str | None, states: tuple[JobState, ...]) -> int:
    """Jobs with their questions and answers, a JSON object a line, the oldest first. All, or those that are named."""
    with Client(socket) as client:
        for id in jobs or [report.job for report in reversed(client.jobs(states, _ALL))]:
            described = client.show(id)
            answer = _so_far(client, described.report)
            _out(json.dumps(job_table.as_object(described, answer.text, answer.reasoning, answer.token_ids), ensure_ascii=False) + "\n")
    return EXIT_OK


_DOES: Final[dict[JobAction, str]] = {
    "cancel": "End jobs; what they have said stays.",
    "pause": "Let jobs wait until they are resumed.",
    "resume": "Let paused jobs go on.",
    "retry": "Let jobs that failed or were cancelled go on where they were.",
    "delete": "Forget jobs that are over, and their answers.",
}
assert set(_DOES) == set(get_args(JobAction))


def managing() -> Iterator[click.Command]:
    """One command for each thing that can be done to a job."""
    return map(_managing, _DOES)


def _managing(action: JobAction) -> click.Command:
    @click.command(action, help=f"{_DOES[action]} Ids may be shortened while they are unique.")
    @click.argument("jobs", nargs=-1, required=True)
    @SOCKET
    def manage(jobs: tuple[str, ...], socket: str | None) -> int:
        worst: ClientError | None = None
        with Client(socket) as client:
            for id in jobs:
                try:
                    report = client.manage(id, action)
                except RequestRefused as error:
                    if worst is not None:
                        click.echo(f"potato-client: {worst}", err=True)
                    worst = error
                else:
                    _out(f"{report.job} {'deleted' if action == 'delete' else report.state}\n")
        if worst is not None:
            raise worst
        return EXIT_OK

    return manage


def _so_far(client: Client, report: JobReport) -> Answer:
    """All of it where it is over; what there is now where it is not."""
    answer = client.attach(report.job)
    try:
        for _ in answer.messages():
            if report.state not in OVER and len(answer.token_ids) >= report.completion_tokens:
                break
    except RequestRefused:
        if answer.accepted is None:
            raise  # else it is how the job failed
    answer.detach()
    return answer


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is not UTF-8: byte {error.start}") from None


def _json_lines(reports: list[JobReport]) -> str:
    return "".join(json.dumps(dataclasses.asdict(report), ensure_ascii=False) + "\n" for report in reports)


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 1 << 16


def _out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
