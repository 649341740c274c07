"""Where settings come from: flag over variable over file over default. Every value remembers its origin.

Whatever is not known is refused with the nearest name that is; whatever is not allowed, with what is.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .config import Key, Settings, build, keys
from .errors import ConfigError

_PREFIX: Final = "POTATO_"
#: Variables with two underscores that are no keys: the test suite's own.
_OTHER_PREFIXES: Final = ("POTATO_TEST_",)
DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was written, and where."""

    value: object
    #: "flag --pool-size", "variable POTATO_POOL__SIZE", "/etc/potatod.toml, line 3"
    origin: str
    #: what a relative path is meant from
    base: Path


@dataclass(frozen=True, slots=True)
class Gathered:
    settings: Settings
    #: by section and key name: an origin, or DEFAULT
    origins: dict[tuple[str, str], str]


def gather(file: Path | None, environment: Mapping[str, str], flags: Mapping[Key, str]) -> Gathered:
    """The effective settings. ``flags`` maps keys to the text given for them. Raises :class:`ConfigError`."""
    known = {(key.section, key.name): key for key in keys()}
    given: dict[tuple[str, str], Given] = {}
    values: dict[tuple[str, str], Any] = {}
    for source in (_of_file(file), _of_environment(environment, known.values()), _of_flags(flags)):
        for key, said in source:
            try:
                values[key.section, key.name] = key.parse(said.value, said.base)
            except ValueError as error:
                raise ConfigError(f"{said.origin}: {error}") from None
            given[key.section, key.name] = said
    return Gathered(build(values), {name: given[name].origin if name in given else DEFAULT for name in known})


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean "size"?``, or what is known where nothing is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else f"; known are {', '.join(names)}"


# flags


def _of_flags(flags: Mapping[Key, str]) -> Iterator[tuple[Key, Given]]:
    for key, text in flags.items():
        yield key, Given(key.kind.literal(text), f"flag {key.flag}", Path.cwd())


# variables


def _of_environment(environment: Mapping[str, str], known: Iterable[Key]) -> Iterator[tuple[Key, Given]]:
    by_variable = {key.variable: key for key in known}
    for name, text in environment.items():
        if not name.startswith(_PREFIX) or name.startswith(_OTHER_PREFIXES) or "__" not in name:
            continue
        if name not in by_variable:
            raise ConfigError(f"variable {name} sets nothing that is known{nearest(name, by_variable)}")
        key = by_variable[name]
        yield key, Given(key.kind.literal(text), f"variable {name}", Path.cwd())


# the file


def _of_file(file: Path | None) -> Iterator[tuple[Key, Given]]:
    if file is None:
        return
    text = _read(file)
    try:
        page = tomllib.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # not only TOMLDecodeError: numbers of thousands of digits, deep nests
        raise ConfigError(f"{file} is not TOML: {error}") from None
    sections: dict[str, dict[str, Key]] = {}
    for key in keys():
        sections.setdefault(key.section, {})[key.name] = key
    base = file.absolute().parent
    for section, entries in page.items():
        if section not in sections:
            raise ConfigError(f'{_place(file, text, section)}: unknown section "{section}"{nearest(section, sections)}')
        if not isinstance(entries, dict):
            raise ConfigError(f"{_place(file, text, section)}: write [{section}] and below it its keys, one a line")
        for name, value in entries.items():
            origin = _place(file, text, section, name)
            if name not in sections[section]:
                raise ConfigError(f'{origin}: unknown key "{name}" in [{section}]{nearest(name, sections[section])}')
            yield sections[section][name], Given(value, origin, base)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {file}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text, which TOML is") from None
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error.strerror}") from None


def _place(file: Path, text: str, section: str, name: str | None = None) -> str:
    line = _line_of(text, section, name)
    return f"{file}, line {line}" if line else str(file)


def _line_of(text: str, section: str, name: str | None) -> int | None:
    """The line that sets it, where the file is written the usual way; tomllib does not say."""
    now = ""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].strip()
        if header := re.fullmatch(r"\[\s*([^\[\]]+?)\s*\]", words):
            now = header[1]
            if name is None and now == section:
                return number
        elif name is None:
            if not now and re.match(rf"{re.escape(section)}\s*[=.]", words):
                return number
        else:
            wanted = name if now == section else f"{section}.{name}" if not now else None
            if wanted and re.match(rf"{re.escape(wanted)}\s*[=.]", words):
                return number
    return None
