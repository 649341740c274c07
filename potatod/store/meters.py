"""How far a command has come, and what it asks first: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Final, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from potatod.errors import UsageError
from potatod.sizes import human_size

#: Without a terminal a line of progress is printed no more often than this.
_LINE_EVERY_S: Final = 5.0


class Meter(Protocol):
    def say(self, sentence: str) -> None:
        """A line of its own."""

    def __call__(self, done: int, total: int, what: str = "", before: int = 0) -> None:
        """Bytes done of all, what is being worked on, and how many of them an earlier run had done."""


def agreed(lines: Iterable[str], yes: bool) -> None:
    """Says them, and raises where nobody says that it may go on."""
    for line in lines:
        click.echo(line, err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked here whether to go on: run it with -y")
    click.confirm("go on?", abort=True, err=True)


@contextmanager
def meter(label: str) -> Iterator[Meter]:
    """A bar with layers, bytes, rate and remaining time on a terminal; a plain line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _Lines(label)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, label)


class Later:
    """A :class:`Meter` that begins with the first progress: a bar and a question do not go together."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._stack = ExitStack()
        self._meter: Meter | None = None

    def __enter__(self) -> Later:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, value, trace)

    def say(self, sentence: str) -> None:
        if self._meter is None:
            click.echo(sentence, err=True)
        else:
            self._meter.say(sentence)

    def __call__(self, done: int, total: int, what: str = "", before: int = 0) -> None:
        if self._meter is None:
            self._meter = self._stack.enter_context(meter(self._label))
        self._meter(done, total, what, before)


class _Bar:
    """A :class:`Meter` on a terminal; what it says stands above the bar."""

    def __init__(self, bar: Progress, label: str) -> None:
        self._bar = bar
        self._label = label
        self._task = bar.add_task(label, total=None)

    def say(self, sentence: str) -> None:
        self._bar.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, done: int, total: int, what: str = "", before: int = 0) -> None:
        self._bar.update(self._task, completed=done - before, total=total - before, description=f"{self._label} {what}".strip(), refresh=True)


class _Lines:
    """A :class:`Meter` elsewhere."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._began = self._last = time.monotonic()

    def say(self, sentence: str) -> None:
        click.echo(sentence, err=True)

    def __call__(self, done: int, total: int, what: str = "", before: int = 0) -> None:
        now = time.monotonic()
        if now - self._last < _LINE_EVERY_S:
            return
        self._last = now
        rate = (done - before) / (now - self._began)
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
        shown = f"{self._label} {what}".strip()
        click.echo(f"{shown}: {human_size(done)} of {human_size(total)}, {human_size(int(rate))}/s{left}", err=True)
