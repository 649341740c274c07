"""What is served: it does not change while the gateway lives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from potatod.stage import BootModel

from .faults import Fault


@dataclass(frozen=True, slots=True)
class ServedModel:
    name: str
    checksum: str

    @property
    def fingerprint(self) -> str:
        """Another one where the same question may have another answer."""
        return f"potato-{self.checksum[:12]}"


class Served:
    def __init__(self, models: Sequence[BootModel], since: int) -> None:
        """``since``: seconds since 1970."""
        self.since = since
        self._models = {model.name: ServedModel(model.name, model.checksum) for model in models}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def model(self, name: str) -> ServedModel:
        """Raises :class:`Fault` where there is none with that name."""
        found = self._models.get(name)
        if found is None:
            served = " and ".join(map(repr, self._models)) + (" is" if len(self._models) == 1 else " are")
            raise Fault(404, f"there is no model {name[:200]!r}: {served} served", code="model_not_found", param="model")
        return found
