"""A page of the manual, in the macros of man(7), from a click command. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import click

_EXITS: Final = """
0 where it is done. Otherwise one sentence on stderr says what is wrong, where, and what to do, and the code which kind of error it is:
docs/OPERATIONS.md lists them."""


def walk(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[tuple[tuple[str, ...], click.Context]]:
    """A command and all below it: the words that are typed, and the context that knows it."""
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    yield tuple(context.command_path.split()), context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None, "what is listed is there"
            yield from walk(found, below, context)


def text(words: tuple[str, ...], context: click.Context) -> str:
    command, name = context.command, "-".join(words)
    about = command.get_short_help_str(200).rstrip(".")
    lines = [f'.TH "{name.upper()}" 1 "" "Potato LM" "Potato LM"', ".SH NAME", f"{_said(name)} \\- {_said(about)}"]
    lines += [".SH SYNOPSIS", f".B {_said(' '.join(words))}", _said(" ".join(command.collect_usage_pieces(context)))]
    lines += [".SH DESCRIPTION", *_paragraphs(command.help or "")]
    options = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context)) is not None]
    if options:
        lines += [".SH OPTIONS", *_terms(options)]
    if isinstance(command, click.Group):
        below = [(each, command.get_command(context, each)) for each in command.list_commands(context)]
        lines += [".SH COMMANDS", *_terms([(f"{name}-{each}(1)", found.get_short_help_str(200)) for each, found in below if found is not None])]
    if command.epilog:
        lines += [".SH NOTES", *_paragraphs(command.epilog)]
    lines += [".SH EXIT STATUS", *_paragraphs(_EXITS)]
    if len(words) > 1:
        lines += [".SH SEE ALSO", f".BR {_said('-'.join(words[:-1]))} (1)"]
    return "\n".join(lines) + "\n"


def _paragraphs(said: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", said.strip())):
        if number:
            yield ".PP"
        yield _said(" ".join(paragraph.split()))


def _terms(rows: list[tuple[str, str]]) -> Iterator[str]:
    for term, about in rows:
        yield from (".TP", f".B {_said(term)}", _said(" ".join(about.split())) or "\\&")


def _said(words: str) -> str:
    """Nothing of it is a macro: no dot or apostrophe at the beginning, no backslash; a hyphen is one that can be copied."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
