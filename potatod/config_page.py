"""The configuration for people: the commented file, and the effective tree with the origin of every value. Pure."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any, Final

from .config import Key, keys
from .keys import Plain
from .sources import Gathered

_WIDTH: Final = 110

_HEAD: Final = """\
# Potato LM's configuration: every key with what it is for, what is allowed, and its default.
# `potatod config --default` prints this page. Uncomment what you change: what stays commented follows the defaults.
#
# Each key is also a flag of `potatod start` (--pool-size 4GiB) and a variable (POTATO_POOL__SIZE=4GiB).
# A flag goes over a variable, a variable over this file. `potatod config --show` tells what holds, and from where.
# A relative path is meant from the place of this file.
"""


#: Behind [model].
_SEVERAL: Final = """\
# Instead of [model], several models, of which one is in memory at a time: whoever asks for another one waits
# until the daemon loads it. Each has a path, and may have mirrors, and a draft as in [speculation]. The first is
# meant where nobody says which.
#     [[models]]
#     path = "/var/lib/potato/model"
#
#     [[models]]
#     path = "/var/lib/potato/larger"
#     draft = "self:int4"
"""


def commented_file() -> str:
    """``config/potatod.toml``, the same on every machine."""
    sections = [f"[{section}]\n" + "\n".join(map(_entry, group)) for section, group in _sections()]
    return "\n".join([_HEAD, sections[0], _SEVERAL, *sections[1:]])


def effective(gathered: Gathered) -> str:
    """The tree as TOML, each line with the origin of its value."""
    lines = []
    for section, group in _sections():
        lines += ["", f"[{section}]"]
        rows = [(_assignment(key, gathered), gathered.origins[key.section, key.name]) for key in group]
        width = max(len(left) for left, _ in rows)
        lines += [f"{left:<{width}}  # {origin}" for left, origin in rows]
    for one in gathered.settings.models:
        said = {"path": one.path, "mirrors": list(one.mirrors), "draft": one.draft}
        lines += ["", f"[[models]]  # {gathered.models_origin}", *(f"{name} = {toml(value)}" for name, value in said.items() if value is not None)]
    return "\n".join(lines[1:]) + "\n"


def effective_json(gathered: Gathered) -> str:
    """``{section: {key: {"value": …, "from": …}}}``; an unset value is null. "models" is there where there are several, as [[models]] has them."""
    page: dict[str, Any] = {}
    for key in keys():
        entry = {"value": key.plain(key.of(gathered.settings)), "from": gathered.origins[key.section, key.name]}
        page.setdefault(key.section, {})[key.name] = entry
    if gathered.settings.models:
        page["models"] = {"value": [asdict(one) for one in gathered.settings.models], "from": gathered.models_origin}
    return json.dumps(page, indent=2, ensure_ascii=False) + "\n"


def toml(value: Plain) -> str:
    """A value as TOML writes it: JSON's spelling is TOML's too for strings (all but DEL), numbers and booleans."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def default_in_words(key: Key) -> str:
    return key.unset or toml(key.plain(key.default))


def _sections() -> Iterator[tuple[str, Iterator[Key]]]:
    return groupby(keys(), key=lambda key: key.section)


def _entry(key: Key) -> str:
    allowed = key.kind.allowed
    about = f"{key.reason} {allowed[0].upper()}{allowed[1:]}. Default: {default_in_words(key)}."
    shown = key.example if key.unset else key.plain(key.default)
    comment = textwrap.fill(about, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    return f"{comment}\n#{key.name} = {toml(shown)}\n"


def _assignment(key: Key, gathered: Gathered) -> str:
    value = key.plain(key.of(gathered.settings))
    return f"#{key.name} = " if value is None else f"{key.name} = {toml(value)}"
