"""The settings tree: frozen, and complete before any process starts.

    sections.py ──declares──▶ keys() ──▶ potatod.toml, POTATO_* variables, flags ──sources.py──▶ Settings ──to_json──▶ every stage
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from .errors import ConfigError
from .keys import Kind, NotAllowed, Plain
from .sections import Front, Gateway, Jobs, Kv, Log, Model, OneOfModels, Pool, Reader, Run, Sampling, Speculation, Worker

_ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the daemon can be told. Sections stand in the order of config/potatod.toml."""

    model: Model = field(default_factory=Model)
    pool: Pool = field(default_factory=Pool)
    kv: Kv = field(default_factory=Kv)
    reader: Reader = field(default_factory=Reader)
    worker: Worker = field(default_factory=Worker)
    front: Front = field(default_factory=Front)
    jobs: Jobs = field(default_factory=Jobs)
    gateway: Gateway = field(default_factory=Gateway)
    speculation: Speculation = field(default_factory=Speculation)
    sampling: Sampling = field(default_factory=Sampling)
    log: Log = field(default_factory=Log)
    run: Run = field(default_factory=Run)
    #: where several are served; [model] says nothing then
    models: tuple[OneOfModels, ...] = ()

    def of(self, folder: Path) -> Settings:
        """Of a daemon that serves the model in that folder, as this one does where it serves it among others."""
        return next((each for each in self.each() if each.model.path and Path(each.model.path).resolve() == folder.resolve()), self)

    def each(self) -> tuple[Settings, ...]:
        """For each model that is served, the settings of a daemon that serves it alone."""
        return tuple(
            dataclasses.replace(
                self,
                model=Model(one.path, one.mirrors),
                speculation=self.speculation if one.draft is None else dataclasses.replace(self.speculation, draft=one.draft),
                models=(),
            )
            for one in self.models
        ) or (self,)

    def to_json(self) -> str:
        """``from_json(to_json())`` is equal to this tree."""
        page: dict[str, Any] = {}
        for key in keys():
            page.setdefault(key.section, {})[key.name] = key.plain(key.of(self))
        return json.dumps(page | {"models": [dataclasses.asdict(one) for one in self.models]})

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Raises :class:`ConfigError` where the page is not one that :meth:`to_json` wrote."""
        try:
            page = json.loads(text)
            models = tuple(OneOfModels(one["path"], tuple(one["mirrors"]), one["draft"]) for one in page["models"])
            return build({(key.section, key.name): key.parse(page[key.section][key.name]) for key in keys()}, models)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"the settings handed to this process are not complete: {error}") from None


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the tree, as declared."""

    section: str
    #: in TOML, flags and variables; the tree's attribute may carry a unit besides
    name: str
    attribute: str
    kind: Kind
    reason: str
    #: what holds where nothing is set, in words; empty where there is a plain default
    unset: str
    #: for the commented file, where there is no plain default
    example: Plain = field(hash=False)
    _default: Callable[[], Any]

    @property
    def label(self) -> str:
        return f"[{self.section}] {self.name}"

    @property
    def flag(self) -> str:
        return f"--{self.section}-{self.name}".replace("_", "-")

    @property
    def variable(self) -> str:
        return f"POTATO_{self.section}__{self.name}".upper()

    @property
    def default(self) -> Any:
        return self._default()

    def of(self, settings: Settings) -> Any:
        return getattr(getattr(settings, self.section), self.attribute)

    def plain(self, value: Any) -> Plain:
        """None where the value is unset."""
        return None if value is None else self.kind.plain(value)

    def parse(self, value: object, base: Path = _ROOT) -> Any:
        """Raises ValueError with a sentence about the key; ``base`` is what relative paths are meant from."""
        if value is None and self._default() is None:
            return None
        try:
            return self.kind.parse(value, base)
        except NotAllowed:
            shown = json.dumps(value, default=str)[:80]
            raise ValueError(f"{self.label} must be {self.kind.allowed}, not {shown}") from None
        except ValueError as error:
            raise ValueError(f"{self.label} {error}") from None


def keys() -> Iterator[Key]:
    """Every key, in the order of the tree."""
    for section in _sections():
        for attribute in dataclasses.fields(cast(Any, section.default_factory)):
            about = attribute.metadata
            yield Key(
                section.name, about["name"] or attribute.name, attribute.name, about["kind"], about["reason"],
                about["unset"], about["example"], _default_of(attribute),
            )  # fmt: skip


def _sections() -> Iterator[dataclasses.Field[Any]]:
    return (field for field in dataclasses.fields(Settings) if field.default_factory is not dataclasses.MISSING)


def _default_of(attribute: dataclasses.Field[Any]) -> Callable[[], Any]:
    if attribute.default_factory is not dataclasses.MISSING:
        return attribute.default_factory
    return lambda: attribute.default


def build(values: dict[tuple[str, str], Any], models: tuple[OneOfModels, ...] = ()) -> Settings:
    """The tree with these values, by section and key name, and defaults elsewhere."""
    sections: dict[str, dict[str, Any]] = {}
    for key in keys():
        if (key.section, key.name) in values:
            sections.setdefault(key.section, {})[key.attribute] = values[key.section, key.name]
    classes = {section.name: cast(Any, section.default_factory) for section in _sections()}
    return Settings(**{name: classes[name](**given) for name, given in sections.items()}, models=models)
