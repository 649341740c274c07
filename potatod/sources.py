"""Where settings come from: flag over variable over file over default. Every value remembers its origin.

Whatever is not known is refused with the nearest name that is; whatever is not allowed, with what is.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from .config import Key, Settings, build, keys
from .errors import ConfigError
from .sections import OneOfModels

_PREFIX: Final = "POTATO_"
#: Variables with two underscores that are no keys: the test suite's own.
_OTHER_PREFIXES: Final = ("POTATO_TEST_",)
DEFAULT: Final = "default"

_MODELS: Final = "models"
_PATH: Final = ("model", "path")
_MIRRORS: Final = ("model", "mirrors")
#: The keys of an entry of [[models]], and which key of the tree each is like.
ENTRY: Final[Mapping[str, tuple[str, str]]] = {"path": _PATH, "mirrors": _MIRRORS, "draft": ("speculation", "draft")}


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
    #: of [[models]]
    models_origin: str = DEFAULT


def gather(file: Path | None, environment: Mapping[str, str], flags: Mapping[Key, str], models: Sequence[str] = ()) -> Gathered:
    """The effective settings. ``flags`` maps keys to the text given for them, ``models`` are folders that the command line names where it names
    several. Raises :class:`ConfigError`."""
    known = {(key.section, key.name): key for key in keys()}
    given: dict[tuple[str, str], Given] = {}
    values: dict[tuple[str, str], Any] = {}
    page = _File.read(file)
    for source in (_of_file(page), _of_environment(environment, known.values()), _of_flags(flags)):
        for key, said in source:
            values[key.section, key.name] = _parsed(key, said)
            given[key.section, key.name] = said
    served, origin = _models_of(page, known), str(file)
    if values.get(_PATH):
        if served and given[_PATH].origin.startswith(str(file)):
            raise ConfigError(f"{given[_PATH].origin}: give [model] path for one model, or [[models]] for several, and not both")
        served = ()  # a flag or a variable says that it is another one
    if models:
        path = known[_PATH]
        served, origin = tuple(OneOfModels(_parsed(path, Given(text, "the command line", Path.cwd()))) for text in models), "the command line"
    if served:
        mirrors, draft = given.get(_MIRRORS), given.get(ENTRY["draft"])
        if mirrors is not None and values[_MIRRORS] and not (models and mirrors.origin.startswith(str(file))):
            raise ConfigError(f"{mirrors.origin}: [model] mirrors are of one model; each of [[models]] may have its own")
        if draft is not None and not draft.origin.startswith(str(file)):
            served = tuple(replace(one, draft=None) for one in served)  # a flag or a variable goes over the file
        for name in (_PATH, _MIRRORS):
            values.pop(name, None)
            given.pop(name, None)
    origins = {name: given[name].origin if name in given else DEFAULT for name in known}
    return Gathered(build(values, served), origins, origin if served else DEFAULT)


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean "size"?``, or what is known where nothing is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else f"; known are {', '.join(names)}"


def _parsed(key: Key, said: Given) -> Any:
    try:
        return key.parse(said.value, said.base)
    except ValueError as error:
        raise ConfigError(f"{said.origin}: {error}") from None


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


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    text: str
    page: dict[str, Any]

    @classmethod
    def read(cls, path: Path | None) -> _File | None:
        if path is None:
            return None
        text = _read(path)
        try:
            return cls(path, text, tomllib.loads(text))
        except (
            ValueError,
            RecursionError,
        ) as error:  # not only TOMLDecodeError: numbers of thousands of digits, deep nests
            raise ConfigError(f"{path} is not TOML: {error}") from None

    @property
    def base(self) -> Path:
        return self.path.absolute().parent

    def place(self, section: str, name: str | None = None) -> str:
        line = _line_of(self.text, section, name)
        return f"{self.path}, line {line}" if line else str(self.path)


def _of_file(file: _File | None) -> Iterator[tuple[Key, Given]]:
    if file is None:
        return
    sections: dict[str, dict[str, Key]] = {}
    for key in keys():
        sections.setdefault(key.section, {})[key.name] = key
    for section, entries in file.page.items():
        if section == _MODELS:
            continue
        if section not in sections:
            raise ConfigError(f'{file.place(section)}: unknown section "{section}"{nearest(section, [*sections, _MODELS])}')
        if not isinstance(entries, dict):
            raise ConfigError(f"{file.place(section)}: write [{section}] and below it its keys, one a line")
        for name, value in entries.items():
            origin = file.place(section, name)
            if name not in sections[section]:
                raise ConfigError(f'{origin}: unknown key "{name}" in [{section}]{nearest(name, sections[section])}')
            yield sections[section][name], Given(value, origin, file.base)


def _models_of(file: _File | None, known: Mapping[tuple[str, str], Key]) -> tuple[OneOfModels, ...]:
    """The file's [[models]]."""
    entries = [] if file is None else file.page.get(_MODELS, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{file and file.path}: write [[models]], with two brackets, before the keys of each model")
    return tuple(_model_of(file, entry, number, known) for number, entry in enumerate(entries, 1) if file is not None)


def _model_of(file: _File, entry: dict[str, Any], number: int, known: Mapping[tuple[str, str], Key]) -> OneOfModels:
    origin = f"{file.path}, [[models]] number {number}"
    for name in entry:
        if name not in ENTRY:
            raise ConfigError(f'{origin}: unknown key "{name}"{nearest(name, ENTRY)}')
    said = {name: _parsed(known[ENTRY[name]], Given(value, origin, file.base)) for name, value in entry.items()}
    if not said.get("path"):
        raise ConfigError(f"{origin}: path is missing, the model folder")
    return OneOfModels(**said)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {file}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text, which TOML is") from None
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error.strerror}") from None


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
